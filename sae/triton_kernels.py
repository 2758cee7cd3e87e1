"""The slots' arithmetic as two Triton kernels; imported only where Triton is and a GPU (or its interpreter) runs it.

    _bag      one program per (bag, stretch of columns): sums its slots tile by tile, in order
    _sampled  one program per row: tile of slots by tile of slots, walks along the columns

The weights' gradients are the first kernel over slots sorted by latent: each latent's sum belongs to one program, so
no atomics, and the same numbers each time. Block sizes are fixed by the width for the same reason: a tuner that
picked them by the clock would change the order of the sums from one process to the next. Sums run in float32, or in
float64 where the inputs are.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae.code import Code

SLOTS = 16
"""Slots of a tile."""
COLUMNS = 128
"""Columns of a tile, at most; a power of two."""


@triton.jit
def _bag(
    weight,
    slots,
    offsets,
    values,
    out,
    bags,
    nnz,
    width,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    bag = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    first = tl.load(offsets + bag)
    last = tl.load(offsets + bag + 1, mask=bag + 1 < bags, other=nnz)
    total = tl.zeros((COLUMNS,), dtype=ACCUMULATE)
    for start in range(first, last, SLOTS):
        places = start + tl.arange(0, SLOTS)
        there = places < last
        rows = tl.load(slots + places, mask=there, other=0)
        value = tl.load(values + places, mask=there, other=0.0).to(ACCUMULATE)
        tile = tl.load(
            weight + rows[:, None] * width + columns[None, :], mask=there[:, None] & inside[None, :], other=0.0
        )
        total += tl.sum(tile.to(ACCUMULATE) * value[:, None], axis=0)
    tl.store(out + bag * width + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _sampled(
    left,
    right,
    latents,
    offsets,
    out,
    batch,
    nnz,
    width,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + row)
    last = tl.load(offsets + row + 1, mask=row + 1 < batch, other=nnz)
    for start in range(first, last, SLOTS):
        places = start + tl.arange(0, SLOTS)
        there = places < last
        latent = tl.load(latents + places, mask=there, other=0)
        total = tl.zeros((SLOTS,), dtype=ACCUMULATE)
        for begin in range(0, width, COLUMNS):
            columns = begin + tl.arange(0, COLUMNS)
            inside = columns < width
            ours = tl.load(left + row * width + columns, mask=inside, other=0.0).to(ACCUMULATE)
            theirs = tl.load(
                right + latent[:, None] * width + columns[None, :], mask=there[:, None] & inside[None, :], other=0.0
            )
            total += tl.sum(theirs.to(ACCUMULATE) * ours[None, :], axis=1)
        tl.store(out + places, total.to(out.dtype.element_ty), mask=there)


def bag(
    weight: Float[Tensor, "n d"],
    slots: Int[Tensor, " nnz"],
    offsets: Int[Tensor, " bags"],
    values: Float[Tensor, " nnz"],
) -> Float[Tensor, "bags d"]:
    """Return for each bag of slots the sum of `values` times the rows `weight[slots]`."""
    weight, slots, values = weight.detach().contiguous(), slots.contiguous(), values.detach().contiguous()
    bags, width = len(offsets), weight.shape[1]
    out = weight.new_empty(bags, width)
    if bags and width:
        block = _columns(width)
        _bag[(bags, triton.cdiv(width, block))](
            weight, slots, offsets, values, out, bags, len(slots), width,
            SLOTS=SLOTS, COLUMNS=block, ACCUMULATE=_accumulate(weight),
        )  # fmt: skip
    return out


def sampled_product(
    left: Float[Tensor, "batch d"], right: Float[Tensor, "d_sae d"], code: Code
) -> Float[Tensor, " nnz"]:
    """Return <left[row], right[latent]> at each slot of `code`, flattened."""
    latents = code.indices.flatten()
    left, right = left.detach().contiguous(), right.detach().contiguous()
    out = left.new_empty(len(latents))
    if len(latents):
        _sampled[(len(code),)](
            left, right, latents, code.offsets, out, len(code), len(latents), left.shape[1],
            SLOTS=SLOTS, COLUMNS=_columns(left.shape[1]), ACCUMULATE=_accumulate(left),
        )  # fmt: skip
    return out


def to_rows(code: Code, values: Float[Tensor, " nnz"], weight: Float[Tensor, "d_sae d"]) -> Float[Tensor, "batch d"]:
    """Return for each row of `code` the sum over its slots of value times `weight[latent]`."""
    return bag(weight, code.indices.flatten(), code.offsets, values)


def to_latents(code: Code, values: Float[Tensor, " nnz"], rows: Float[Tensor, "batch d"]) -> Float[Tensor, "d_sae d"]:
    """Return for each latent the sum over its slots of value times `rows[row]`."""
    order, places, offsets = code.by_latent
    return bag(rows, places, offsets, values.detach()[order])


def totals(code: Code, values: Float[Tensor, " nnz"]) -> Float[Tensor, " d_sae"]:
    """Return for each latent the sum of its slots' values."""
    return to_latents(code, values, values.new_ones(len(code), 1)).squeeze(1)


def _columns(width: int) -> int:
    """Return the columns of a tile for rows of this width."""
    return min(COLUMNS, triton.next_power_of_2(width))


def _accumulate(x: Tensor) -> tl.dtype:
    """Return the number format of the sums."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32
