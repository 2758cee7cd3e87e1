from __future__ import annotations

import math

import numpy as np
import pytest

from sae.features import coactivation
from sae.features.coactivation import coactive, npmi, pair_counts
from sae.features.spool import Spool


def spooled(dense: np.ndarray, step: int) -> Spool:
    spool = Spool(dense.shape[1])
    for first in range(0, len(dense), step):
        rows, latents = np.nonzero(dense[first : first + step])
        spool.add(latents, first + rows, dense[first + rows, latents])
    return spool


@pytest.fixture
def dense() -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(120, 9)).astype(np.float32) * (rng.random((120, 9)) < 0.3)
    values[:, 4] = np.where(values[:, 1] != 0, -1, 0)  # always together, opposite sign
    values[:, 5] = 0
    values[:, 6] = 1
    values[:3, 7] = 1
    values[3:, 7] = 0
    return values


def slow_npmi(a: np.ndarray, b: np.ndarray) -> float:
    both, n = int(np.sum((a != 0) & (b != 0))), len(a)
    if both == n:
        return 0.0
    p, p_a, p_b = both / n, np.mean(a != 0), np.mean(b != 0)
    return math.log(p / (p_a * p_b)) / -math.log(p)


@pytest.mark.parametrize("step", [13, 120])
@pytest.mark.parametrize("pairs", [1, 20, 1 << 26])
def test_pairs_are_counted_and_scored_exactly(
    step: int, pairs: int, dense: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coactivation, "PAIRS", pairs)
    monkeypatch.setattr(coactivation, "SCORES", 2 * pairs)
    heard: list[int] = []
    with spooled(dense, step) as spool:
        pattern = (dense != 0).astype(int)
        assert np.array_equal(pair_counts(spool, 2, 6), (pattern.T @ pattern)[2:6])
        values, others = coactive(spool, len(dense), 3, minimum=5, on_progress=heard.append)
    assert heard[-1] == 9
    for latent in range(9):
        scores = {
            other: slow_npmi(dense[:, latent], dense[:, other])
            for other in range(9)
            if other != latent and np.sum((dense[:, latent] != 0) & (dense[:, other] != 0)) >= 5
        }
        best = sorted(scores.values(), reverse=True)[:3]
        kept = values[latent] > -np.inf
        assert values[latent][kept].tolist() == pytest.approx(best, abs=1e-6)
        for value, other in zip(values[latent][kept], others[latent][kept], strict=True):
            assert value == pytest.approx(scores[int(other)], abs=1e-6)
    assert values[1, 0] == pytest.approx(1)
    assert others[1, 0] == 4
    assert not (values[5] > -np.inf).any()
    assert not (values[7] > -np.inf).any(), "three meetings are fewer than the minimum"


def test_independent_latents_score_zero_and_constant_ones_too() -> None:
    one = np.array([1])
    assert npmi(25 * one, 50 * one, 50 * one, 100)[0] == pytest.approx(0, abs=1e-12)
    assert npmi(100 * one, 100 * one, 100 * one, 100)[0] == 0
    assert npmi(10 * one, 10 * one, 10 * one, 100)[0] == pytest.approx(1)
    assert npmi(one, 50 * one, 50 * one, 100)[0] < 0
