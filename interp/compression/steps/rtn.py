"""Round to nearest: every weight to the nearest of 2^b levels (`interp.compression.steps.rounding`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from interp.compression.steps.base import MatrixStep, where, whole
from interp.compression.steps.rounding import MODES, Mode, round_rows
from interp.names import unknown

if TYPE_CHECKING:
    from torch import Tensor

    from interp.compression.storage import Part
    from interp.compression.walk import Piece, Weight


@dataclass(frozen=True)
class Rtn(MatrixStep):
    """Round weights to a few bits, data-free."""

    name: ClassVar[str] = "rtn"

    bits: int | None = 4
    """Bits of a weight, 2..8; None leaves them as they are."""
    mode: Mode = "symmetric"
    """Levels around zero, or between the smallest and the largest weight."""
    group: int | None = None
    """Inputs that share a scale; None: all of a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits is not None:
            whole("bits of rtn", self.bits, 2, 8)
        if self.group is not None:
            whole("group of rtn", self.group, 1)
        if self.mode not in MODES:
            raise ValueError(unknown("mode of rtn", self.mode, MODES))

    @property
    def is_nothing(self) -> bool:
        """Whether no bits are given."""
        return self.bits is None

    def describe(self) -> str:
        """Return such as `rtn-4bit-g64`."""
        group = "" if self.group is None else f"-g{self.group}"
        form = "-asym" if self.mode == "asymmetric" else ""
        bits = "none" if self.bits is None else f"{self.bits}bit"
        return f"rtn-{bits}{form}{group}{where(self.include, self.exclude)}"

    def check(self, weights: Sequence[Weight]) -> None:
        """Refuse a group that does not divide the inputs of every matrix, before any is changed."""
        if self.group is None:
            return
        pieces = [piece for weight in weights for piece in weight.pieces()]
        common = math.gcd(*(piece.matrix.shape[1] for piece in pieces))
        for piece in pieces:
            inputs = piece.matrix.shape[1]
            if inputs % self.group:
                fitting = [d for d in range(1, common + 1) if common % d == 0][-4:]
                raise ValueError(
                    f"group must divide the inputs of every matrix: {piece.name} has {inputs}, got group {self.group}. "
                    f"Groups that fit all of them: {', '.join(map(str, fitting))}."
                )

    def change(self, piece: Piece) -> tuple[Tensor, Part]:
        """Return the rounded matrix."""
        bits = self.bits or 0
        rounded = round_rows(piece.matrix, bits, self.mode, self.group)
        rows, inputs = piece.matrix.shape
        groups = rows * (1 if self.group is None else inputs // self.group)
        return rounded, piece.part.rounded(bits, groups, zero_points=self.mode == "asymmetric")
