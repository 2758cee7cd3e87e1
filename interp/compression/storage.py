"""What a changed matrix takes to store: values, scales, zero points and masks, composed over the steps of a recipe.

A matrix of n numbers that keeps m of them at b bits each takes

    bits = m b + (n if masked) + (scales and zero points)

Pruning sets m and adds a mask of one bit for each number; rounding sets b and adds a scale of 16 bits for each row or
group, and a zero point of b bits where the levels are asymmetric. A low-rank matrix is two such matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SCALE_BITS = 16
"""A scale is counted as float16."""


@dataclass(frozen=True)
class Part:
    """How one stored matrix is kept: a weight, or one of its two low-rank factors."""

    numbers: int
    """Numbers of the matrix."""
    kept: int
    """Numbers that are stored: all, or those that the mask leaves."""
    value_bits: int
    """Bits of a stored number."""
    masked: bool = False
    """Whether a mask of one bit a number says which are stored."""
    overhead: int = 0
    """Bits of scales and zero points."""

    @property
    def bits(self) -> int:
        """Everything together."""
        return self.kept * self.value_bits + (self.numbers if self.masked else 0) + self.overhead

    def pruned(self, kept: int) -> Part:
        """Return the part with only `kept` numbers left and a mask that says which."""
        return replace(self, kept=kept, masked=True)

    def rounded(self, bits: int, groups: int, zero_points: bool) -> Part:
        """Return the part with numbers of `bits` bits and one scale, and zero point, for each of `groups`."""
        overhead = groups * (SCALE_BITS + (bits if zero_points else 0))
        return replace(self, value_bits=bits, overhead=overhead)


def dense(numbers: int, value_bits: int) -> Part:
    """Return a matrix that is stored whole, at `value_bits` a number."""
    return Part(numbers, numbers, value_bits)
