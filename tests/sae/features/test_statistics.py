from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sae.features.statistics import Moments, entropy, histogram, histogram_edges

CODES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.just(3)),
    elements=st.floats(-100, 100, width=32).map(lambda v: 0.0 if abs(v) < 1e-3 else v),
)


def moments_of(code: np.ndarray) -> Moments:
    found = Moments.empty(code.shape[1])
    rows, latents = np.nonzero(code)
    found.add(latents, code[rows, latents], len(code))
    return found


def slow(values: list[float], tokens: int) -> dict[str, float]:
    n = len(values)
    m2, m3, m4 = (sum(v**p for v in values) / n for p in (2, 3, 4))
    return {
        "count": n,
        "density": n / tokens,
        "mean": sum(values) / n,
        "second_moment": m2 * n / tokens,
        "skew": m3 / m2**1.5,
        "kurtosis": m4 / m2**2,
        "max": max(values),
        "min": min(values),
    }


@given(CODES)
def test_columns_follow_the_definitions(code: np.ndarray) -> None:
    columns = moments_of(code).columns()
    for latent in range(3):
        values = [float(v) for v in code[:, latent] if v != 0]
        if not values:
            assert columns["count"][latent] == 0
            assert columns["density"][latent] == 0
            assert all(np.isnan(columns[name][latent]) for name in ("mean", "skew", "kurtosis", "max", "min"))
            continue
        for name, expected in slow(values, len(code)).items():
            assert columns[name][latent] == pytest.approx(expected, rel=1e-9, abs=1e-9), name
    assert ("count_negative" in columns) == bool((code < 0).any())
    if "count_negative" in columns:
        assert columns["count_negative"].tolist() == (code < 0).sum(0).tolist()
        expected = [code[code[:, i] < 0, i].astype(np.float64) for i in range(3)]
        means = [part.mean() if len(part) else np.nan for part in expected]
        assert columns["mean_negative"] == pytest.approx(means, nan_ok=True)


@given(CODES, CODES, CODES)
def test_merging_is_seeing_all_tokens_in_any_grouping(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    whole = moments_of(np.concatenate([a, b, c]))
    left = moments_of(a).merge(moments_of(b)).merge(moments_of(c))
    right = moments_of(a).merge(moments_of(c).merge(moments_of(b)))
    for merged in (left, right):
        assert merged.tokens == whole.tokens
        for name, expected in whole.columns().items():
            np.testing.assert_allclose(merged.columns()[name], expected, rtol=1e-9, atol=1e-9, err_msg=name)
    assert moments_of(a).merge(Moments.empty(3)).columns()["mean"] == pytest.approx(
        moments_of(a).columns()["mean"], nan_ok=True
    )


def test_a_constant_activation_has_skew_and_kurtosis_one_about_zero() -> None:
    columns = moments_of(np.array([[3.0], [0.0], [3.0]], np.float32)).columns()
    assert columns["skew"][0] == pytest.approx(1)
    assert columns["kurtosis"][0] == pytest.approx(1)
    assert columns["mean"][0] == 3
    assert columns["second_moment"][0] == pytest.approx(6)


def test_large_counts_do_not_lose_small_values() -> None:
    found = Moments.empty(1)
    found.add(np.zeros(1, np.int64), np.array([4096.0], np.float32), 1)
    for _ in range(50):
        found.add(np.zeros(2000, np.int64), np.full(2000, 0.1, np.float32), 2000)
    assert found.sums[0, 0] == pytest.approx(4096 + 100_000 * float(np.float32(0.1)), rel=1e-12)
    assert found.sums[3, 0] == pytest.approx(4096.0**4 + 100_000 * float(np.float32(0.1)) ** 4, rel=1e-14)


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(2**-10, 2**10, width=32)))
def test_histogram_counts_every_active_token_once_in_its_bin(values: np.ndarray) -> None:
    signs = np.where(np.arange(len(values)) % 2, 1, -1).astype(np.float32)
    edges = histogram_edges(float(values.min()), float(values.max()))
    counts = histogram(np.zeros(len(values), np.int64), values * signs, edges, 2)
    assert counts.shape == (2, len(edges) - 1)
    assert counts[1].sum() == 0
    for low, high, count in zip(edges[:-1], edges[1:], counts[0], strict=True):
        assert count == sum(low <= v < high for v in values)
    assert edges[0] <= values.min()
    assert values.max() < edges[-1]


def test_histogram_edges_are_a_shared_bounded_geometric_grid() -> None:
    wide, narrow = histogram_edges(1e-30, 8.0), histogram_edges(1.0, 8.0)
    assert set(narrow) <= set(wide)
    assert len(wide) <= 24 * 4 + 1
    np.testing.assert_allclose(wide[1:] / wide[:-1], 2**0.25, rtol=1e-6)
    assert histogram(np.zeros(1, np.int64), np.array([1e-30], np.float32), wide, 1)[0, 0] == 1
    assert len(histogram_edges(0.0, 0.0)) == 2


def test_entropy_is_zero_for_one_token_and_log_n_for_n() -> None:
    latents = np.array([0, 0, 0, 1, 1, 1, 1])
    tokens = np.array([5, 5, 5, 1, 2, 3, 4])
    found = entropy(latents, tokens, 3, 10)
    assert found[0] == 0
    assert found[1] == pytest.approx(math.log(4))
    assert np.isnan(found[2])
