"""Low rank: W = U S V^T becomes the product of two factors, the k largest singular values kept (Eckart and Young 1936).

The factors are (U_k sqrt(S_k)) [out k] and (sqrt(S_k) V_k^T) [k in]; they hold k (out + in) numbers. Where those are
no fewer than the matrix has, the truncated matrix is stored whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from interp.compression.steps.base import MatrixStep, percent, share, where, whole
from interp.compression.storage import dense
from interp.types import Change

if TYPE_CHECKING:
    from interp.compression.walk import Weight


@dataclass(frozen=True)
class Svd(MatrixStep):
    """Keep only the largest singular values of each matrix."""

    name: ClassVar[str] = "svd"

    rank: int | None = None
    """How many are kept; matrices of no larger rank, or stored as factors of no larger one, stay as they are."""
    share: float | None = None
    """Which share of the full rank min(out, in) is kept, 0..1, at least one; instead of `rank`. Neither: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None and self.share is not None:
            raise ValueError(f"svd takes rank or share, not both, got rank={self.rank} and share={self.share}.")
        if self.rank is not None:
            whole("rank of svd", self.rank, 1)
        if self.share is not None:
            share("share of svd", self.share)
            if self.share == 0:
                raise ValueError("share of svd must be larger than 0: a matrix of rank 0 is nothing. Prune it instead.")

    @property
    def is_nothing(self) -> bool:
        """Whether the full rank is kept."""
        return self.rank is None and self.share in (None, 1)

    def describe(self) -> str:
        """Return such as `svd-50%` or `svd-r64`."""
        size = f"r{self.rank}" if self.rank is not None else percent(1 if self.share is None else self.share)
        return f"svd-{size}{where(self.include, self.exclude)}"

    def kept(self, out: int, inputs: int) -> int:
        """Return how many singular values of an [out inputs] matrix are kept."""
        full = min(out, inputs)
        return min(full, self.rank) if self.rank is not None else max(1, round((self.share or 1) * full))

    def rewrite(self, weights: Sequence[Weight]) -> list[Change]:
        """Truncate each weight; those of full rank are left as they are, to the bit."""
        return [_truncate(weight, self.kept(*weight.matrix.shape)) for weight in weights]


def _truncate(weight: Weight, rank: int) -> Change:
    pieces = weight.pieces()
    out, inputs = weight.matrix.shape
    if rank >= min(out, inputs, *(min(piece.matrix.shape) for piece in pieces)):  # of a step before, too
        parts = [piece.part for piece in pieces]
        return Change(weight.name, out * inputs, sum(p.kept for p in parts), sum(p.bits for p in parts), 0.0)
    matrix = pieces[0].matrix if len(pieces) == 1 else pieces[0].matrix @ pieces[1].matrix
    left, right = factors(matrix, rank)
    bits = weight.base().value_bits
    if rank * (out + inputs) >= out * inputs:
        return weight.write([left @ right], [weight.base()])
    return weight.write([left, right], [dense(left.numel(), bits), dense(right.numel(), bits)])


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the two factors [out rank], [rank in] of the best approximation of `matrix` of that rank."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
