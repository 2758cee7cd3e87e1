"""The checks that rules share."""

from __future__ import annotations

import pytest

from sae.rules.arguments import at_least, latents_per_row, one_of, risen, rising, shares
from sae.rules.base import Context


def test_what_is_out_of_range_is_refused_with_its_name_and_the_range() -> None:
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.d_sae=8, got 9\."):
        latents_per_row(9, 4, 8)
    with pytest.raises(ValueError, match=r"beta must be at least 0 and finite, got nan\."):
        at_least(0, l1=0.0, beta=float("nan"))
    with pytest.raises(ValueError, match=r"sigma must be above 0 and finite, got 0\.0\."):
        at_least(0, above=True, sigma=0.0)
    with pytest.raises(ValueError, match=r"warm is a share of the steps and must lie in 0\.\.1, got 1\.5\."):
        shares("the steps", warm=1.5)
    with pytest.raises(ValueError, match=r"Unknown mode 'ad'; did you mean 'add'\? Known: add, product\."):
        one_of(("add", "product"), mode="ad")
    with pytest.raises(ValueError, match=r"l1 must be at least 0 and finite, got -1"):
        rising(0.1, l1=-1.0)
    with pytest.raises(ValueError, match=r"warmup is a share of the steps and must lie in 0\.\.1, got -0\.1"):
        rising(-0.1, l1=1.0)


def test_what_is_in_range_passes() -> None:
    assert latents_per_row(8, 4, 8) == 8
    at_least(0, l1=0.0)
    shares("the steps", warm=0.0, other=1.0)
    one_of(("add", "product"), mode="product")
    rising(1.0, l1=0.0)


def test_a_penalty_rises_linearly_and_stays() -> None:
    assert [risen(Context(step, 10), 0.4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert risen(Context(0, 10), 0.0) == 1.0
