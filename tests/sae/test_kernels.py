"""The sparse kernels against dense autograd on the same support, and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae import kernels
from sae.code import Code


def problem(
    dtype: torch.dtype, batch: int = 7, d_in: int = 5, d_sae: int = 11, k: int = 3
) -> tuple[Code, Tensor, Tensor, Tensor, Tensor]:
    """Return (code, x, W_enc, b_enc, W_dec); the code's values are the pre-activations at random slots."""
    g = torch.Generator().manual_seed(0)
    x, w_enc = (torch.randn(n, d_in, generator=g, dtype=dtype) for n in (batch, d_sae))
    w_dec, b_enc = torch.randn(d_sae, d_in, generator=g, dtype=dtype), torch.randn(d_sae, generator=g, dtype=dtype)
    indices = torch.stack([torch.randperm(d_sae, generator=g)[:k] for _ in range(batch)])
    values = (x @ w_enc.t() + b_enc).gather(1, indices)
    return Code(indices, values, d_sae), x, w_enc, b_enc, w_dec


def sparse_loss(code: Code, x: Tensor, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor) -> Tensor:
    on = kernels.preactivation(x, w_enc, b_enc, code)
    on = on.with_values(on.values.relu())
    return (kernels.decode(on, w_dec) - x.detach()).square().sum()


def dense_loss(code: Code, x: Tensor, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor) -> Tensor:
    support = torch.zeros(len(code), code.d_sae, dtype=x.dtype).scatter(1, code.indices, 1.0)
    return (((x @ w_enc.t() + b_enc) * support).relu() @ w_dec - x.detach()).square().sum()


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
    def selected(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        values = (x @ w.t() + b).gather(1, code.indices).detach()
        return kernels.preactivation(x, w, b, code.with_values(values)).values

    assert torch.autograd.gradcheck(selected, (x, w_enc, b_enc))


@pytest.mark.parametrize("floats", [1, 17, 1 << 22])
def test_sampled_product_equals_its_definition_in_both_forms(floats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "GATHER_FLOATS", floats)
    code, x, _, _, w_dec = problem(torch.float64)
    expected = torch.stack([x[row] @ w_dec[latent] for row in range(len(code)) for latent in code.indices[row]])
    assert torch.allclose(kernels.sampled_product(x, w_dec, code), expected)
    assert torch.allclose(kernels.gathered_product(x, w_dec, code), expected)


def test_gradients_that_nobody_asked_for_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, _, _, w_dec = problem(torch.float32)
    monkeypatch.setattr(kernels, "sampled_product", lambda *_: pytest.fail("the values need no gradient"))
    w_dec.requires_grad_()
    kernels.decode(code.detach(), w_dec).sum().backward()
    assert w_dec.grad is not None
    assert torch.isfinite(w_dec.grad).all()
