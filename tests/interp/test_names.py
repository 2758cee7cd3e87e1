from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.names import LISTED, nearest, shorten, unknown


def test_message_names_the_nearest_match_and_the_list() -> None:
    assert unknown("rule", "topkk", ["topk", "batch_topk"]) == (
        "Unknown rule 'topkk'; did you mean 'topk'? Known: batch_topk, topk."
    )


def test_nothing_near_and_nothing_known() -> None:
    assert unknown("rule", "zebra", ["topk"]) == "Unknown rule 'zebra'. Known: topk."
    assert unknown("run", "x", []) == "Unknown run 'x'. Known: none."


@pytest.mark.parametrize(("got", "match"), [("TOPK", "topk"), ("resid", "resid_post"), ("jumprelu", "jump_relu")])
def test_nearest_ignores_case_and_knows_parts(got: str, match: str) -> None:
    assert nearest(got, ["topk", "resid_post", "jump_relu"]) == match


def test_long_lists_are_counted() -> None:
    message = unknown("latent", "y", [f"name{i:03}" for i in range(LISTED + 7)])
    assert message.endswith("name029 and 7 more.")


def test_quotes_are_short() -> None:
    assert len(shorten("x" * 10_000)) == 80
    assert len(unknown("rule", "x" * 10_000, ["topk"])) < 200


@given(got=st.one_of(st.text(), st.integers(), st.none()), known=st.lists(st.text(max_size=8), max_size=8))
def test_any_name_gives_a_message(got: object, known: list[str]) -> None:
    message = unknown("thing", got, known)
    assert message.startswith("Unknown thing ")
    assert nearest(got, known) in {*known, None}
