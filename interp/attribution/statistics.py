"""How two series of scores agree: correlation and signs, with rounding told from effects."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

NOTICED = 1e-6
"""What is below this, of the largest, is rounding and counts as 0 where ranks or signs are compared."""
FLAT = 1e-6
"""Values that differ by less than this, of the largest, are a constant."""
LEAST_CELLS = 3
"""Cells below which a correlation says nothing."""


def quiet(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """Return the values with 0 in the place of what is rounding beside the largest."""
    return np.where(np.abs(values) > NOTICED * np.abs(values).max(initial=0.0), values, 0.0)


def sign_agreement(scores: Float[np.ndarray, " cell"], effects: Float[np.ndarray, " cell"]) -> float | None:
    """Return the share of cells with an effect whose score has its sign; None where there is no effect."""
    scores, effects = quiet(scores), quiet(effects)
    there = effects != 0
    return float((np.sign(scores[there]) == np.sign(effects[there])).mean()) if there.any() else None


def correlation(
    scores: Float[np.ndarray, " cell"], effects: Float[np.ndarray, " cell"], ranks: bool = False
) -> float | None:
    """Return Pearson's correlation, or Spearman's of `ranks`; None for fewer than three cells or a constant.

    A constant that float32 has rounded is one too: its rounding correlates with anything.
    """
    from scipy.stats import pearsonr, spearmanr

    if len(scores) < LEAST_CELLS or any(np.ptp(x) <= FLAT * np.abs(x).max() for x in (scores, effects)):
        return None
    found: Any = spearmanr(quiet(scores), quiet(effects)) if ranks else pearsonr(scores, effects)
    return float(found.statistic)
