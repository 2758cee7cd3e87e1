"""Gaussian noise on weights and activations, relative to their size: controls for damage that means nothing.

Weights: W' = W + std |W| / sqrt(n) e, e ~ N(0, 1), so that the relative error |W' - W| / |W| is about std.
Activations: x' = x + std |x| / sqrt(d) e for each token, alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from interp.compression.steps.base import MatrixStep, strength, where, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interp.compression.walk import Weight
    from interp.types import Change


@dataclass(frozen=True)
class WeightNoise(MatrixStep):
    """Add Gaussian noise to weights; what is changed is stored whole again, as the model came."""

    name: ClassVar[str] = "weight_noise"

    std: float = 0.1
    """Size of the noise relative to that of the matrix, from 0 on."""
    seed: int = 0
    """Of the noise; each matrix draws its own, whichever others are changed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        strength("std of weight_noise", self.std)
        whole("seed of weight_noise", self.seed, 0)

    @property
    def is_nothing(self) -> bool:
        """Whether there is no noise."""
        return self.std == 0

    def describe(self) -> str:
        """Return such as `weight_noise-0.1`."""
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"weight_noise-{self.std:.4g}{seed}{where(self.include, self.exclude)}"

    def rewrite(self, weights: Sequence[Weight]) -> list[Change]:
        """Add noise to the matrix itself; factors and masks of steps before do not survive it."""
        return [self._noisy(weight) for weight in weights]

    def _noisy(self, weight: Weight) -> Change:
        pieces = weight.pieces()
        matrix = pieces[0].matrix if len(pieces) == 1 else pieces[0].matrix @ pieces[1].matrix
        noise = torch.randn(matrix.shape, generator=generator(self.seed, weight.name), dtype=matrix.dtype)
        size = matrix.norm() / matrix.numel() ** 0.5
        return weight.write([matrix + self.std * size * noise.to(matrix.device)], [weight.base()])


def generator(seed: int, key: str) -> torch.Generator:
    """Return a generator on the CPU whose numbers depend on `seed` and `key` alone."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big", signed=False)
    return torch.Generator().manual_seed(number >> 1)
