"""Area under the ROC curve by mid-ranks, of many columns against many labels at once.

    AUROC = (sum of the ranks of positive rows - n1 (n1 + 1) / 2) / (n1 n0),   ties have their mean rank

The chance that a positive row has the larger score, ties counted half (Mann and Whitney 1947). Codes of dictionaries
are 0 almost everywhere: the rows of value 0 share one rank, so that only the others are sorted, and with the rank of 0
subtracted the sum is a sparse product. Dense columns come in blocks. A sorting that gives ties the order of their rows
is wrong by as much as the rows are ordered by label. The sign matters: 0.2 is as strong as 0.8, backwards.

The largest area over many columns is large by chance: `max_null` is what shuffled labels give.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import sparse

from interp.types import SparseCode
from probes.rows import array, check_finite, check_groups

Columns = Any
"""Scores by column: an array, or a `scipy.sparse.csc_array` (whose stubs hide what it can do)."""
BLOCK_FLOATS = 1 << 22
"""Numbers of a dense block of ranks (32 MiB in float64; ranking takes about five times that)."""


def auroc(scores: Any, labels: Any) -> Float[np.ndarray, "column label"]:
    """Return the area of each column against each label; NaN for a label that all rows have, or none.

    Args:
        scores: [row, column], an array or a scipy sparse matrix; [row] is taken as one column.
        labels: bool [row, label]; [row] is taken as one label.

    Raises:
        ValueError: shapes that do not fit, labels that are not truth values, NaN.
    """
    columns, marks = _columns(scores), _labels(labels)
    if columns.shape[0] != len(marks):
        raise ValueError(f"There are {columns.shape[0]} rows of scores and {len(marks)} of labels; give one for each.")
    return _areas(columns, marks)


def _columns(scores: Any) -> Columns:
    if sparse.issparse(scores):
        held: Any = sparse.csc_array(scores, copy=True)  # adding up duplicates would change the caller's
        held.sum_duplicates()
        flags = np.zeros((held.shape[0], 1))
        flags[held.indices[~np.isfinite(held.data)]] = np.nan
        check_finite(flags, "scores")
        return held
    held = array(scores, "scores")
    held = held[:, None] if held.ndim == 1 else held
    if held.ndim != 2 or 0 in held.shape:
        raise ValueError(f"scores must be [row, column], got shape {list(held.shape)}.")
    check_finite(held, "scores")
    return held


def _labels(labels: Any) -> Bool[np.ndarray, "row label"]:
    marks = array(labels, "labels")
    marks = marks[:, None] if marks.ndim == 1 else marks
    if marks.ndim != 2 or marks.dtype != bool:
        raise ValueError(f"labels must be truth values [row, label], got {marks.dtype} {list(marks.shape)}.")
    return marks


def _areas(columns: Columns, marks: Bool[np.ndarray, "row label"]) -> NDArray:
    n, ups = len(marks), marks.sum(0).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        # With ranks counted from their mean, (n + 1) / 2, chance is a sum of 0.
        scale = np.where(ups * (n - ups) > 0, 1 / (ups * (n - ups)), np.nan)
    weights = marks.astype(float)
    return np.concatenate([0.5 + sums(weights) * scale for sums in _rank_sums(columns)])


class _Block:
    """Ranks of a block of columns, less their mean; called with weights [row label] it gives their sums."""

    def __init__(self, ranks: Columns, rest: NDArray | None = None) -> None:
        self.ranks, self.rest = ranks, rest

    def __call__(self, weights: NDArray) -> NDArray:
        sums = np.asarray(self.ranks.T @ weights)
        return sums if self.rest is None else sums + self.rest[:, None] * weights.sum(0)


def _rank_sums(columns: Columns) -> Iterator[_Block]:
    """Yield the ranks in blocks of columns."""
    from scipy.stats import rankdata

    n, middle = columns.shape[0], (columns.shape[0] + 1) / 2
    if not sparse.issparse(columns):
        width = max(1, BLOCK_FLOATS // max(1, n))
        for start in range(0, columns.shape[1], width):
            yield _Block(rankdata(columns[:, start : start + width], axis=0) - middle)
        return
    ranks = np.empty(columns.nnz)
    silent = np.zeros(columns.shape[1])
    for column in range(columns.shape[1]):
        here = slice(columns.indptr[column], columns.indptr[column + 1])
        values = columns.data[here]
        zeros = n - int((values != 0).sum())
        below = int((values < 0).sum())
        silent[column] = below + (zeros + 1) / 2 - middle
        own = np.zeros(len(values))
        some = values != 0
        own[some] = rankdata(values[some]) + np.where(values[some] > 0, zeros, 0) - middle
        ranks[here] = np.where(some, own - silent[column], 0.0)
    yield _Block(sparse.csc_array((ranks, columns.indices, columns.indptr), columns.shape), silent)


def max_null(
    scores: Any, labels: Any, *, draws: int = 20, groups: Any = None, seed: int = 0
) -> Float[np.ndarray, "draw label"]:
    """Return, for each draw and label, the largest area over the columns when the labels are shuffled.

    Labels of a row stay together. With groups, whole groups exchange their labels, row by row, so that what labels
    owe to the place within a group (a game's move number) stays: groups must then be equally long.

    Args:
        scores: as in `auroc`.
        labels: as in `auroc`.
        draws: number of shufflings.
        groups: what each row belongs to.
        seed: of the draws.

    Raises:
        ValueError: as `auroc`, or groups of different lengths.
    """
    columns, marks = _columns(scores), _labels(labels)
    if columns.shape[0] != len(marks):
        raise ValueError(f"There are {columns.shape[0]} rows of scores and {len(marks)} of labels; give one for each.")
    orders = [_shuffled(groups, len(marks), np.random.default_rng((seed, draw))) for draw in range(draws)]
    found = np.full((draws, marks.shape[1]), -np.inf)
    n, ups = len(marks), marks.sum(0).astype(float)
    scale = np.where(ups * (n - ups) > 0, 1 / np.maximum(ups * (n - ups), 1), np.nan)
    for sums in _rank_sums(columns):  # a block's ranks serve all draws
        for draw, order in enumerate(orders):
            areas = 0.5 + sums(marks[order].astype(float)) * scale
            found[draw] = np.maximum(found[draw], areas.max(0))
    return found


def _shuffled(groups: Any, n: int, rng: np.random.Generator) -> Int[np.ndarray, " row"]:
    if groups is None:
        return rng.permutation(n)
    of = check_groups(groups, n)
    sizes = np.bincount(of)
    if sizes.min() != sizes.max():
        raise ValueError(
            f"Groups can exchange their labels only if they are equally long, got {sizes.min()} to {sizes.max()} rows. "
            "Cut them to one length, or shuffle rows (groups=None)."
        )
    rows = np.argsort(of, kind="stable").reshape(len(sizes), -1)
    order = np.empty(n, dtype=int)
    order[rows.ravel()] = rows[rng.permutation(len(sizes))].ravel()
    return order


class AurocStream:
    """Areas of a dictionary's latents against labels, gathered batch by batch: only what is active is kept.

    Memory is 12 bytes for each active latent of each row, and one for each row and label.
    """

    def __init__(self, d_sae: int, n_labels: int) -> None:
        self.d_sae = d_sae
        self.n_labels = n_labels
        self._rows: list[NDArray] = []
        self._columns: list[NDArray] = []
        self._values: list[NDArray] = []
        self._labels: list[NDArray] = []
        self._seen = 0

    def add(self, code: SparseCode, labels: Any) -> None:
        """Add the rows of a code (`interp.types.SparseCode`) with their labels, bool [row, label].

        Raises:
            ValueError: not one row of labels for each row of the code, or not as many labels as were announced.
        """
        marks = _labels(labels)
        indices, values = array(code.indices, "indices"), array(code.values, "values")
        if code.pointers is None:
            rows = np.repeat(np.arange(len(indices)), indices.shape[1])
            count = len(indices)
        else:
            pointers = array(code.pointers, "pointers")
            rows, count = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers)), len(pointers) - 1
        if marks.shape != (count, self.n_labels):
            raise ValueError(f"labels must be [{count}, {self.n_labels}] for this code, got {list(marks.shape)}.")
        active = values.ravel() != 0
        self._rows.append((rows[active] + self._seen).astype(np.int32))
        self._columns.append(indices.ravel()[active].astype(np.int32))
        self._values.append(values.ravel()[active].astype(np.float32))
        self._labels.append(marks)
        self._seen += count

    def columns(self) -> sparse.csc_array:
        """Return the codes so far, [row, latent]."""
        if not self._seen:
            raise ValueError("No rows were added; call add(code, labels) first.")
        parts = (np.concatenate(self._values), (np.concatenate(self._rows), np.concatenate(self._columns)))
        return sparse.csc_array(parts, (self._seen, self.d_sae))

    @property
    def labels(self) -> Bool[np.ndarray, "row label"]:
        """The labels so far."""
        return np.concatenate(self._labels)

    def finish(self) -> Float[np.ndarray, "latent label"]:
        """Return the area of each latent against each label; a latent that is never active has 0.5."""
        return auroc(self.columns(), self.labels)
