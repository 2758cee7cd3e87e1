from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.sites import KINDS, Site, parse_sites

sites = st.builds(Site, st.integers(0, 500), st.sampled_from(KINDS))


@given(sites)
def test_a_site_survives_both_ways_of_writing_it(site: Site) -> None:
    assert Site.parse(str(site)) == site
    assert Site.parse(site.lens_name) == site
    assert Site.parse(site) is site


def test_names() -> None:
    assert str(Site(2, "resid_post")) == "resid_post.2"
    assert Site.parse("blocks.2.hook_resid_post") == Site(2, "resid_post")
    assert Site.parse("blocks.10.attn.hook_z") == Site(10, "head_out")
    assert Site(0, "mlp_act").lens_name == "blocks.0.mlp.hook_post"


@given(st.lists(sites, unique=True))
def test_sites_sort_in_the_order_of_computation(some: list[Site]) -> None:
    expected = sorted(some, key=lambda site: (site.layer, KINDS.index(site.kind)))
    shuffled = random.Random(0).sample(some, len(some))
    assert sorted(shuffled) == expected


def test_order_within_a_block() -> None:
    assert Site(1, "resid_pre") < Site(1, "q") < Site(1, "attn_out") < Site(1, "resid_mid") < Site(1, "resid_post")
    assert Site(0, "resid_post") < Site(1, "resid_pre")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resid_pots.2", "Unknown site kind 'resid_pots'; did you mean 'resid_post'?"),
        ("blocks.1.hook_resid_past", "did you mean 'hook_resid_post'?"),
        ("resid_post", "A site is written KIND.LAYER, such as resid_post.2"),
        ("resid_post.-1", "A site is written KIND.LAYER"),
        ("", "A site is written KIND.LAYER"),
    ],
)
def test_bad_names_say_what_is_right(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        Site.parse(text)
    assert message in str(error.value)


def test_bad_layers() -> None:
    for layer in (-1, True):
        with pytest.raises(ValueError, match="a whole number from 0 on"):
            Site(layer, "resid_post")  # type: ignore[arg-type]


def test_parse_sites_takes_one_or_several_and_drops_repeats() -> None:
    one = Site(0, "resid_post")
    assert parse_sites("resid_post.0") == [one]
    assert parse_sites([one, "blocks.0.hook_resid_post", "q.1"]) == [one, Site(1, "q")]
    with pytest.raises(ValueError, match="At least one site"):
        parse_sites([])


def test_importing_sites_does_not_import_torch() -> None:
    code = "import sys, interp.sites, interp.models.embedded; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
