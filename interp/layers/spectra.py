"""Spectra of weight matrices: the heavy-tail exponent alpha, with and without windows of one shape; ranks.

Of the eigenvalues l_1 <= .. <= l_N of W W^T (squared singular values), with the tail from l_i on, k = N - i + 1,

    alpha = 1 + k / sum_{j >= i} ln(l_j / l_i)               (Hill; Martin, Mahoney and others)

    xmin_mid    the tail is the upper half of the eigenvalues
    xmin_peak   it starts where the fit is closest (Kolmogorov-Smirnov), at most at 1.5 times the peak of the density
    ks          it starts where the fit is closest, anywhere

A small alpha is a heavy tail and is read as a well trained matrix. Trap: alpha also grows with the matrix's aspect
ratio, 2.1 to 6 for random ones. FARMS (Hu et al. 2025) pools the eigenvalues of windows of one shape and fits once.

    stable_rank   sum l / max l            effective_rank   exp(entropy of singular values / their sum)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.layers.geometry import effective_rank
from interp.layers.weights import BlockMatrix
from interp.names import unknown

RULES = ("xmin_mid", "xmin_peak", "ks")
"""Rules for where the tail starts."""
LEAST_VALUES = 5
"""Fewer eigenvalues have no alpha."""
_BINS = 100


@dataclass(frozen=True)
class Farms:
    """Windows of one aspect ratio, on a regular grid over the matrix (its shorter side as rows)."""

    rows: int = 100
    """Rows of a window; a matrix that has fewer gives smaller windows of the same aspect ratio."""
    aspect: int = 2
    """Columns of a window for each row."""
    per_side: int = 10
    """Windows along each side at most; places that coincide count once."""

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("aspect", 1), ("per_side", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Spectrum:
    """What the spectrum of one matrix says."""

    alpha: float
    """Heavy-tail exponent of the whole matrix; NaN with fewer than 5 eigenvalues."""
    alpha_windows: float
    """The same, pooled over windows of one shape."""
    alpha_hat: float
    """alpha · log10 of the largest eigenvalue."""
    spectral_norm: float
    """Largest singular value."""
    stable_rank: float
    """Squared Frobenius over squared spectral norm."""
    effective_rank: float
    """Exponential of the entropy of the singular values."""
    numbers: int
    """Entries of the matrix."""


def spectrum(matrix: Float[Tensor, "out in"], rule: str = "xmin_mid", farms: Farms | None = None) -> Spectrum:
    """Return what the spectrum of a weight matrix says, in float64.

    Raises:
        ValueError: the matrix is not finite, or nobody knows the rule.
    """
    if not torch.isfinite(matrix).all():
        raise ValueError("The spectrum of a matrix needs finite weights, got NaN or infinity.")
    values = singular_values(matrix)
    alpha, largest = tail_exponent(values.square(), rule), float(values.max())
    pooled = torch.cat([singular_values(window).square() for window in windows(matrix, farms or Farms())])
    return Spectrum(
        alpha=alpha,
        alpha_windows=tail_exponent(pooled, rule),
        alpha_hat=alpha * math.log10(largest**2) if largest > 0 else math.nan,
        spectral_norm=largest,
        stable_rank=float(values.square().sum()) / largest**2 if largest > 0 else math.nan,
        effective_rank=effective_rank(values),
        numbers=matrix.numel(),
    )


def spectra_rows(
    matrices: Iterator[BlockMatrix], rule: str = "xmin_mid", farms: Farms | None = None
) -> list[dict[str, float | str]]:
    """Return a row for each matrix: `layer`, `name`, and the fields of its `Spectrum`."""
    return [{"layer": one.layer, "name": one.name, **vars(spectrum(one.matrix, rule, farms))} for one in matrices]


def singular_values(matrix: Float[Tensor, "out in"]) -> Float[Tensor, " n"]:
    """Return the singular values in descending order, in float64; those that rounding alone explains are 0."""
    found = torch.linalg.svdvals(matrix.detach().double())
    least = found[0] * max(matrix.shape) * torch.finfo(found.dtype).eps
    return torch.where(found > least, found, 0.0)


def windows(matrix: Float[Tensor, "out in"], farms: Farms) -> Iterator[Float[Tensor, "rows columns"]]:
    """Yield the windows; the shape of all is `rows` x `rows` · `aspect`, smaller where the matrix is."""
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    high, wide = matrix.shape
    rows = max(1, min(farms.rows, high, wide // farms.aspect))
    columns = min(rows * farms.aspect, wide)
    for top in _places(high - rows, farms.per_side):
        for left in _places(wide - columns, farms.per_side):
            yield matrix[top : top + rows, left : left + columns]


def _places(room: int, count: int) -> list[int]:
    step = max(1, room // (count - 1))
    return sorted({min(i * step, room) for i in range(count)})


def tail_exponent(values: Float[Tensor, " n"], rule: str = "xmin_mid", *, fix_bound: bool = True) -> float:
    """Return alpha of eigenvalues in any order; those that are 0 do not count. NaN where it is not defined.

    Args:
        values: eigenvalues.
        rule: where the tail starts, one of `RULES`.
        fix_bound: of `xmin_peak`: True starts the search at 0.95 times the peak; False is the published code, which
            compares a logarithm with an eigenvalue there and so searches from the smallest on.

    Raises:
        ValueError: nobody knows the rule.
    """
    if rule not in RULES:
        raise ValueError(unknown("rule for the tail", rule, RULES))
    values = values.double()[values > 0].sort().values
    n = len(values)
    if n < LEAST_VALUES:
        return math.nan
    if rule == "xmin_mid":
        return hill(values, n // 2)
    starts = range(n - 1)
    if rule == "xmin_peak":
        low, high = _around_peak(values, fix_bound)
        starts = [i for i, value in enumerate(values[:-1].tolist()) if low <= value <= high]
    fits = [(distance(values, i, alpha), alpha) for i in starts if 1 < (alpha := hill(values, i)) < math.inf]
    return min(fits)[1] if fits else math.nan


def _around_peak(values: Tensor, fix_bound: bool) -> tuple[float, float]:
    """Return the smallest and largest start of the tail that `xmin_peak` tries."""
    logs = values.log10()
    span = float(logs[-1] - logs[0])
    counts = torch.histc(logs, _BINS)
    peak = 10 ** (float(logs[0]) + int(counts.argmax()) * span / _BINS)
    return (0.95 * peak if fix_bound else math.log10(0.95 * peak)), 1.5 * peak


def hill(values: Float[Tensor, " n"], start: int) -> float:
    """Return alpha of ascending eigenvalues with the tail from index `start` on; NaN where the tail is one value."""
    tail = values[start:].log()
    total = float((tail - tail[0]).sum())
    return 1 + len(tail) / total if total > 0 else math.nan


def distance(values: Float[Tensor, " n"], start: int, alpha: float) -> float:
    """Return the Kolmogorov-Smirnov distance of the tail from the power law."""
    tail = values[start:]
    empirical = torch.arange(len(tail), dtype=torch.float64, device=tail.device) / len(tail)
    return float((1 - (tail / tail[0]) ** (1 - alpha) - empirical).abs().max())
