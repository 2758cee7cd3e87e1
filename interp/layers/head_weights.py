"""The four matrices of each head as they act on the residual stream: norms folded in, shared keys and values repeated.

With c the centring of a LayerNorm (nothing for an RMSNorm) and g its gain, a head reads through W diag(g) c and writes
through c W_O, since whatever lies along the mean is read by nobody. Left out are biases, the scale of each token, and
positions: rotary ones turn q and k by an angle that depends on how far apart two positions are (`rotation`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.layers.factored import Factored
from interp.layers.norms import block_norm
from interp.layers.weights import layer_matrices
from interp.models.handle import ModelHandle
from interp.names import unknown

CIRCUITS = ("ov", "qk")
"""What a head moves, W_O W_V, and what it looks for, W_Q^T W_K / sqrt(d_head)."""

ROTARY = {"gpt_neox": "gpt_neox.rotary_emb", "llama": "model.rotary_emb"}
"""Family -> module that holds the frequencies of its rotary positions."""


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The matrices of the heads of one layer, in float64."""

    q: Float[Tensor, "head d_head d_model"]
    """What a head's queries read."""
    k: Float[Tensor, "head d_head d_model"]
    """What its keys read."""
    v: Float[Tensor, "head d_head d_model"]
    """What its values read."""
    o: Float[Tensor, "head d_model d_head"]
    """What it writes."""

    def circuit(self, head: int, which: str) -> Factored:
        """Return OV [written read] or QK [query key] of a head.

        Raises:
            ValueError: there is no such head or circuit.
        """
        if which not in CIRCUITS:
            raise ValueError(unknown("circuit of a head", which, CIRCUITS))
        if not 0 <= head < len(self.o):
            raise ValueError(f"head must lie in 0..{len(self.o) - 1}, got {head}.")
        if which == "ov":
            return Factored(self.o[head].T, self.v[head])
        return Factored(self.q[head], self.k[head] / math.sqrt(self.q.shape[1]))


def head_weights(handle: ModelHandle, layer: int, *, centred: bool = True) -> HeadWeights:
    """Return the matrices of the heads of a layer.

    Args:
        handle: the model.
        layer: block, counted from 0.
        centred: leave out what is written along the mean, where the block's norm does not read it.

    Raises:
        ValueError: weights are packed, or a norm is of an unknown kind.
    """
    norm, matrices = block_norm(handle, layer, "attn"), layer_matrices(handle, layer)
    read = {name: norm.pull_back(matrices[name]).unflatten(0, (-1, handle.d_head)) for name in ("q", "k", "v")}
    group = handle.n_heads // handle.n_kv_heads
    read |= {name: read[name].repeat_interleave(group, 0) for name in ("k", "v")}
    written = matrices["o"].double().unflatten(1, (handle.n_heads, handle.d_head)).permute(1, 2, 0)
    return HeadWeights(read["q"], read["k"], read["v"], (norm.centre(written) if centred else written).mT)


def is_rotary(handle: ModelHandle) -> bool:
    """Return whether queries and keys are turned by their positions."""
    return handle.family in ROTARY


def rotation(handle: ModelHandle, positions: int) -> Float[Tensor, "d_head d_head"]:
    """Return the matrix by which a key or query is turned over so many positions; the identity without rotary ones."""
    found = torch.eye(handle.d_head, dtype=torch.float64)
    if not is_rotary(handle):
        return found
    module: Any = handle.module.get_submodule(ROTARY[handle.family])
    angle = positions * module.inv_freq.detach().double().cpu()
    half = len(angle)  # dimensions 2 half and up are not turned (GPT-NeoX turns a part)
    first, second = torch.arange(half), torch.arange(half, 2 * half)
    found[first, first] = found[second, second] = angle.cos()
    found[first, second], found[second, first] = -angle.sin(), angle.sin()
    return found
