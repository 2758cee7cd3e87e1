"""The slots' arithmetic in plain torch: bags of rows and sampled products. What every other kernel is checked against.

    bag              out_i = sum_{s in bag i} v_s weight[slot_s]
    sampled product  out_s = <left[row_s], right[latent_s]>

Runs everywhere, and gives the same result each time: no sum depends on which of two threads comes first.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor
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
    # Detached: the kernel that prepares for a backward of its own takes up to four times as long.
    return embedding_bag(slots, weight.detach(), offsets, mode="sum", per_sample_weights=values.detach())


def sampled_product(
    left: Float[Tensor, "batch d"], right: Float[Tensor, "d_sae d"], code: Code
) -> Float[Tensor, " nnz"]:
    """Return <left[row], right[latent]> at each slot of `code`, flattened."""
    # Slots come in any order within a row. MKL takes them as they are; whether cuSPARSE does is not promised.
    if left.is_cuda or not torch.backends.mkl.is_available():
        return gathered_product(left, right, code)
    flat = code.indices.flatten()
    pointers = torch.cat([code.offsets, code.offsets.new_tensor([flat.numel()])])
    with warnings.catch_warnings():
        # Said once per process by torch for every CSR tensor; the values are checked against the gathered form.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(
            pointers, flat, left.new_zeros(flat.numel()), (left.shape[0], right.shape[0]), check_invariants=False
        )
        return torch.sparse.sampled_addmm(pattern, left, right.t(), beta=0.0).values()


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


def to_rows(code: Code, values: Float[Tensor, " nnz"], weight: Float[Tensor, "d_sae d"]) -> Float[Tensor, "batch d"]:
    """Return for each row of `code` the sum over its slots of value times `weight[latent]`."""
    return bag(weight, code.indices.flatten(), code.offsets, values)


def to_latents(code: Code, values: Float[Tensor, " nnz"], rows: Float[Tensor, "batch d"]) -> Float[Tensor, "d_sae d"]:
    """Return for each latent the sum over its slots of value times `rows[row]`."""
    order, places, offsets = code.by_latent
    return bag(rows, places, offsets, values[order])


def totals(code: Code, values: Float[Tensor, " nnz"]) -> Float[Tensor, " d_sae"]:
    """Return for each latent the sum of its slots' values."""
    if values.is_cuda:  # where `index_add` adds in whatever order the threads arrive
        return to_latents(code, values, values.new_ones(len(code), 1)).squeeze(1)
    return values.new_zeros(code.d_sae).index_add(0, code.indices.flatten(), values)
