"""Budgets: feasible, as steep as asked for, and whole numbers that are right in sum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae.budgets import check_places, round_counts, zipf_shares


def zipf_reference(d_sae: int, k: int, power: float, shift: float, cap: float) -> list[float]:
    """Pour out the budget round by round: whoever would exceed the cap gets the cap and leaves."""
    curve = [(rank + 1 + shift) ** -power for rank in range(d_sae)]
    full: set[int] = set()
    while True:
        left, rest = k - cap * len(full), sum(curve[i] for i in range(d_sae) if i not in full)
        level = [cap if i in full else curve[i] * left / rest for i in range(d_sae)]
        over = {i for i in range(d_sae) if level[i] > cap * (1 + 1e-12)}
        if not over:
            return level
        full |= over


@given(
    d_sae=st.integers(2, 60),
    share=st.floats(0.01, 1),
    power=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
    shift=st.sampled_from([0.0, 3.0]),
    cap=st.sampled_from([0.05, 0.3, 0.5, 1.0]),
)
def test_shares_are_poured_out_below_the_cap(d_sae: int, share: float, power: float, shift: float, cap: float) -> None:
    k = int(share * cap * d_sae)
    if k == 0:
        return
    found = zipf_shares(d_sae, k, power=power, shift=shift, cap=cap)
    assert float(found.sum()) == pytest.approx(k)
    assert float(found.max()) <= cap * (1 + 1e-9)
    assert (found.diff() <= 1e-12).all()
    assert found.tolist() == pytest.approx(zipf_reference(d_sae, k, power, shift, cap), rel=1e-6, abs=1e-12)


def test_a_pure_zipf_curve_would_exceed_every_token() -> None:
    d_sae, k = 4096, 32
    harmonic = math.fsum(1 / rank for rank in range(1, d_sae + 1))
    assert k / harmonic > 3.5, "the first latent would fire 3.6 times per token"
    found = zipf_shares(d_sae, k, cap=1.0)
    assert float(found[0]) == 1.0
    assert float(found.sum()) == pytest.approx(k)
    below = found[found < 1]
    ranks = torch.arange(1, d_sae + 1)[found < 1]
    assert torch.allclose(below * ranks, (below * ranks)[:1].expand(len(below)))


def test_power_0_is_uniform() -> None:
    assert zipf_shares(40, 4, power=0.0).tolist() == pytest.approx([0.1] * 40)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"d_sae": 40, "k": 9, "cap": 0.2}, r"fire on at most 0\.2 .* fire 8 times per token, got k=9: .* at least 45"),
        ({"d_sae": 40, "k": 4, "cap": 0.0}, r"cap is a share of the tokens and must lie in 0\.\.1"),
        ({"d_sae": 40, "k": 4, "cap": float("nan")}, r"cap is a share"),
        ({"d_sae": 40, "k": 4, "power": -1.0}, r"power and shift must be at least 0 and finite, got -1\.0"),
        ({"d_sae": 40, "k": 4, "shift": float("nan")}, r"power and shift must be at least 0 and finite"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused_with_the_remedy(args: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zipf_shares(**args)


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("batch", [3, 7, 100, 2048])
def test_counts_are_whole_right_in_sum_and_right_on_average(power: float, batch: int) -> None:
    shares = zipf_shares(50, 4, power=power)
    g = torch.Generator().manual_seed(1)
    drawn = torch.stack([round_counts(shares, batch, g) for _ in range(2000)])
    exact = shares * batch
    assert (drawn.sum(1) == 4 * batch).all()
    assert (drawn >= exact.floor() - 1e-6).all()
    assert (drawn <= (exact + 1e-6).ceil()).all()
    assert torch.allclose(drawn.double().mean(0), exact, atol=0.05)
    assert int(drawn.max()) <= batch


def test_a_batch_too_small_for_every_latent_is_refused_and_the_smallest_that_is_not_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"k · batch = 36 places out over 40 latents: take batches of at least 10 rows"
    ):
        check_places("A rule", 4, 9, 40)
    check_places("A rule", 4, 10, 40)
