"""Agreement of orders: scipy, closed cases, intervals over sequences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from interp.layers.rank_agreement import Scores, chance, draw_sequences, interval, kendall, rank_agreement, spearman


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def peer(function: Any, x: Any, y: Any) -> float:
    return float(function(x, y).statistic)


def test_correlations_of_many_rows_are_scipys() -> None:
    x, y = rows(30, 6), rows(30, 6, seed=1)
    x[3, 2] = x[3, 4]  # ties
    x[5, :3], y[5, 1:] = 1.0, -2.0
    for mine, theirs in ((spearman, stats.spearmanr), (kendall, stats.kendalltau)):
        slow = [peer(theirs, a, b) for a, b in zip(x, y, strict=True)]
        np.testing.assert_allclose(mine(x, y), slow, atol=1e-12)
    assert np.isnan(spearman(np.ones((1, 4)), rows(1, 4))).all()
    assert np.isnan(kendall(rows(1, 2), rows(1, 2))).all()


def test_the_same_order_agrees_wholly_and_a_reversed_one_not_at_all() -> None:
    reference = Scores(np.array([[1.0, 3.0, 2.0, 9.0]]), np.ones(1))
    found = rank_agreement(
        {"same": Scores(reference.sums**3), "back": Scores(-reference.sums), "flat": Scores(np.ones((1, 4)))}, reference
    )
    assert [(one.spearman, one.kendall) for one in found[:2]] == [(1, pytest.approx(1)), (-1, pytest.approx(-1))]
    assert found[0].chance == pytest.approx(1 / 24)
    assert found[1].chance == 1
    assert all(math.isnan(value) for value in (found[2].spearman, found[2].kendall, found[2].chance))
    assert all(math.isnan(one.spearman_low) and math.isnan(one.kendall_high) for one in found)  # one sequence


def test_intervals_draw_both_scores_together() -> None:
    counts = np.array([3.0, 5.0, 2.0, 4.0, 4.0])
    noise = rows(5, 4)
    reference = Scores(noise, counts)
    (alike,) = rank_agreement({"a": Scores(2 * noise, counts)}, reference, resamples=50)
    assert (alike.spearman_low, alike.spearman_high) == (1, 1)  # whatever is drawn, both move together
    (other,) = rank_agreement({"b": Scores(rows(5, 4, seed=3), counts)}, reference, resamples=200)
    draws = draw_sequences(5, 200)
    slow = []
    for drawn in draws:
        a, b = ((drawn[:, None] * sums).sum(0) / (drawn * counts).sum() for sums in (rows(5, 4, seed=3), noise))
        slow.append(peer(stats.spearmanr, a, b))
    assert (other.spearman_low, other.spearman_high) == pytest.approx(tuple(np.quantile(slow, (0.025, 0.975))))
    assert other.spearman_low <= other.spearman <= other.spearman_high
    assert draws.sum(1).tolist() == [5] * 200
    low, high = interval(np.array([[np.nan, 1.0], [np.nan, 2.0]]))
    assert np.isnan([low[0], high[0]]).all()
    assert low[1] >= 1


def test_chance_is_the_share_of_orders_that_do_as_well() -> None:
    x = np.array([1.0, 2.0, 4.0, 3.0])
    y = np.arange(4.0)
    assert chance(x, y) == pytest.approx(4 / 24)  # rho = 0.8: the identity and the three swaps of neighbours
    many = chance(np.arange(9.0), np.arange(9.0))
    assert 0 <= many < 0.001


def test_measures_of_other_sequences_are_refused() -> None:
    reference = Scores(rows(5, 4), np.ones(5))
    with pytest.raises(ValueError, match="must score 4 layers on 5 sequences"):
        rank_agreement({"x": Scores(rows(4, 4), np.ones(4))}, reference)
    with pytest.raises(ValueError, match="got 3 layers"):
        rank_agreement({"x": Scores(rows(5, 3), np.ones(5))}, reference)
