"""How much a head reads of what an earlier one writes: Q-, K- and V-composition (Elhage et al. 2021).

    Q   ||W_QK2^T W_OV1|| / (||W_QK2|| ||W_OV1||)       queries of head 2 read what head 1 writes
    K   ||W_QK2   W_OV1|| / (||W_QK2|| ||W_OV1||)       its keys do
    V   ||W_OV2   W_OV1|| / (||W_OV2|| ||W_OV1||)       its values do

with W_OV = W_O W_V, W_QK = W_Q^T W_K and Frobenius norms. All are products of thin matrices: with the triangular parts
T of their QR decompositions, ||L^T M R|| = ||T_L M T_R^T|| costs d_head^3 and not d_model^3.

Two unrelated heads do not score 0: turned against each other at random, the mean square of the score is exactly 1 / d,
whatever their spectra, so that its root is subtracted; d is d_model, less 1 under a LayerNorm, which removes the mean.

With rotary positions W_QK is W_Q^T R W_K, and R depends on how far the key lies back: `offset` says how far, and 0 is
no turn at all. Learned positions are added to the stream and change none of these matrices.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from interp.layers.head_weights import HeadWeights, head_weights, rotation
from interp.layers.norms import block_norm
from interp.models.handle import ModelHandle

KINDS = ("q", "k", "v")
"""What of the later head reads."""


def compositions(
    handle: ModelHandle, *, offset: int = 0, baseline: bool = True
) -> dict[str, Float[Tensor, "layer head source_layer source_head"]]:
    """Return {"q", "k", "v"}: the composition of each head with each head of an earlier layer, NaN elsewhere.

    Args:
        handle: the model.
        offset: positions from the key to the query, for rotary models; others are the same at all.
        baseline: subtract what matrices give that are turned against each other at random.

    Raises:
        ValueError: `offset` does not lie in the context, or the model's weights cannot be read as matrices.
    """
    if not 0 <= offset < handle.n_ctx:
        raise ValueError(f"offset must lie in 0..n_ctx-1={handle.n_ctx - 1}, got {offset}.")
    turned = rotation(handle, -offset)
    layers = [_turn(head_weights(handle, layer), turned) for layer in range(handle.n_layers)]
    shape = (handle.n_layers, handle.n_heads, handle.n_layers, handle.n_heads)
    found = {kind: torch.full(shape, math.nan, dtype=torch.float64) for kind in KINDS}
    dims = handle.d_model - block_norm(handle, 0, "attn").centred
    null = 1 / math.sqrt(dims) if baseline else 0.0
    for later in range(1, handle.n_layers):
        for earlier in range(later):
            for kind, score in pair_scores(layers[later], layers[earlier]).items():
                found[kind][later, :, earlier] = score.cpu() - null
    return found


def _turn(heads: HeadWeights, turned: Float[Tensor, "d_head d_head"]) -> HeadWeights:
    return HeadWeights(heads.q, turned.to(heads.k) @ heads.k, heads.v, heads.o)


def pair_scores(later: HeadWeights, earlier: HeadWeights) -> dict[str, Float[Tensor, "head source_head"]]:
    """Return {"q", "k", "v"} of every head of a layer with every head of an earlier one; 0 where one does nothing."""
    written = _triangle(earlier.v)  # what the earlier head reads, only its lengths
    size = _norm(_triangle(earlier.o.mT), written)
    found = {}
    for kind, other, reads in (("q", later.k, later.q), ("k", later.q, later.k), ("v", later.o.mT, later.v)):
        outer = _triangle(other)
        middle = torch.einsum("hed,gdf->hgef", reads, earlier.o)
        product = torch.einsum("hae,hgef,gbf->hgab", outer, middle, written)
        scale = _norm(outer, _triangle(reads))[:, None] * size
        found[kind] = torch.where(scale > 0, torch.linalg.matrix_norm(product) / scale, 0.0)
    return found


def _triangle(thin: Float[Tensor, "head d_head d_model"]) -> Float[Tensor, "head r d_head"]:
    """Return T with thin^T = (columns at right angles) T."""
    return torch.linalg.qr(thin.mT, mode="r").R


def _norm(left: Float[Tensor, "head r d_head"], right: Float[Tensor, "head s d_head"]) -> Float[Tensor, " head"]:
    """Return the norm of L^T R from the triangles of L and R."""
    return torch.linalg.matrix_norm(left @ right.mT)
