"""Linear CKA of two representations of the same rows, unbiased and streamed.

With K = X X^T and L = Y Y^T, diagonals set to zero, the unbiased estimator of HSIC (Song et al. 2012, eq. 5) is

    HSIC(K, L) = [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1] / (n (n-3))
    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

(Kornblith et al. 2019; debiased as in Nguyen et al. 2021). It is about 0 for independent representations whatever
their width, where the plain form is near 1 unless there are many more rows than dimensions. For linear kernels every
term is a sum over rows (tr(KL) = |X^T Y|^2 - sum |x|^2 |y|^2, and so on), so nothing of size n x n is formed and rows
may come in parts. HSIC does not change when X or Y is shifted; each is moved to near its mean first, so that the sums
do not cancel. CKA is dominated by the directions of largest variance: 1 does not mean that two models do the same.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

LEAST_ROWS = 4
"""The estimator divides by n (n - 3)."""


class Hsic:
    """Sums over rows from which the unbiased HSIC of two linear kernels follows."""

    def __init__(self) -> None:
        """Begin without rows."""
        self.rows = 0
        self._centres: tuple[Tensor, Tensor] | None = None
        self._sums: list[Tensor] = []

    def add(self, x: Float[Tensor, "rows d_x"], y: Float[Tensor, "rows d_y"]) -> None:
        """Add rows, x and y of the same tokens; sums are kept in float64."""
        if len(x) == 0:
            return
        x, y = x.double(), y.double()
        if self._centres is None:  # any fixed points near the means
            self._centres = x.mean(0), y.mean(0)
        x, y = x - self._centres[0], y - self._centres[1]
        square_x, square_y = x.square().sum(1), y.square().sum(1)
        new = [
            x.T @ y,
            x.sum(0),
            y.sum(0),
            square_x.sum(),
            square_y.sum(),
            (x * square_y[:, None]).sum(0),
            (y * square_x[:, None]).sum(0),
            (square_x * square_y).sum(),
        ]
        self._sums = [a + b for a, b in zip(self._sums, new, strict=True)] if self._sums else new
        self.rows += len(x)

    @property
    def value(self) -> float:
        """The unbiased HSIC; NaN with fewer than 4 rows."""
        n = self.rows
        if n < LEAST_ROWS:
            return math.nan
        cross, sum_x, sum_y, square_x, square_y, x_by_y, y_by_x, both = self._sums
        trace = cross.square().sum() - both
        all_k, all_l = (sum_x * sum_x).sum() - square_x, (sum_y * sum_y).sum() - square_y
        through = (sum_x * (cross @ sum_y)).sum() - (sum_x * x_by_y).sum() - (sum_y * y_by_x).sum() + both
        total = trace + all_k * all_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * through
        return float(total) / (n * (n - 3))


def cka_of(xy: Hsic, xx: Hsic, yy: Hsic) -> float:
    """Return CKA from three HSICs; NaN where a representation does not vary (its HSIC is not above 0)."""
    product = xx.value * yy.value
    return xy.value / math.sqrt(product) if xx.value > 0 and yy.value > 0 else math.nan


def linear_cka(x: Float[Tensor, "rows d_x"], y: Float[Tensor, "rows_y d_y"]) -> float:
    """Return the unbiased linear CKA of two representations of the same rows.

    Raises:
        ValueError: different numbers of rows, or fewer than 4.
    """
    if len(x) != len(y) or len(x) < LEAST_ROWS:
        raise ValueError(f"CKA compares the same rows, at least {LEAST_ROWS} of them, got {len(x)} and {len(y)}.")
    xy, xx, yy = Hsic(), Hsic(), Hsic()
    xy.add(x, y)
    xx.add(x, x)
    yy.add(y, y)
    return cka_of(xy, xx, yy)
