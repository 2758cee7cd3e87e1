"""Bootstrap intervals over groups: rows of one text, game or city are drawn together.

A statistic is a function of how often each row is drawn; groups are drawn with replacement, and the interval holds the
middle `level` of its values (Efron 1979, percentiles). Drawing rows where groups matter makes intervals too narrow.
Differences between two probes are paired: one draw serves both (`bootstrap` of their difference).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from probes.rows import check_groups

RESAMPLES = 1000
LEVEL = 0.95
Weights = Float[np.ndarray, " row"]


@dataclass(frozen=True)
class Interval:
    """A number and what it may be."""

    value: float
    """The statistic on all rows."""
    low: float
    """Lower end; NaN where there is no interval (a single group)."""
    high: float
    """Upper end."""

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def bootstrap(
    statistic: Callable[[Weights], float],
    groups: Any,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Return the interval of a statistic over groups drawn with replacement.

    Args:
        statistic: of the weights of the rows: how often each is drawn; NaN where it is not defined for a draw.
        groups: what each row belongs to, one for each row.
        resamples: number of draws.
        level: share of the draws within the interval.
        seed: of the draws.

    Raises:
        ValueError: a level or a number of draws out of range.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must lie between 0 and 1 and resamples be 1 or more, got {level} and {resamples}.")
    of = check_groups(groups, len(groups))
    n = int(of.max()) + 1
    value = float(statistic(np.ones(len(of))))
    if n < 2:  # one group says nothing about how groups differ
        return Interval(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(_draw(rng, n)[of]) for _ in range(resamples)])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return Interval(value, float(low), float(high))


def _draw(rng: np.random.Generator, n: int) -> Weights:
    return np.bincount(rng.integers(0, n, n), minlength=n).astype(float)


def weighted_mean(values: Shaped[np.ndarray, " row"]) -> Callable[[Weights], float]:
    """Return the mean of `values` as a statistic: accuracy, where they say which rows are right."""
    held = values.astype(float)

    def mean(weights: Weights) -> float:
        total = weights.sum()
        return float(weights @ held / total) if total else float("nan")

    return mean


def weighted_balanced(right: Bool[np.ndarray, " row"], codes: Int[np.ndarray, " row"]) -> Callable[[Weights], float]:
    """Return balanced accuracy as a statistic: the mean over classes of the share of its rows that are right."""
    classes = int(codes.max()) + 1

    def balanced(weights: Weights) -> float:
        total = np.bincount(codes, weights, classes)
        hits = np.bincount(codes, weights * right, classes)
        # A class that a draw has no row of cannot be averaged over.
        return float((hits / total).mean()) if (total > 0).all() else float("nan")

    return balanced


def weighted_auroc(scores: Float[np.ndarray, " row"], positive: Bool[np.ndarray, " row"]) -> Callable[[Weights], float]:
    """Return the area under the ROC curve as a statistic; rows with equal scores count a half. One sort serves all."""
    _, level = np.unique(scores, return_inverse=True)

    def area(weights: Weights) -> float:
        ups = np.bincount(level, weights * positive)
        downs = np.bincount(level, weights * ~positive)
        if not ups.sum() or not downs.sum():
            return float("nan")
        below = np.cumsum(downs) - downs
        return float(ups @ (below + downs / 2) / (ups.sum() * downs.sum()))

    return area
