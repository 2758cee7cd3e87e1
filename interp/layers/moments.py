"""First and second moments of two representations of the same rows, streamed: what linear measures are made of.

    mean_x, mean_y,   covariance C = sum (x - mean_x)(y - mean_y)^T / n

Procrustes, ridge maps and effective ranks need nothing else, so one pass serves them all, whatever the number of rows.
Sums are float64 and taken about a point near the mean, so that a large mean does not cancel the variance.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class Moments:
    """Sums over rows of x and y; with y = x, the covariance of x."""

    def __init__(self) -> None:
        """Begin without rows."""
        self.rows = 0
        self._centres: tuple[Tensor, Tensor] | None = None
        self._sums: list[Tensor] = []

    def update(self, x: Float[Tensor, "rows d_x"], y: Float[Tensor, "rows_y d_y"]) -> None:
        """Add rows, x and y of the same tokens.

        Raises:
            ValueError: different numbers of rows.
        """
        if len(x) != len(y):
            raise ValueError(f"x and y must be rows of the same tokens, got {len(x)} and {len(y)}.")
        if len(x) == 0:
            return
        x, y = x.double(), y.double()
        if self._centres is None:
            self._centres = x.mean(0), y.mean(0)
        x, y = x - self._centres[0], y - self._centres[1]
        new = [x.T @ y, x.sum(0), y.sum(0)]
        self._sums = [a + b for a, b in zip(self._sums, new, strict=True)] if self._sums else new
        self.rows += len(x)

    @property
    def means(self) -> tuple[Float[Tensor, " d_x"], Float[Tensor, " d_y"]]:
        """The means of x and of y."""
        centres, (_, sum_x, sum_y) = self._found()
        return centres[0] + sum_x / self.rows, centres[1] + sum_y / self.rows

    @property
    def covariance(self) -> Float[Tensor, "d_x d_y"]:
        """The covariance of x and y, divided by the number of rows."""
        _, (cross, sum_x, sum_y) = self._found()
        return cross / self.rows - torch.outer(sum_x, sum_y) / self.rows**2

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of the rows of both."""
        if self._centres is None or other._centres is None:
            return self if other._centres is None else other
        n, (cross, sum_x, sum_y) = other.rows, other._sums
        move_x, move_y = (b - a for a, b in zip(self._centres, other._centres, strict=True))
        moved = [
            cross + torch.outer(move_x, sum_y) + torch.outer(sum_x + n * move_x, move_y),
            sum_x + n * move_x,
            sum_y + n * move_y,
        ]
        both = Moments()
        both.rows, both._centres = self.rows + n, self._centres
        both._sums = [a + b for a, b in zip(self._sums, moved, strict=True)]
        return both

    def _found(self) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
        if self._centres is None:
            raise ValueError("Moments need at least one row, got none: call update() first.")
        return self._centres, self._sums


def moments_of(x: Float[Tensor, "rows d_x"], y: Float[Tensor, "rows d_y"]) -> tuple[Moments, Moments, Moments]:
    """Return the moments (xy, xx, yy) of two representations of the same rows."""
    xy, xx, yy = Moments(), Moments(), Moments()
    xy.update(x, y)
    xx.update(x, x)
    yy.update(y, y)
    return xy, xx, yy
