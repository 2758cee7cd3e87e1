"""Similarity of two representations of the same rows: unbiased CKA, Procrustes, pair geometry, shared neighbours.

With K = X X^T and L = Y Y^T, diagonals set to zero, the unbiased estimator of HSIC (Song et al. 2012, eq. 5) is

    HSIC(K, L) = [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1] / (n (n-3))
    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

(Kornblith et al. 2019; debiased as in Nguyen et al. 2021). It is about 0 for independent representations whatever
their width, where the plain form is near 1 unless there are many more rows than dimensions. For linear kernels every
term is a sum over rows (tr(KL) = |X^T Y|^2 - sum |x|^2 |y|^2, and so on), so nothing of size n x n is formed and rows
may come in parts. HSIC does not change when X or Y is shifted; each is moved to near its mean first, so that the sums
do not cancel. CKA is dominated by the directions of largest variance: 1 does not mean that two models do the same.

    procrustes   min over rotations Q, scales s and shifts of |Y - s X Q|^2 / |Y|^2 = 1 - |C_xy|_*^2 / (tr C_xx tr C_yy)
    geometry     Pearson correlation, over pairs of tokens i != j, of cos(x_i, x_j) with cos(y_i, y_j)
    mutual k-NN  mean share of the k nearest tokens (cosine of centred rows) that x and y have in common

The first two are streamed; |.|_* is the sum of singular values. None of the four sees a rotation or an overall scale.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from interp.activations.outliers import norms
from interp.layers.moments import Moments

LEAST_ROWS = 4
"""The estimator divides by n (n - 3)."""

PAIR_FLOATS = 1 << 22
"""Similarities of pairs of tokens held at once (32 MiB)."""


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


def procrustes_of(xy: Moments, xx: Moments, yy: Moments) -> float:
    """Return what rotation, scale and shift leave of the variance, 0 (same shape) to 1; NaN where one is constant.

    The same in both directions. Widths may differ: the narrower is filled up with zeros.
    """
    total = float(xx.covariance.trace() * yy.covariance.trace())
    if not total > 0:
        return math.nan
    shared = float(torch.linalg.svdvals(xy.covariance).sum())
    return min(1.0, max(0.0, 1.0 - shared**2 / total))


class PairGeometry:
    """Sums over rows from which the agreement of all cosines between tokens follows: the hidden-state geometry score.

    1 where the cosines of y are those of x (whatever the basis and each token's norm), about 0 for independent
    representations. With unit rows u and v every term is a sum over rows, as sum_ij <u_i, u_j> <v_i, v_j> = |U^T V|^2.
    """

    def __init__(self) -> None:
        """Begin without rows."""
        self.rows = 0
        self._sums: list[Tensor] = []

    def update(self, x: Float[Tensor, "rows d_x"], y: Float[Tensor, "rows d_y"]) -> None:
        """Add rows, x and y of the same tokens; a row that is 0 in one of them has no cosine and is left out."""
        x, y = x.double(), y.double()
        size_x, size_y = norms(x).to(x.device), norms(y).to(y.device)
        some = (size_x > 0) & (size_y > 0)
        u, v = x[some] / size_x[some, None], y[some] / size_y[some, None]
        new = [u.T @ v, u.T @ u, v.T @ v, u.sum(0), v.sum(0)]
        self._sums = [a + b for a, b in zip(self._sums, new, strict=True)] if self._sums else new
        self.rows += len(u)

    def finish(self) -> float:
        """Return the correlation; NaN with fewer than 3 rows or where all cosines of one are equal."""
        n = self.rows
        if n < 3:
            return math.nan
        pairs = n * (n - 1)
        both, of_x, of_y = (float(gram.square().sum() - n) / pairs for gram in self._sums[:3])
        mean_x, mean_y = (float(total.square().sum() - n) / pairs for total in self._sums[3:])
        spread_x, spread_y = of_x - mean_x**2, of_y - mean_y**2
        least = 1e-12  # of cosines, so that this is rounding whatever the model
        if spread_x <= least or spread_y <= least:
            return math.nan
        return (both - mean_x * mean_y) / math.sqrt(spread_x * spread_y)


def mutual_knn(x: Float[Tensor, "rows d_x"], y: Float[Tensor, "rows_y d_y"], k: int = 10) -> float:
    """Return the mean share of each row's k nearest others that are the same in x and y; chance is k / (rows - 1).

    Near is a large cosine of centred rows. Of equally near rows those that come first are taken.

    Raises:
        ValueError: different numbers of rows, or k not in 1..rows-1.
    """
    n = len(x)
    if n != len(y) or not 1 <= k < n:
        raise ValueError(f"k must lie in 1..rows-1 of the same rows in x and y, got k={k}, {n} and {len(y)} rows.")
    near_x, near_y = _neighbours(x, k), _neighbours(y, k)
    shared = (near_x[:, :, None] == near_y.to(near_x.device)[:, None, :]).sum()
    return float(shared) / (n * k)


def _neighbours(x: Tensor, k: int) -> Tensor:
    """Return the k nearest other rows of each row, [rows k]."""
    units = torch.nn.functional.normalize(x.double() - x.double().mean(0), dim=1)
    found = []
    for places in torch.arange(len(x), device=x.device).split(max(1, PAIR_FLOATS // len(x))):
        near = units[places] @ units.T
        near[torch.arange(len(places)), places] = -torch.inf
        found.append(near.argsort(dim=1, descending=True, stable=True)[:, :k])
    return torch.cat(found)
