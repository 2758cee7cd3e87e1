"""The sparse kernels against dense autograd on the same support, and against finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae import kernels
from sae.backends import SPARSE
from sae.code import Code


def problem(
    dtype: torch.dtype, batch: int = 7, d_in: int = 5, d_sae: int = 11, k: int = 3
) -> tuple[Code, Tensor, Tensor, Tensor, Tensor]:
    """Return (code, x, W_enc, b_enc, W_dec); the code's values are the pre-activations at random slots."""
    g = torch.Generator().manual_seed(0)
    x, w_enc = (torch.randn(n, d_in, generator=g, dtype=dtype) for n in (batch, d_sae))
    w_dec, b_enc = torch.randn(d_sae, d_in, generator=g, dtype=dtype), torch.randn(d_sae, generator=g, dtype=dtype)
    indices = torch.stack([torch.randperm(d_sae, generator=g)[:k] for _ in range(batch)])
    values = ((x - w_dec.mean(0)) @ w_enc.t() + b_enc).gather(1, indices)
    return Code(indices, values, d_sae), x, w_enc, b_enc, w_dec


def sparse_loss(code: Code, x: Tensor, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor) -> Tensor:
    centre = w_dec.mean(0)
    on = kernels.preactivation(x, w_enc, b_enc, code, centre)
    on = on.with_values(on.values.relu())
    return (kernels.decode(on, w_dec, centre) - x.detach()).square().sum()


def dense_loss(code: Code, x: Tensor, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor) -> Tensor:
    centre = w_dec.mean(0)
    support = torch.zeros(len(code), code.d_sae, dtype=x.dtype).scatter(1, code.indices, 1.0)
    return ((((x - centre) @ w_enc.t() + b_enc) * support).relu() @ w_dec + centre - x.detach()).square().sum()


@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_gradients_equal_dense_autograd_on_the_same_support(dtype: torch.dtype, tolerance: float, csr: bool) -> None:
    code, *tensors = problem(dtype, batch=64, d_in=16, d_sae=48, k=6)
    form = (
        Code(code.indices.flatten(), code.values.flatten(), code.d_sae, torch.arange(0, 64 * 6 + 1, 6)) if csr else code
    )
    grads = []
    for loss, c in ((sparse_loss, form), (dense_loss, code)):
        leaves = [t.clone().requires_grad_() for t in tensors]
        value = loss(c, *leaves)
        grads.append((value, torch.autograd.grad(value, leaves)))
    (sparse_value, sparse), (dense_value, dense) = grads
    assert torch.allclose(sparse_value, dense_value, rtol=tolerance)
    for ours, theirs in zip(sparse, dense, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_gradcheck() -> None:
    code, x, w_enc, b_enc, w_dec = (t.requires_grad_() if isinstance(t, Tensor) else t for t in problem(torch.float64))
    assert torch.autograd.gradcheck(
        lambda v, w: kernels.decode(code.with_values(v), w), (code.values.requires_grad_(), w_dec)
    )

    # The values are an input that the caller has computed; recompute them so that finite differences see them move.
    def selected(x: Tensor, w: Tensor, b: Tensor, c: Tensor) -> Tensor:
        values = ((x - c) @ w.t() + b).gather(1, code.indices).detach()
        return kernels.preactivation(x, w, b, code.with_values(values), c).values

    centre, bias = (w_dec.detach()[row].clone().requires_grad_() for row in (0, 1))
    assert torch.autograd.gradcheck(selected, (x, w_enc, b_enc, centre))
    assert torch.autograd.gradcheck(
        lambda v, b: kernels.decode(code.with_values(v), w_dec.detach(), b), (code.values, bias)
    )


@st.composite
def rows_to_select_from(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Draw a matrix and k; few distinct values make ties, and some entries are infinite."""
    batch, n = draw(st.integers(0, 9)), draw(st.sampled_from([1, 7, 64, 96, 256, 1000, 1024]))
    k = draw(st.integers(1, max(1, min(n, 40))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(batch, n, generator=generator)
    if draw(st.booleans()):
        x = x.mul_(draw(st.sampled_from([0.0, 1.0, 3.0]))).round_()
    if draw(st.booleans()):
        x[torch.rand(batch, n, generator=generator) < draw(st.sampled_from([0.01, 0.5, 0.999]))] = -torch.inf
    return x, k


@given(rows_to_select_from())
def test_selection_is_topk(case: tuple[Tensor, int]) -> None:
    x, k = case
    values, indices = kernels.largest(x, k)
    assert torch.equal(values.sort(1).values, x.topk(k).values.sort(1).values)
    assert torch.equal(x.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_selection_folds_where_it_should_and_lets_nan_through() -> None:
    assert kernels._folds(4096, 32) == (8, 8)
    assert kernels._folds(4095, 32) is None
    assert kernels._folds(64, 32) is None
    x = torch.randn(5, 4096, generator=torch.Generator().manual_seed(1))
    x[2, 77] = torch.nan
    values, indices = kernels.largest(x, 32)
    assert int(values.isnan().sum()) == 1
    assert 77 in indices[2].tolist()


def test_an_empty_code_decodes_to_the_bias() -> None:
    _, x, w_enc, b_enc, w_dec = problem(torch.float64)
    code = Code(torch.zeros(0, dtype=torch.long), x.new_zeros(0), len(w_dec), torch.zeros(8, dtype=torch.long))
    leaves = [t.requires_grad_() for t in (x, w_enc, b_enc, w_dec)]
    on = kernels.preactivation(x, w_enc, b_enc, code, w_dec[0])
    out = kernels.decode(on, w_dec, w_dec[1])
    assert torch.equal(out, w_dec[1].expand(7, -1))
    for gradient in torch.autograd.grad(out.sum(), leaves[:3]):
        assert torch.count_nonzero(gradient) == 0


def test_gradients_that_nobody_asked_for_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, _, _, w_dec = problem(torch.float32)
    unwanted = replace(SPARSE, sampled=lambda *_: pytest.fail("the values need no gradient"))
    monkeypatch.setattr(kernels, "SPARSE", unwanted)
    w_dec.requires_grad_()
    kernels.decode(code.detach(), w_dec).sum().backward()
    assert w_dec.grad is not None
    assert torch.isfinite(w_dec.grad).all()
