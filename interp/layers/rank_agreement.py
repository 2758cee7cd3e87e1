"""How far measures of importance order layers alike, with intervals over sequences.

Spearman's rho and Kendall's tau-b of a measure and a reference over layers. Both come from the same text, so one draw
of sequences with replacement serves both. `chance` is the share of all orders that agree at least as well: with four
layers a perfect order has a chance of 1/24, so that no measure can be told from luck there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

LEAST = 3
"""Layers below which an order says nothing."""
RESAMPLES = 500
ORDERS = 5040
"""Orders of layers that `chance` looks at: all up to 7 layers, so many random ones of more."""


@dataclass(frozen=True, eq=False)
class Scores:
    """A score of each layer as a ratio of sums over sequences; higher is more important."""

    sums: Float[np.ndarray, "seq layer"]
    """Sums of each sequence; a single row where the score has no text."""
    counts: Float[np.ndarray, " seq"] | None = None
    """What the sums are divided by (tokens); None: the score has no text, and no interval."""

    def values(self, draws: Float[np.ndarray, "draw seq"] | None = None) -> Float[np.ndarray, "draw layer"]:
        """Return the score of each layer, for each draw of sequences (None: all of them once)."""
        if self.counts is None:
            return np.repeat(self.sums[:1], 1 if draws is None else len(draws), 0)
        weights = np.ones((1, len(self.sums))) if draws is None else draws
        with np.errstate(invalid="ignore", divide="ignore"):
            return weights @ self.sums / (weights @ self.counts)[:, None]


@dataclass(frozen=True)
class Agreement:
    """How a measure's order of the layers agrees with the reference's."""

    measure: str
    """The measure."""
    spearman: float
    """Spearman's rho; NaN below three layers or for a constant."""
    spearman_low: float
    """Lower end of the 95 % interval; NaN for one sequence."""
    spearman_high: float
    """Upper end."""
    kendall: float
    """Kendall's tau-b."""
    kendall_low: float
    """Lower end."""
    kendall_high: float
    """Upper end."""
    chance: float
    """Share of all orders of the layers whose rho is no smaller."""


def draw_sequences(sequences: int, resamples: int = RESAMPLES, seed: int = 0) -> Float[np.ndarray, "draw seq"]:
    """Return how often each sequence is drawn in each draw with replacement."""
    drawn = np.random.default_rng(seed).integers(0, sequences, (resamples, sequences))
    return np.stack([np.bincount(row, minlength=sequences) for row in drawn]).astype(float)


def interval(values: Float[np.ndarray, "draw ..."]) -> tuple[np.ndarray, np.ndarray]:
    """Return the 2.5 and 97.5 percentiles over draws, NaN where there is none; draws without a value are left out."""
    finite = np.where(np.isfinite(values), values, np.nan)
    empty = np.isnan(finite).all(0)
    low, high = np.nanquantile(np.where(empty, 0.0, finite), (0.025, 0.975), axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def rank_agreement(
    measures: Mapping[str, Scores], reference: Scores, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Agreement]:
    """Return the agreement of each measure with the reference; both of the same sequences, in the same order.

    Raises:
        ValueError: a measure of other sequences or layers.
    """
    sequences = 1 if reference.counts is None else len(reference.counts)
    draws = draw_sequences(sequences, resamples, seed) if sequences > 1 else None
    whole = reference.values()
    drawn = None if draws is None else reference.values(draws)
    found = []
    for name, scores in measures.items():
        if scores.sums.shape[1] != whole.shape[1] or (scores.counts is not None and len(scores.counts) != sequences):
            raise ValueError(
                f"{name} must score {whole.shape[1]} layers on {sequences} sequences, as the reference does, got "
                f"{scores.sums.shape[1]} layers and {len(scores.sums)} sequences."
            )
        mine = scores.values()
        rho, tau = float(spearman(mine, whole)[0]), float(kendall(mine, whole)[0])
        ends = [math.nan] * 4
        if draws is not None and drawn is not None:
            again = scores.values(draws)
            ends = [float(end) for one in (spearman, kendall) for end in interval(one(again, drawn))]
        found.append(Agreement(name, rho, ends[0], ends[1], tau, ends[2], ends[3], chance(mine[0], whole[0])))
    return found


def spearman(x: Float[np.ndarray, "draw layer"], y: Float[np.ndarray, "draw layer"]) -> Float[np.ndarray, " draw"]:
    """Return Spearman's rho of each row; NaN for a constant, a value that is no number, or fewer than three layers."""
    from scipy.stats import rankdata

    if x.shape[1] < LEAST:
        return np.full(len(x), np.nan)
    a, b = (rankdata(v, axis=1) - (v.shape[1] + 1) / 2 for v in (x, y))
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    bad = (size == 0) | ~np.isfinite(x).all(1) | ~np.isfinite(y).all(1)
    return np.where(bad, np.nan, (a * b).sum(1) / np.where(size == 0, 1, size))


def kendall(x: Float[np.ndarray, "draw layer"], y: Float[np.ndarray, "draw layer"]) -> Float[np.ndarray, " draw"]:
    """Return Kendall's tau-b of each row; NaN as in `spearman`."""
    if x.shape[1] < LEAST:
        return np.full(len(x), np.nan)
    i, j = np.triu_indices(x.shape[1], 1)
    a, b = (np.sign(v[:, i] - v[:, j]) for v in (x, y))
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    bad = ~(size > 0) | ~np.isfinite(x).all(1) | ~np.isfinite(y).all(1)
    return np.where(bad, np.nan, (a * b).sum(1) / np.where(bad, 1, size))


def chance(x: Float[np.ndarray, " layer"], y: Float[np.ndarray, " layer"], seed: int = 0) -> float:
    """Return the share of orders of x whose Spearman's rho with y is no smaller than that of x; NaN without one."""
    own = float(spearman(x[None], y[None])[0])
    if math.isnan(own):
        return math.nan
    if math.factorial(len(x)) <= ORDERS:
        orders = np.array(list(itertools.permutations(range(len(x)))))
    else:
        rng = np.random.default_rng(seed)
        orders = np.stack([rng.permutation(len(x)) for _ in range(ORDERS)])
    all_of_them = spearman(x[orders], np.repeat(y[None], len(orders), 0))
    return float((all_of_them >= own - 1e-12).mean())
