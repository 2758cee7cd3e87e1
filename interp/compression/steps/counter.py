"""Random numbers without a state: a key goes in, Gaussian numbers come out, the same on every device.

The key is scrambled by SplitMix64 (Steele, Lea, Flood 2014) in wrapping 64-bit integers, and pairs of uniform numbers
become Gaussian ones by Box and Muller (1958).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def _signed(number: int) -> int:
    """Return the 64-bit `number` as torch's int64 holds it."""
    return number - 2**64 if number >= 2**63 else number


GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST = _signed(0xBF58476D1CE4E5B9)
SECOND = _signed(0x94D049BB133111EB)


def mixed(keys: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return `keys` scrambled: neighbours become unrelated."""
    x = keys + GOLDEN
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Return `x` shifted to the right as an unsigned number; torch's shift copies the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def normals(keys: Int[Tensor, "*shape"], count: int) -> Float[Tensor, "*shape count"]:
    """Return `count` independent standard normal numbers (float64) for each key."""
    half = (count + 1) // 2
    bits = mixed(keys[..., None] + GOLDEN * torch.arange(1, 2 * half + 1, device=keys.device))
    uniform = (_shifted(bits, 11).to(torch.float64) + 0.5) * 2.0**-53  # inside (0, 1)
    radius, angle = (-2 * uniform[..., :half].log()).sqrt(), 2 * math.pi * uniform[..., half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., :count]
