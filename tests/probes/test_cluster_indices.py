"""Cluster indices: scikit-learn and the definitions as peers, the identity of two clusters, invariances."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score

from probes.clusters import ClusterIndices, cluster_indices

NAMES = ("xbi", "chi", "dbs", "di", "aqi")


def clusters(k: int = 3, n: int = 60, d: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of k clusters of unlike sizes."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.choice(k, n - k, p=np.arange(1, k + 1) / (k * (k + 1) / 2))])
    return rng.normal(size=(n, d)) + 2 * rng.normal(size=(k, d))[labels], labels


def slow_dunn(x: np.ndarray, labels: np.ndarray) -> float:
    pairs = list(combinations(range(len(x)), 2))
    apart = min(np.linalg.norm(x[i] - x[j]) for i, j in pairs if labels[i] != labels[j])
    wide = max(np.linalg.norm(x[i] - x[j]) for i, j in pairs if labels[i] == labels[j])
    return float(apart / wide)


def slow_xie_beni(x: np.ndarray, labels: np.ndarray) -> float:
    means = {c: x[labels == c].mean(0) for c in set(labels.tolist())}
    within = sum(np.sum((row - means[c]) ** 2) for row, c in zip(x, labels.tolist(), strict=True))
    return float(within / (len(x) * min(np.sum((means[a] - means[b]) ** 2) for a, b in combinations(means, 2))))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_indices_are_those_of_scikit_learn_and_of_the_definitions(k: int) -> None:
    x, labels = clusters(k)
    found = cluster_indices(x, labels)
    assert found.chi == pytest.approx(calinski_harabasz_score(x, labels), rel=1e-10)
    assert found.dbs == pytest.approx(davies_bouldin_score(x, labels), rel=1e-10)
    assert found.di == pytest.approx(slow_dunn(x, labels), rel=1e-10)
    assert found.xbi == pytest.approx(slow_xie_beni(x, labels), rel=1e-10)
    n = len(x)
    assert found.aqi == pytest.approx(0.5 * found.chi / (found.chi + n - k) + 0.5 / (1 + found.xbi), rel=1e-12)


def test_two_clusters_by_hand() -> None:
    found = cluster_indices([[0.0, 0.0], [2.0, 0.0], [10.0, 0.0], [12.0, 0.0]], [0, 0, 1, 1])
    # Centroids 1 and 11, each row 1 from its own: within 4, between 2 * 25 * 2 = 100.
    assert found.xbi == pytest.approx(4 / (4 * 100))
    assert found.chi == pytest.approx((100 / 1) / (4 / 2))
    assert found.dbs == pytest.approx((1 + 1) / 10)
    assert found.di == pytest.approx(8 / 2)
    assert found.aqi == pytest.approx(0.5 * 50 / 52 + 0.5 / 1.01)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(5, 50))
def test_of_two_clusters_chi_and_xbi_are_one_number(seed: int, n: int) -> None:
    x, labels = clusters(2, n, seed=seed)
    found, (n1, n2) = cluster_indices(x, labels, dunn=False), np.bincount(labels)
    assert found.chi == pytest.approx((n - 2) * n1 * n2 / (n**2 * found.xbi), rel=1e-9)
    assert np.isnan(found.di)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1e-3, 0.5, 7.0, 1e4]), st.floats(-100, 100))
def test_moving_turning_and_scaling_rows_change_nothing(seed: int, factor: float, step: float) -> None:
    x, labels = clusters(3, 30, seed=seed)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]
    before, after = cluster_indices(x, labels), cluster_indices(factor * (x + step) @ turn, labels)
    for name in NAMES:
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-6), name


def test_scaling_one_column_changes_them() -> None:
    x, labels = clusters()
    before, after = cluster_indices(x, labels), cluster_indices(x * [50, 1, 1, 1, 1], labels)
    assert all(getattr(before, name) != pytest.approx(getattr(after, name), rel=0.01) for name in NAMES)


def test_more_rows_raise_chi_and_not_aqi() -> None:
    x, labels = clusters()
    once, twice = cluster_indices(x, labels), cluster_indices(np.tile(x, (2, 1)), np.tile(labels, 2))
    assert twice.chi > 2 * once.chi
    assert twice.aqi == pytest.approx(once.aqi)


def test_points_and_equal_centroids_are_the_ends_of_the_scale() -> None:
    point = cluster_indices([[0.0], [0.0], [3.0], [3.0]], [0, 0, 1, 1])
    assert point == ClusterIndices(0.0, float("inf"), 0.0, float("inf"), 1.0)
    same = cluster_indices([[-1.0], [1.0], [-2.0], [2.0]], [0, 0, 1, 1])
    assert (same.xbi, same.chi, same.dbs, same.aqi) == (float("inf"), 0.0, float("inf"), 0.0)
    nowhere = cluster_indices(np.zeros((6, 2)), [0, 1, 0, 1, 0, 1])
    assert nowhere.aqi == 0.0
    assert np.isnan(nowhere.di)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="3 clusters need more than 3 rows, got 3"):
        cluster_indices(np.eye(3), [0, 1, 2])
    with pytest.raises(ValueError, match="got only 0 in 3 rows"):
        cluster_indices(np.eye(3), [0, 0, 0])
    with pytest.raises(ValueError, match=r"weight is the share of CHI and must lie in 0..1, got 2"):
        cluster_indices(*clusters(), weight=2)
    with pytest.raises(ValueError, match="Row 1 of X holds NaN"):
        cluster_indices([[0.0], [np.nan], [1.0]], [0, 1, 1])
