"""Uniform rounding to b bits with one scale for each row, for each group of columns, or for each token.

Symmetric:    s = max|w| / ((2^b - 1) / 2),   q = clip(round(w / s), -2^(b-1), 2^(b-1) - 1),   w' = q s
Asymmetric:   s = (max(w, 0) - min(w, 0)) / (2^b - 1),   z = round(-min(w, 0) / s),
              q = clip(round(w / s) + z, 0, 2^b - 1),   w' = (q - z) s

The symmetric scale of weights divides by half the number of steps (127.5 at 8 bits), as torchao does, so the largest
positive weight is clipped by half a step. That puts the largest number onto the border between two codes. For
activations, where the last bit differs from one way of computing to another, it divides by 2^(b-1) - 1 (127 at 8 bits),
and the largest number has a code of its own. Both forms hold zero exactly, so pruned weights stay zero. Ties go to the
even code.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Mode = Literal["symmetric", "asymmetric"]
MODES = ("symmetric", "asymmetric")


def round_rows(x: Float[Tensor, "... d"], bits: int, mode: str, group: int | None = None) -> Float[Tensor, "... d"]:
    """Return `x` rounded to `bits` bits, with a scale of its own for each row or each `group` of numbers of a row."""
    grouped = x if group is None else x.unflatten(-1, (-1, group))
    rounded = _symmetric(grouped, bits, (2**bits - 1) / 2) if mode == "symmetric" else _asymmetric(grouped, bits)
    return rounded.reshape(x.shape)


def round_tokens(x: Float[Tensor, "... d"], bits: int, mode: str) -> Float[Tensor, "... d"]:
    """Return activations rounded to `bits` bits, with a scale of its own for each token."""
    return _symmetric(x, bits, 2 ** (bits - 1) - 1) if mode == "symmetric" else _asymmetric(x, bits)


def _symmetric(x: Tensor, bits: int, steps: float) -> Tensor:
    top = 2 ** (bits - 1)
    scale = _usable(x.abs().amax(-1, keepdim=True) / steps)
    return torch.clamp(torch.round(x * (1 / scale)), -top, top - 1) * scale


def _asymmetric(x: Tensor, bits: int) -> Tensor:
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = _usable((high - low) / (2**bits - 1))
    zero = torch.round(-low / scale)
    return (torch.clamp(torch.round(x * (1 / scale)) + zero, 0, 2**bits - 1) - zero) * scale


def _usable(scale: Tensor) -> Tensor:
    """Return `scale` with 1 for rows of zeros, and nothing so small that its inverse is infinite."""
    tiny = torch.finfo(scale.dtype).tiny
    return torch.where(scale == 0, 1.0, scale.clamp(min=tiny))
