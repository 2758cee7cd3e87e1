"""Curves over layers compared: the mean step from layer to layer, and the relative difference of two data sets.

    MAD = mean over l of |s_{l+1} - s_l|        RD = mean over l of |s1_l - s2_l| / |s1_l|

(Li, Li and Zhou 2024). Thirds are layers 0.., L // 3.., 2 (L // 3)..; the published splits of some depths differ.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from interp.layers.gradients import LOSSES, SHAPES, SIZES, LayerGradients

THIRDS = ("early", "middle", "late")
LEAST = 1e-10
"""What a denominator of 0 becomes in a relative difference, as published."""


class Difference(NamedTuple):
    """How far a second curve is from a first."""

    mean: float
    """Mean over layers of |first - second| / |first|."""
    each: Float[Tensor, " layer"]
    """The same of each layer."""
    top: list[int]
    """The five layers that differ most, largest first."""


def mean_step(curve: Float[Tensor, "layer ..."]) -> dict[str, Tensor]:
    """Return the mean |step| between neighbouring layers: `all`, and within the thirds; NaN in a third of one layer."""
    third = len(curve) // 3
    bounds = (0, third, 2 * third, len(curve))
    parts = {name: curve[bounds[i] : bounds[i + 1]] for i, name in enumerate(THIRDS)}
    return {name: part.diff(dim=0).abs().mean(0) for name, part in ({"all": curve} | parts).items()}


def relative_difference(one: Float[Tensor, " layer"], other: Float[Tensor, " layers"]) -> Difference:
    """Return how far `other` is from `one`, relative to `one`: it is not symmetric.

    Raises:
        ValueError: curves of different lengths.
    """
    if one.shape != other.shape:
        raise ValueError(f"Curves must have equally many layers, got {len(one)} and {len(other)}.")
    each = (one - other).abs() / one.abs().clamp_min(LEAST)
    return Difference(float(each.mean()), each, each.argsort(descending=True)[:5].tolist())


def contrast(one: LayerGradients, other: LayerGradients) -> list[dict[str, float | str]]:
    """Return a row for each matrix, measure and loss: `first`, `second` (means over layers) and `difference` (RD).

    Read `sum` beside `mean`, and rows of examples of matched lengths beside those of all: what only one of them shows
    is the length of the answers.
    """
    rows: list[dict[str, float | str]] = []
    for measure in (*SIZES, *SHAPES):
        for loss in LOSSES if measure in SIZES else LOSSES[:1]:
            first, second = one.curve(measure, loss), other.curve(measure, loss)
            for i, name in enumerate(one.names):
                a, b = first[:, i], second[:, i]
                row: dict[str, float | str] = {"name": name, "measure": measure, "loss": loss}
                row |= {"first": float(a.nanmean()), "second": float(b.nanmean())}
                rows.append(row | {"difference": relative_difference(a, b).mean})
    return rows
