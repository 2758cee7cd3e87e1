"""Thin products: singular values, vectors and inner products are those of the matrix itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.layers.factored import Factored


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows", [3, 11, 40])
def test_values_vectors_and_norms_are_those_of_the_matrix(rows: int) -> None:
    one = Factored(noise(rows, 12, seed=0), noise(rows, 20, seed=1))
    dense = one.left.T @ one.right
    values = torch.linalg.svdvals(dense)
    kept = min(rows, 12)
    assert torch.allclose(one.values[:kept], values[:kept], atol=1e-11, rtol=1e-12)
    assert one.values[kept:].sum() == 0
    u, s, vh = one.svd()
    assert torch.allclose(u * s @ vh, dense, atol=1e-11)
    assert one.nuclear == pytest.approx(float(values.sum()))
    assert one.frobenius == pytest.approx(float(dense.norm()))
    assert one.spectral == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)))
    p = values[:kept] / values[:kept].sum()
    assert one.effective_rank == pytest.approx(float((-(p * p.log()).sum()).exp()))


@pytest.mark.parametrize("rows", [(3, 4), (3, 40), (30, 40)])
def test_inner_products_are_those_of_the_matrices(rows: tuple[int, int]) -> None:
    one = Factored(noise(rows[0], 12, seed=0), noise(rows[0], 20, seed=1))
    other = Factored(noise(rows[1], 12, seed=2), noise(rows[1], 20, seed=3))
    dense = (one.dense * other.dense).sum()
    assert one.inner(other) == pytest.approx(float(dense))
    assert one.cosine(other) == pytest.approx(float(dense / one.dense.norm() / other.dense.norm()))
    assert one.cosine(one) == pytest.approx(1)


def test_rank_is_at_most_the_number_of_rows_and_zero_has_none() -> None:
    assert Factored(noise(1, 12, seed=0), noise(1, 20, seed=1)).effective_rank == pytest.approx(1)
    nothing = Factored(torch.zeros(2, 12), noise(2, 20, seed=1))
    assert nothing.nuclear == 0
    assert nothing.effective_rank != nothing.effective_rank
    assert nothing.cosine(nothing) != nothing.cosine(nothing)


def test_factors_must_fit() -> None:
    with pytest.raises(ValueError, match="same number of rows"):
        Factored(noise(2, 3, seed=0), noise(3, 3, seed=0))
    with pytest.raises(ValueError, match="one shape"):
        Factored(noise(2, 3, seed=0), noise(2, 3, seed=0)).inner(Factored(noise(2, 4, seed=0), noise(2, 3, seed=0)))
