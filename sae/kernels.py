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

import math
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


def largest(pre: Float[Tensor, "batch n"], k: int) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """Return (values, indices) of the k largest entries of each row, in no order: exactly `topk`, in half the time.

    Each row is folded into strips, and those into fewer and larger ones, at least k. The k-th largest of the large
    strips' maxima is a floor that at least k entries reach and, on the whole, few more: only strips whose maximum
    reaches it are opened, and only what reaches it there is sorted. (What is NaN reaches everything, as in `topk`.)
    """
    batch, n = pre.shape
    folds = _folds(n, k)
    if pre.device.type != "cpu" or batch == 0 or folds is None:
        return pre.topk(k, dim=-1, sorted=False)
    height, fold = folds
    width = n // height
    # Strided strips, entries i, i + width, ...: their maxima are elementwise, which vectorises.
    fine = pre.reshape(batch, height, width).amax(1)
    coarse = fine.view(batch, fold, width // fold).amax(1)
    floor = coarse.topk(k, dim=-1, sorted=False).values.amin(1, keepdim=True)
    strips = fine.lt(floor).logical_not_().flatten().nonzero().squeeze(1)
    if strips.numel() * height > pre.numel() // 4:  # many equal entries
        return pre.topk(k, dim=-1, sorted=False)
    rows = strips // width
    places = ((strips + rows * (n - width)).unsqueeze(1) + torch.arange(0, n, width)).flatten()
    values = pre.reshape(-1).index_select(0, places)
    reach = (
        values.view(-1, height)
        .lt(floor.view(-1).index_select(0, rows).unsqueeze(1))
        .logical_not_()
        .flatten()
        .nonzero()
        .squeeze(1)
    )
    places, values = places.index_select(0, reach), values.index_select(0, reach)
    rows = places // n
    counts = torch.bincount(rows, minlength=batch)
    most = int(counts.max())
    # Row r's entries go to the start of row r of a narrow matrix, whose other places are empty.
    shift = torch.arange(0, batch * most, most) - (counts.cumsum(0) - counts)
    slots = shift.index_select(0, rows) + torch.arange(len(rows))
    narrow = values.new_full((batch * most,), -torch.inf).scatter_(0, slots, values).view(batch, most)
    columns = places.new_zeros(batch * most).scatter_(0, slots, places - rows * n).view(batch, most)
    best = narrow.topk(k, dim=-1, sorted=False)
    return best.values, columns.gather(1, best.indices)


def _folds(n: int, k: int) -> tuple[int, int] | None:
    """Return (entries of a small strip, small strips in a large one), or None where folding does not pay."""
    height = 1 << max(0, int(math.log2(n / k) / 2))
    if height < 4 or n % height:
        return None
    small = n // height
    fold = next((f for f in range(small // (2 * k), 1, -1) if small % f == 0), None)
    return None if fold is None else (height, fold)


def bag(
    weight: Float[Tensor, "n d"],
    slots: Int[Tensor, " nnz"],
    offsets: Int[Tensor, " bags"],
    values: Float[Tensor, " nnz"],
) -> Float[Tensor, "bags d"]:
    """Return for each bag of slots the sum of `values` times the rows `weight[slots]`."""
    # Detached: the kernel that prepares for a backward of its own takes up to four times as long.
    return embedding_bag(slots, weight.detach(), offsets, mode="sum", per_sample_weights=values.detach())


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
    """sum_j v_bj W_dec[i_bj] + b_dec, with gradients from the slots alone."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, code: Code) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.code = code
        out = bag(weight, code.indices.flatten(), code.offsets, values.flatten())
        return out if bias is None else out.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        values, weight = ctx.saved_tensors
        code, grad = ctx.code, grad.contiguous()
        grad_values = sampled_product(grad, weight, code).view_as(values) if ctx.needs_input_grad[0] else None
        grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            order, rows, offsets = code.by_latent
            grad_weight = bag(grad, rows, offsets, values.flatten()[order])
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_values, grad_weight, grad_bias, None


class _Preactivation(torch.autograd.Function):
    """The already known values of (x - centre) W_enc^T + b_enc at a code's slots, with gradients from them alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, centre: Tensor | None, code: Code) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(x if centre is None else x - centre, weight)
        ctx.code = code
        return code.values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight = ctx.saved_tensors
        code, flat = ctx.code, grad.flatten()
        grad_x = grad_weight = grad_bias = grad_centre = None
        if ctx.needs_input_grad[0]:
            grad_x = bag(weight, code.indices.flatten(), code.offsets, flat)
        if ctx.needs_input_grad[1]:
            order, rows, offsets = code.by_latent
            grad_weight = bag(centred, rows, offsets, flat[order])
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            grad_bias = flat.new_zeros(weight.shape[0]).index_add(0, code.indices.flatten(), flat)
        if ctx.needs_input_grad[3]:
            # The sum of -grad_x over the rows, from sums over latents: a product with a vector, not a bag of rows.
            grad_centre = -(grad_bias @ weight)
        return grad_x, grad_weight, grad_bias, grad_centre, None


def decode(
    code: Code, weight: Float[Tensor, "d_sae d_out"], bias: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "batch d_out"]:
    """Return code @ weight + bias, differentiable in the code's values, in `weight` and in `bias`."""
    return _Decode.apply(code.values, weight, bias, code)  # type: ignore[return-value]


def preactivation(
    x: Float[Tensor, "batch d_in"],
    weight: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    code: Code,
    centre: Float[Tensor, " d_in"] | None = None,
) -> Code:
    """Return `code`, whose values were read off (x - centre) weight^T + bias, attached to the graph at its slots."""
    return code.with_values(_Preactivation.apply(x, weight, bias, centre, code))  # type: ignore[arg-type]
