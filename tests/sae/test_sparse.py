"""Bags and sampled products against their definitions, slot by slot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae import sparse
from sae.code import Code


def problem(batch: int = 7, d: int = 5, d_sae: int = 11, k: int = 3) -> tuple[Code, Tensor, Tensor]:
    """Return (code, rows [batch d], weight [d_sae d]), all random."""
    g = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, d, generator=g, dtype=torch.float64) for n in (batch, d_sae))
    indices = torch.stack([torch.randperm(d_sae, generator=g)[:k] for _ in range(batch)])
    return Code(indices, torch.randn(batch, k, generator=g, dtype=torch.float64), d_sae), rows, weight


def csr(code: Code) -> Code:
    """Return the same slots with row pointers."""
    k = code.indices.shape[1]
    pointers = torch.arange(0, k * len(code) + 1, k)
    return Code(code.indices.flatten(), code.values.flatten(), code.d_sae, pointers)


@pytest.mark.parametrize("floats", [1, 17, 1 << 22])
def test_sampled_product_equals_its_definition_in_both_forms(floats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "GATHER_FLOATS", floats)
    code, x, weight = problem()
    expected = torch.stack([x[row] @ weight[latent] for row in range(len(code)) for latent in code.indices[row]])
    assert torch.allclose(sparse.sampled_product(x, weight, code), expected)
    assert torch.allclose(sparse.gathered_product(x, weight, code), expected)


@pytest.mark.parametrize("form", [lambda code: code, csr], ids=["fixed", "csr"])
def test_sums_over_rows_and_latents_equal_their_definitions(form: object) -> None:
    fixed, rows, weight = problem()
    code = form(fixed)  # type: ignore[operator]
    values = code.values.flatten()
    by_row, by_latent, total = torch.zeros_like(rows), torch.zeros_like(weight), torch.zeros(len(weight)).double()
    for row in range(len(fixed)):
        for latent, value in zip(fixed.indices[row], fixed.values[row], strict=True):
            by_row[row] += value * weight[latent]
            by_latent[latent] += value * rows[row]
            total[latent] += value
    assert torch.allclose(sparse.to_rows(code, values, weight), by_row)
    assert torch.allclose(sparse.to_latents(code, values, rows), by_latent)
    assert torch.allclose(sparse.totals(code, values), total)
