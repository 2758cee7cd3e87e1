"""The sparse arithmetic of a dictionary: one dense product, everything else on the slots that are on.

Training a TopK dictionary densely takes five products of 2·batch·d_in·d_sae operations: the encoder, the decoder
and three gradients. Only the encoder's forward one is unavoidable. The others touch k of d_sae latents per row:

    decode             x_hat_b  = sum_j v_bj W_dec[i_bj]              a bag of decoder rows
    gradient of v      dv_bj    = <g_b, W_dec[i_bj]>                  a sampled product
    gradient of W_dec  dW_dec_i = sum_{b: i on} v_b g_b               a bag of rows of g, slots sorted by latent
    gradient of W_enc  dW_enc_i = sum_{b: i on} dv_b x_b              the same bag over rows of x

The encoder's gradient is exact because a rule passes gradient only through the pre-activations that it kept.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from sae.code import Code

GATHER_FLOATS = 1 << 22
"""Largest temporary, in floats, of the gathered form of `sampled_product` (16 MiB in float32)."""


def bag(
    weight: Float[Tensor, "n d"],
    slots: Int[Tensor, " nnz"],
    offsets: Int[Tensor, " bags"],
    values: Float[Tensor, " nnz"],
) -> Float[Tensor, "bags d"]:
    """Return for each bag of slots the sum of `values` times the rows `weight[slots]`."""
    return embedding_bag(slots, weight, offsets, mode="sum", per_sample_weights=values)


def sampled_product(
    left: Float[Tensor, "batch d"], right: Float[Tensor, "d_sae d"], code: Code
) -> Float[Tensor, " nnz"]:
    """Return <left[row], right[latent]> at each slot of `code`, flattened."""
    flat = code.indices.flatten()
    if left.is_cuda or torch.backends.mkl.is_available():
        pointers = torch.cat([code.offsets, code.offsets.new_tensor([flat.numel()])])
        with warnings.catch_warnings():
            # Said once per process by torch for every CSR tensor; the values are checked against the gathered form.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(
                pointers, flat, left.new_zeros(flat.numel()), (left.shape[0], right.shape[0]), check_invariants=False
            )
            return torch.sparse.sampled_addmm(pattern, left, right.t(), beta=0.0).values()
    return gathered_product(left, right, code)


def gathered_product(
    left: Float[Tensor, "batch d"], right: Float[Tensor, "d_sae d"], code: Code
) -> Float[Tensor, " nnz"]:
    """Return what `sampled_product` does, by gathering rows in pieces: slower, and runs everywhere."""
    flat, rows = code.indices.flatten(), code.rows
    out = left.new_empty(flat.numel())
    step = max(1, GATHER_FLOATS // left.shape[1])
    for start in range(0, flat.numel(), step):
        piece = slice(start, start + step)
        out[piece] = (left[rows[piece]] * right[flat[piece]]).sum(-1)
    return out


class _Decode(torch.autograd.Function):
    """sum_j v_bj W_dec[i_bj], with gradients from the slots alone."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, code: Code) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.code = code
        return bag(weight, code.indices.flatten(), code.offsets, values.flatten())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, weight = ctx.saved_tensors
        code, grad = ctx.code, grad.contiguous()
        grad_values = sampled_product(grad, weight, code).view_as(values) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            order, rows, offsets = code.by_latent
            grad_weight = bag(grad, rows, offsets, values.flatten()[order])
        return grad_values, grad_weight, None


class _Preactivation(torch.autograd.Function):
    """The already known values of x W_enc^T + b_enc at the slots of a code, with gradients from the slots alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, code: Code) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(x, weight)
        ctx.code = code
        return code.values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        code, flat = ctx.code, grad.flatten()
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = bag(weight, code.indices.flatten(), code.offsets, flat)
        if ctx.needs_input_grad[1]:
            order, rows, offsets = code.by_latent
            grad_weight = bag(x, rows, offsets, flat[order])
        if ctx.needs_input_grad[2]:
            grad_bias = flat.new_zeros(weight.shape[0]).index_add(0, code.indices.flatten(), flat)
        return grad_x, grad_weight, grad_bias, None


def decode(code: Code, weight: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, "batch d_out"]:
    """Return code @ weight, differentiable in the code's values and in `weight`."""
    return _Decode.apply(code.values, weight, code)  # type: ignore[return-value]


def preactivation(
    x: Float[Tensor, "batch d_in"], weight: Float[Tensor, "d_sae d_in"], bias: Float[Tensor, " d_sae"], code: Code
) -> Code:
    """Return `code`, whose values were read off x weight^T + bias, attached to the graph at its slots."""
    return code.with_values(_Preactivation.apply(x, weight, bias, code))  # type: ignore[arg-type]
