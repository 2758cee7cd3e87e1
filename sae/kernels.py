"""The sparse arithmetic of a dictionary: one dense product, everything else on the slots that are on.

Training a TopK dictionary densely takes five products of 2·batch·d_in·d_sae operations: the encoder, the decoder
and three gradients. Only the encoder's forward one is unavoidable. The others touch k of d_sae latents per row:

    decode             x_hat_b  = sum_j v_bj W_dec[i_bj]              a bag of decoder rows
    gradient of v      dv_bj    = <g_b, W_dec[i_bj]>                  a sampled product
    gradient of W_dec  dW_dec_i = sum_{b: i on} v_b g_b               a bag of rows of g, slots sorted by latent
    gradient of W_enc  dW_enc_i = sum_{b: i on} dv_b x_b              the same bag over rows of x

The encoder's gradient is exact because a rule passes gradient only through the pre-activations that it kept. How the
four are computed is the business of `sae.backends`: on a GPU a training takes what is fastest on its shapes there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae.backends import SPARSE, Backend, current
from sae.code import Code
from sae.sparse import bag, sampled_product

__all__ = ["bag", "decode", "largest", "preactivation", "sampled_product"]


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


class _Decode(torch.autograd.Function):
    """sum_j v_bj W_dec[i_bj] + b_dec, with gradients from the slots alone."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, code: Code, backend: Backend) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.code, ctx.backend = code, backend
        out = backend.to_rows(code, values.flatten(), weight)
        return out if bias is None else out.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        code, backend, grad = ctx.code, ctx.backend, grad.contiguous()
        grad_values = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_values = backend.sampled(grad, weight, code).view_as(values)
        if ctx.needs_input_grad[1]:
            grad_weight = backend.to_latents(code, values.flatten(), grad)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_values, grad_weight, grad_bias, None, None


class _Preactivation(torch.autograd.Function):
    """The already known values of (x - centre) W_enc^T + b_enc at a code's slots, with gradients from them alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,  # noqa: ARG004
        centre: Tensor | None,
        code: Code,
        backend: Backend,
    ) -> Tensor:
        ctx.save_for_backward(x if centre is None else x - centre, weight)
        ctx.code, ctx.backend = code, backend
        return code.values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centred, weight = ctx.saved_tensors
        code, backend, flat = ctx.code, ctx.backend, grad.flatten()
        grad_x = grad_weight = grad_bias = grad_centre = None
        if ctx.needs_input_grad[0]:
            grad_x = backend.to_rows(code, flat, weight)
        if ctx.needs_input_grad[1]:
            grad_weight = backend.to_latents(code, flat, centred)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            grad_bias = backend.totals(code, flat)
        if ctx.needs_input_grad[3]:
            # The sum of -grad_x over the rows, from sums over latents: a product with a vector, not a bag of rows.
            grad_centre = -(grad_bias @ weight)
        return grad_x, grad_weight, grad_bias, grad_centre, None, None


def _backend(code: Code, weight: Tensor) -> Backend:
    """Return the kernels of the training that is under way; whatever takes no gradient takes the sparse ones."""
    choices = current()
    return SPARSE if choices is None or not torch.is_grad_enabled() else choices.backend(code, weight)


def decode(
    code: Code, weight: Float[Tensor, "d_sae d_out"], bias: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "batch d_out"]:
    """Return code @ weight + bias, differentiable in the code's values, in `weight` and in `bias`."""
    return _Decode.apply(code.values, weight, bias, code, _backend(code, weight))  # type: ignore[return-value]


def preactivation(
    x: Float[Tensor, "batch d_in"],
    weight: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    code: Code,
    centre: Float[Tensor, " d_in"] | None = None,
) -> Code:
    """Return `code`, whose values were read off (x - centre) weight^T + bias, attached to the graph at its slots."""
    values = _Preactivation.apply(x, weight, bias, centre, code, _backend(code, weight))
    return code.with_values(values)  # type: ignore[arg-type]
