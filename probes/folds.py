"""Choosing a penalty: folds that keep groups whole and classes even, and the mean log-likelihood left out.

The score is the log-likelihood of held-out rows. Accuracy and AUC tie at 1 for whole ranges of penalties where classes
separate, and the first of equals would then be chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from sklearn.model_selection import StratifiedGroupKFold


def folds(
    codes: Int[np.ndarray, " row"], groups: Int[np.ndarray, " row"], count: int, seed: int = 0
) -> list[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]]:
    """Return `count` pairs (rows to fit on, rows to measure on); no group is on both sides of a pair.

    Args:
        codes: class of each row, 0..k-1.
        groups: what each row belongs to.
        count: number of folds, from 2 on.
        seed: of the draw.

    Raises:
        ValueError: fewer rows or groups of a class than folds.
    """
    if count < 2:
        raise ValueError(f"Folds must be 2 or more, got {count}.")
    for code in range(int(codes.max()) + 1):
        here = codes == code
        rows, sets = int(here.sum()), len(np.unique(groups[here]))
        if sets < count:
            raise ValueError(
                f"{count} folds need {count} groups of each class, class number {code} has {sets} ({rows} rows). "
                "Give more rows, fewer folds, or a fixed penalty instead of a choice."
            )
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    found = list(splitter.split(codes, codes, groups))
    for train, _ in found:
        if len(np.unique(codes[train])) < codes.max() + 1:
            raise ValueError(
                f"With {len(np.unique(groups))} groups a fold of {count} leaves no row of some class to fit on. "
                "Give more groups, fewer folds, or a fixed penalty."
            )
    return found


def choose(
    grid: Sequence[float],
    fit: Callable[[Int[np.ndarray, " _"], float], Callable[[Int[np.ndarray, " _"]], float]],
    parts: Sequence[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]],
) -> tuple[float, Float[np.ndarray, " penalty"]]:
    """Return (best value of the grid, mean score of each): the first of equals.

    Args:
        grid: values to try.
        fit: fits on some rows with one value; what it returns scores other rows, higher is better.
        parts: the folds.
    """
    if not len(grid):
        raise ValueError("The grid of penalties is empty; give one value at least.")
    scores = np.array([np.mean([fit(train, value)(test) for train, test in parts]) for value in grid])
    return float(grid[int(scores.argmax())]), scores
