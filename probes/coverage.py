"""How well single columns (latents, neurons) stand for labels, each as a threshold: coverage and reconstruction.

    F1(column, theta, label)  of the guess  "label"  where  column > theta * (largest value of the column)
    coverage        = mean over labels of F1 of the column and threshold that are best
    reconstruction  = mean over rows of F1 between the row's labels and those that some precise column claims

Karvonen et al. 2024, "Measuring Progress in Dictionary Learning for Language Model Interpretability with Board Game
Models", arXiv 2408.00113: thresholds 0, 0.1, ..., 0.9; a column is precise for a label where it is right at least 95 %
of at least 10 times. Columns and thresholds are chosen on some rows and scored on others here, since the best of
thousands of choices is good by chance on the rows it was chosen on.

A label that most rows have is covered by whatever is always on: F1 = 2 p / (1 + p). `always_on` is that row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from probes.rows import check_finite

THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(10))
"""Shares of a column's largest value."""
PRECISION = 0.95
TIMES = 10
Columns = Float[np.ndarray, "_ _"]
"""[row column]; misfits are refused with a sentence."""
Labels = Bool[np.ndarray, "_ _"]
"""[row label]."""


@dataclass(frozen=True, eq=False)
class Coverage:
    """What single columns say of labels on rows that they were not chosen on."""

    column: Int[np.ndarray, " label"]
    """The column chosen for each label."""
    threshold: Float[np.ndarray, " label"]
    """Its threshold, as a share of its largest value."""
    f1: Float[np.ndarray, " label"]
    """F1 of that on the other rows; NaN for a label that none of these has."""
    precise: Int[np.ndarray, " label"]
    """Columns that are precise for each label at some threshold."""
    reconstruction: Float[np.ndarray, " row"]
    """F1 of what precise columns claim, for each of the other rows."""

    def mean(self, labels: Bool[np.ndarray, " label"] | None = None) -> float:
        """Return the coverage: mean F1 over labels (all, or some of them) that occur."""
        held = self.f1 if labels is None else self.f1[labels]
        return float(np.nanmean(held)) if np.isfinite(held).any() else float("nan")


def coverage(choose: Columns, choose_labels: Labels, test: Columns, test_labels: Labels) -> Coverage:
    """Return how well the best column of each label stands for it.

    Args:
        choose: columns [row, column] on the rows that column and threshold are chosen on.
        choose_labels: labels of these rows, bool [row, label].
        test: the same columns on other rows.
        test_labels: labels of these.

    Raises:
        ValueError: shapes that do not fit, no rows, or NaN.
    """
    _check(choose, choose_labels, test, test_labels)
    peak = choose.max(0)
    wanted = choose_labels.astype(np.float32)
    best = np.full(choose_labels.shape[1], -1.0)
    column, threshold = np.zeros(len(best), dtype=int), np.zeros(len(best))
    claimed = np.zeros(test_labels.shape, dtype=bool)
    precise = np.zeros((choose.shape[1], len(best)), dtype=bool)
    for share in THRESHOLDS:
        on = _on(choose, share, peak)
        fires = on.sum(0)
        hits = on.T @ wanted
        f1 = 2 * hits / np.maximum(fires[:, None] + wanted.sum(0), 1)
        here = f1.argmax(0)
        value = f1[here, np.arange(len(best))]
        better = value > best
        best[better], column[better], threshold[better] = value[better], here[better], share
        sure = (fires[:, None] >= TIMES) & (hits >= PRECISION * fires[:, None])
        precise |= sure
        claimed |= _on(test, share, peak) @ sure.astype(np.float32) > 0
    chosen = test[:, column] > threshold * peak[column]
    return Coverage(column, threshold, f1_score(chosen, test_labels, 0), precise.sum(0), f1_score(claimed, test_labels))


def always_on(labels: Labels) -> Float[np.ndarray, " label"]:
    """Return F1 of a guess that every row has the label; NaN where none has."""
    return f1_score(np.ones_like(labels), labels, 0)


def f1_score(guess: Labels, labels: Labels, axis: int = 1) -> Float[np.ndarray, " kept"]:
    """Return F1 = 2 hits / (guessed + true) along an axis; NaN where nothing is true, so nothing was to be found."""
    hits, size = (guess & labels).sum(axis), guess.sum(axis) + labels.sum(axis)
    return np.where(labels.any(axis), 2 * hits / np.maximum(size, 1), np.nan)


def _on(columns: Columns, share: float, peak: Float[np.ndarray, " column"]) -> Float[np.ndarray, "row column"]:
    """Return where each column is above a share of its peak; a column that is never positive is never on."""
    return ((columns > share * peak) & (peak > 0)).astype(np.float32)


def _check(choose: Columns, choose_labels: Labels, test: Columns, test_labels: Labels) -> None:
    for name, columns, labels in (("choose", choose, choose_labels), ("test", test, test_labels)):
        if columns.ndim != 2 or labels.ndim != 2 or len(columns) != len(labels) or 0 in columns.shape:
            raise ValueError(
                f"{name} must be columns [row, column] and labels [row, label] of the same rows, got "
                f"{list(columns.shape)} and {list(labels.shape)}."
            )
        check_finite(columns, name)
    if choose.shape[1] != test.shape[1] or choose_labels.shape[1] != test_labels.shape[1]:
        raise ValueError(
            f"Both parts need the same columns and labels, got {choose.shape[1]} and {test.shape[1]} columns, "
            f"{choose_labels.shape[1]} and {test_labels.shape[1]} labels."
        )
