"""Places as the command line writes them."""

from __future__ import annotations

import pytest

from app.places import Place, all_heads
from interp.attribution import Cell
from interp.models import ModelHandle
from interp.sites import Site


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("head_out.2:1,3", Place(Site(2, "head_out"), (1, 3))),
        ("resid_pre.3@-1", Place(Site(3, "resid_pre"), None, (-1,))),
        ("k.1:0@5,6", Place(Site(1, "k"), (0,), (5, 6))),
        (" mlp_out.0 ", Place(Site(0, "mlp_out"))),
    ],
)
def test_a_place_is_read(text: str, place: Place) -> None:
    assert Place.parse(text) == place


@pytest.mark.parametrize("text", ["head_out.2:", "head_out.2:-1", "head_out.2@x", "head_out.2:1@", "", "q.0:1:2"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"KIND\.LAYER"):
        Place.parse(text)


def test_each_part_is_a_sender_at_all_its_positions() -> None:
    assert Place.parse("head_out.1:0,2@3,4").cells() == [
        (Cell("head_out", 1, 3, head=0), Cell("head_out", 1, 4, head=0)),
        (Cell("head_out", 1, 3, head=2), Cell("head_out", 1, 4, head=2)),
    ]
    assert Place.parse("mlp_act.1:7").cells() == [(Cell("mlp_act", 1, neuron=7),)]
    assert Place.parse("mlp_out.1").cells() == [(Cell("mlp_out", 1),)]


def test_conditions_name_what_the_site_has(gpt2: ModelHandle) -> None:
    assert Place.parse("head_out.1:2").through(gpt2, {}).heads == (2,)
    assert Place.parse("mlp_act.1:2").through(gpt2, {}).neurons == (2,)
    with pytest.raises(ValueError, match="neither heads nor neurons"):
        Place.parse("resid_post.1:2").through(gpt2, {})
    assert len(all_heads(gpt2)) == gpt2.n_layers
    assert all_heads(gpt2)[0].parts == tuple(range(gpt2.n_heads))
