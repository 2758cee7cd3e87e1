"""Pruning single weights to zero: the smallest ones by magnitude, or random ones as a control.

Exactly round(sparsity n) of n weights become zero, of each matrix, of each row, or of all matrices together; among
equal magnitudes the first ones do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.compression.steps.base import MatrixStep, percent, share, where, whole
from interp.compression.steps.noise import generator
from interp.names import unknown

if TYPE_CHECKING:
    from interp.compression.storage import Part
    from interp.compression.walk import Piece, Weight
    from interp.types import Change

SCOPES = ("matrix", "row", "global")


@dataclass(frozen=True)
class Magnitude(MatrixStep):
    """Set the weights of least magnitude to zero."""

    name: ClassVar[str] = "magnitude"

    sparsity: float = 0.5
    """Share of the weights that become zero, 0..1."""
    scope: Literal["matrix", "row", "global"] = "matrix"
    """Among which weights the share is taken: of a matrix, of a row (one output), of all matrices together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share("sparsity of magnitude", self.sparsity)
        if self.scope not in SCOPES:
            raise ValueError(unknown("scope of magnitude", self.scope, SCOPES))

    @property
    def is_nothing(self) -> bool:
        """Whether nothing is pruned."""
        return self.sparsity == 0

    def describe(self) -> str:
        """Return such as `magnitude-30%`."""
        scope = "" if self.scope == "matrix" else f"-{self.scope}"
        return f"magnitude-{percent(self.sparsity)}{scope}{where(self.include, self.exclude)}"

    def rewrite(self, weights: Sequence[Weight]) -> list[Change]:
        """Prune each weight by itself, or all by one threshold."""
        if self.scope != "global":
            return super().rewrite(weights)
        pieces = [weight.pieces() for weight in weights]
        together = torch.cat([piece.matrix.abs().flatten().cpu() for group in pieces for piece in group])
        lost = iter(
            lowest(together, self.sparsity).split([piece.matrix.numel() for group in pieces for piece in group])
        )
        return [weight.edit(_masking(lost)) for weight in weights]

    def change(self, piece: Piece) -> tuple[Tensor, Part]:
        """Return the pruned matrix."""
        size = piece.matrix.abs()
        scores = size if self.scope == "row" else size.flatten()
        return _without(piece, lowest(scores, self.sparsity).reshape(size.shape))


@dataclass(frozen=True)
class RandomPrune(MatrixStep):
    """Set random weights to zero: what pruning does that does not choose."""

    name: ClassVar[str] = "random_prune"

    sparsity: float = 0.5
    """Share of the weights of each matrix that become zero, 0..1."""
    seed: int = 0
    """Of the choice."""

    def __post_init__(self) -> None:
        super().__post_init__()
        share("sparsity of random_prune", self.sparsity)
        whole("seed of random_prune", self.seed, 0)

    @property
    def is_nothing(self) -> bool:
        """Whether nothing is pruned."""
        return self.sparsity == 0

    def describe(self) -> str:
        """Return such as `random_prune-30%`."""
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"random_prune-{percent(self.sparsity)}{seed}{where(self.include, self.exclude)}"

    def change(self, piece: Piece) -> tuple[Tensor, Part]:
        """Return the pruned matrix."""
        key = f"{piece.name} {list(piece.matrix.shape)}"  # two factors of one weight draw apart
        scores = torch.rand(piece.matrix.numel(), generator=generator(self.seed, key))
        return _without(piece, lowest(scores, self.sparsity).reshape(piece.matrix.shape))


def lowest(scores: Float[Tensor, "*rows n"], part: float) -> Bool[Tensor, "*rows n"]:
    """Return True at the round(part n) lowest scores of each row; among equal ones at the first."""
    count = round(part * scores.shape[-1])
    order = scores.argsort(dim=-1, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


def _masking(lost: Iterator[Tensor]) -> Callable[[Piece], tuple[Tensor, Part]]:
    """Return the change that takes its mask from `lost`."""
    return lambda piece: _without(piece, next(lost).reshape(piece.matrix.shape))


def _without(piece: Piece, lost: Tensor) -> tuple[Tensor, Part]:
    left = piece.matrix.masked_fill(lost.to(piece.matrix.device), 0.0)
    return left, piece.part.pruned(int(left.count_nonzero()))
