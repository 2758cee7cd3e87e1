"""Correlations between methods: over shared cells only, finer cells added up to coarser ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from interp.attribution import Attribution
from interp.attribution.agreement import correlation_table, correlations, paired, pearson

INT = pa.int32()


def scores(values: np.ndarray, *parts: str, kind: str = "head_out") -> Attribution:
    at = np.indices(values.shape).reshape(values.ndim, -1)
    columns: dict[str, Any] = {"kind": [kind] * values.size, "layer": pa.array(at[0], INT)}
    for part in ("pos", "head", "neuron", "latent"):
        axis = at[1 + parts.index(part)] if part in parts else None
        columns[part] = pa.nulls(values.size, INT) if axis is None else pa.array(axis, INT)
    sums = {"kind": [kind], "layer": [0], "part": [""], "explained": [1.0], "total": [1.0], "gap": [0.0]}
    table = pa.table(columns | {"score": values.ravel()})
    return Attribution("m", "t", "corrupt", "denoising", table, pa.table(sums))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_correlation_is_numpys(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 3, 4))
    found, cells = pearson(scores(a, "head"), scores(b, "head"), "head_out")
    assert cells == 12
    assert found == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_finer_cells_are_added_up(rng: np.random.Generator) -> None:
    fine, coarse = rng.normal(size=(3, 5, 4)), rng.normal(size=(3, 4))
    x, y, cells = paired(scores(fine, "pos", "head"), scores(coarse, "head"), "head_out")
    np.testing.assert_allclose(x, fine.sum(1).ravel())
    np.testing.assert_allclose(y, coarse.ravel())
    assert cells[1] == (0, 1)


def test_what_cannot_be_compared_is_not(rng: np.random.Generator) -> None:
    by_pos, by_head = scores(rng.normal(size=(3, 4)), "pos"), scores(rng.normal(size=(3, 4)), "head")
    found, cells = pearson(by_pos, by_head, "head_out")
    assert np.isnan(found)
    assert cells == 0
    assert np.isnan(pearson(by_head, scores(np.ones((3, 4)), "head"), "head_out")[0])


def test_cells_without_a_score_do_not_count(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 3, 4))
    a[0, 0] = np.nan
    found, cells = pearson(scores(a, "head"), scores(b, "head"), "head_out")
    assert cells == 11
    assert found == pytest.approx(np.corrcoef(a.ravel()[1:], b.ravel()[1:])[0, 1])


def test_every_pair_of_methods_has_a_row(rng: np.random.Generator) -> None:
    found = {name: scores(rng.normal(size=(3, 4)), "head") for name in "abc"}
    found["d"] = scores(rng.normal(size=(3, 4)), "pos", kind="mlp_out")
    assert [row[1:3] for row in correlations(found)] == [("a", "b"), ("a", "c"), ("b", "c")]
    table = correlation_table(found, "head_out")
    np.testing.assert_allclose(np.diag(table)[:3], 1.0)
    assert np.isnan(table[3]).all()
    assert table[0, 1] == table[1, 0] == correlations(found)[0][3]
