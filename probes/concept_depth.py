"""Concept Depth: from which layer on a label can be read off, and what noise and compression do to that.

With a_i the accuracy of a probe at layer i = 0..d-1 of d, and the variation rate alpha_i = a_i / a_{i-1},

    jumping point      J = min{ i/d : alpha_i >= 1.1 }
    converging point   C = min{ i/d : |alpha_j - 1| < 0.03 for all j > i },   as it is meant: from there on it is flat
                       max{ i/d : |alpha_i - 1| < 0.03 },                     as it is written

Jin et al. 2025, "Exploring Concept Depth" (COLING). Where there is none it is None, and never 0 or d: a curve that
starts high has no jump, one that still moves at the last layer has not converged, and one that is flat from the first
layer on has nothing to converge from. The thresholds are in the accuracy itself, so that noise of 3 % moves C; read it
with the interval of `depth_intervals`, whose draws are of whole groups and serve all layers.

Noise puts "aaa" or "bbb", as a fair coin falls, before each text. Of a compressed copy the probe is fitted anew; the
difference of two areas under the ROC curve is drawn in pairs, on the same test texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from probes.intervals import RESAMPLES, Interval, Weights, bootstrap
from probes.report import area
from probes.sweep import RANDOM, Spot, Sweep

if TYPE_CHECKING:
    import pyarrow as pa

RISE, FLAT = 1.1, 0.03
"""The variation rate of a jump, and how far from 1 it may be where a curve is flat."""
LETTERS = ("a", "b")
ORIGINAL = "original"
"""What the model without noise and recipe is called."""


@dataclass(frozen=True)
class Depth:
    """Where a curve over layers rises and settles, as shares of the depth; None where it does not."""

    jump: float | None
    """J, the first rise by a tenth."""
    converging: float | None
    """C as it is meant: from there on it is flat."""
    converging_literal: float | None
    """C as it is written: the last layer that hardly differs from the one before."""
    best_layer: int
    """The layer with the largest value, the first of equals."""


def variation_rates(curve: Sequence[float] | NDArray) -> Float[np.ndarray, " rate"]:
    """Return a_i / a_{i-1} for i = 1..d-1.

    Raises:
        ValueError: fewer than two layers, or values that are no accuracies above 0.
    """
    values = np.asarray(curve, float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"A depth needs a value for each of 2 layers or more, got shape {list(values.shape)}.")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"Values over the layers must be above 0, got {values.tolist()}.")
    return values[1:] / values[:-1]


def jump(curve: Sequence[float] | NDArray, rise: float = RISE) -> float | None:
    """Return the jumping point as a share of the depth; None where the curve never rises so much at once."""
    found = np.flatnonzero(variation_rates(curve) >= rise)
    return float(found[0] + 1) / len(curve) if len(found) else None


def converging(curve: Sequence[float] | NDArray, flat: float = FLAT) -> float | None:
    """Return the smallest i/d after which all rates are within `flat` of 1.

    None where the last rate is not, and where all are: then there is nothing to converge from.
    """
    moving = np.flatnonzero(np.abs(variation_rates(curve) - 1) >= flat)
    last = int(moving[-1]) + 1 if len(moving) else 0
    return last / len(curve) if 0 < last < len(curve) - 1 else None


def converging_literal(curve: Sequence[float] | NDArray, flat: float = FLAT) -> float | None:
    """Return the largest i/d whose rate is within `flat` of 1; None where none is."""
    found = np.flatnonzero(np.abs(variation_rates(curve) - 1) < flat)
    return float(found[-1] + 1) / len(curve) if len(found) else None


def depth(curve: Sequence[float] | NDArray, rise: float = RISE, flat: float = FLAT) -> Depth:
    """Return where a curve of one value for each layer rises and settles."""
    best = int(np.argmax(np.asarray(curve)))
    return Depth(jump(curve, rise), converging(curve, flat), converging_literal(curve, flat), best)


def noisy(texts: Sequence[str], seed: int = 0) -> list[str]:
    """Return the texts with "aaa " or "bbb " before each, as a fair coin falls."""
    coins = np.random.default_rng(seed).integers(0, len(LETTERS), len(texts))
    return [f"{3 * LETTERS[coin]} {text}" for coin, text in zip(coins, texts, strict=True)]


def curve_of(found: Sweep, kind: str | None = None, position: str | None = None) -> Float[np.ndarray, " layer"]:
    """Return the accuracy of each layer at one kind of site and position."""
    return np.array([found.reports[spot].accuracy.value for spot in found.spots(kind, position)])


def depth_intervals(
    found: Sweep, kind: str | None = None, position: str | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[Interval, float]]:
    """Return {jump, converging: (its interval, share of the draws in which there is one)}.

    The interval is over the draws that have one; the value is NaN where the curve itself has none.
    """
    right = _right(found, found.spots(kind, position))
    of = found.groups[found.split.test]
    result = {}
    for name, point in (("jump", jump), ("converging", converging)):
        there: list[bool] = []

        def statistic(weights: Weights, point: Callable = point, there: list[bool] = there) -> float:
            curve = right @ weights / weights.sum()
            place = point(curve) if (curve > 0).all() else None
            there.append(place is not None)
            return math.nan if place is None else place

        interval = bootstrap(statistic, of, resamples=resamples, seed=seed)
        result[name] = (interval, float(np.mean(there[1:])) if there[1:] else math.nan)  # the first is of all rows
    return result


def _right(found: Sweep, spots: Sequence[Spot]) -> NDArray:
    """Return 1 where the probe of a spot is right about a test text, else 0: [spot test]."""
    labels = found.labels[found.split.test]
    rows = []
    for spot in spots:
        scores, classes = found.scores[spot], found.probes[spot].classes_
        guess = classes[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]
        rows.append(guess == labels)
    return np.array(rows, float)


def auc_drop(a: Sweep, b: Sweep, spot: Spot, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return AUC(a) - AUC(b) at one spot with its paired interval: each draw of groups serves both.

    Raises:
        ValueError: the two were measured on different divisions, or of other labels.
    """
    if a.split.digest != b.split.digest or not np.array_equal(a.labels, b.labels):
        raise ValueError("Two sweeps are compared text by text: measure both with one split of the same texts.")
    codes = np.unique(a.labels, return_inverse=True)[1][a.split.test]
    first, second = (area(one.scores[spot], codes) for one in (a, b))
    return bootstrap(
        lambda weights: first(weights) - second(weights), a.groups[a.split.test], resamples=resamples, seed=seed
    )


@dataclass(frozen=True)
class DepthStudy:
    """Depths of one model under noise and compression."""

    layers: pa.Table
    """A row for each variant, kind of site, position and layer."""
    depths: pa.Table
    """A row for each variant, kind of site and position: J, C, intervals, the layer of the best AUC and its shift."""


def concept_depth(variants: Mapping[str, Sweep], *, resamples: int = RESAMPLES, seed: int = 0) -> DepthStudy:
    """Return the depth of each variant, and what it loses against the first one.

    Args:
        variants: sweeps by name, the original first; all of one division.
        resamples: draws of the bootstraps.
        seed: of the bootstraps.

    Returns:
        `layers`: variant, site, kind, layer, position, accuracy, low, high, auc, auc_low, auc_high, random_weights,
        auc_drop, auc_drop_low, auc_drop_high (null for the original). `depths`: variant, kind, position, layers, jump,
        converging, converging_literal, jump_low, jump_high, jump_share, converging_low, ..., best_auc, best_auc_layer,
        best_layer_shift, auc_drop_mean.
    """
    import pyarrow as pa

    first = next(iter(variants.values()))
    pairs = list(dict.fromkeys((spot.kind, spot.position) for spot in first.reports))
    layers: list[dict[str, Any]] = []
    depths: list[dict[str, Any]] = []
    for name, found in variants.items():
        for kind, position in pairs:
            spots = found.spots(kind, position)
            rows = [_layer_row(name, spot, first, found, resamples, seed) for spot in spots]
            layers += rows
            if len(spots) > 1:
                depths.append(_depth_row(name, rows, first, found, resamples, seed))
    return DepthStudy(pa.Table.from_pylist(layers), pa.Table.from_pylist(depths))


def _layer_row(name: str, spot: Spot, first: Sweep, found: Sweep, resamples: int, seed: int) -> dict[str, Any]:
    report = found.reports[spot]
    row = {"variant": name, "site": spot.site, "kind": spot.kind, "layer": spot.layer, "position": spot.position}
    for prefix, one in (("accuracy", report.accuracy), ("auc", report.auc)):
        row |= {prefix: one.value, f"{prefix}_low": one.low, f"{prefix}_high": one.high}
    row["random_weights"] = report.baselines.get(RANDOM)
    drop = None if found is first else auc_drop(first, found, spot, resamples=resamples, seed=seed)
    ends = ("", "_low", "_high")
    values = (None, None, None) if drop is None else (drop.value, drop.low, drop.high)
    return row | {f"auc_drop{end}": value for end, value in zip(ends, values, strict=True)}


def _depth_row(
    name: str, rows: Sequence[dict[str, Any]], first: Sweep, found: Sweep, resamples: int, seed: int
) -> dict[str, Any]:
    kind, position = rows[0]["kind"], rows[0]["position"]
    row = {"variant": name, "kind": kind, "position": position, "layers": len(rows)}
    row |= asdict(depth([one["accuracy"] for one in rows]))
    for point, (interval, share) in depth_intervals(found, kind, position, resamples=resamples, seed=seed).items():
        row |= {f"{point}_low": interval.low, f"{point}_high": interval.high, f"{point}_share": share}
    areas = [one["auc"] for one in rows]
    before = [first.reports[spot].auc.value for spot in first.spots(kind, position)]
    drops = [one["auc_drop"] for one in rows if one["auc_drop"] is not None]
    best = int(np.argmax(areas))
    return row | {
        "best_auc": areas[best],
        "best_auc_layer": rows[best]["layer"],
        "best_layer_shift": rows[best]["layer"] - first.spots(kind, position)[int(np.argmax(before))].layer,
        "auc_drop_mean": float(np.mean(drops)) if drops else None,
    }
