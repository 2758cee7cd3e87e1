"""What a probe has to beat: labels and features that are made from nothing the model knows.

    majority            always the class that is commonest among the rows fitted on
    shuffled labels     the same rows with labels exchanged at random: what fitting alone gives
    control task        each type (word, position, input) has one random label, drawn from the labels' frequencies;
                        selectivity = accuracy - accuracy on the control task
    bag of tokens       how often each token occurs in the text: what needs no model
    position only       where the row stands in its text
    random weights      the same rows of a model that has learned nothing
                        (`interp.attribution.randomisation.randomised(handle)` shuffles each weight)

Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks", arXiv 1909.03368. The control task is for
labels that belong to types. A probe with as many parameters as rows learns any labels; then selectivity is near 0,
whatever the accuracy. Of published OthelloGPT a linear probe for black, white and empty reads 76 %, of a random model
73 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from probes.base import BaseProbe
from probes.rows import array, check_groups, check_labels
from probes.splits import Split

MOST_TOKENS = 2048
"""Columns of a bag of tokens: those of the commonest tokens."""


def majority(y: Any, split: Split) -> float:
    """Return the accuracy, on the test part, of the class that is commonest in the training part."""
    labels = array(y, "y")
    classes, codes = check_labels(labels, len(labels))
    commonest = np.bincount(codes[split.train], minlength=len(classes)).argmax()
    return float((codes[split.test] == commonest).mean())


def shuffled_labels(y: Any, *, groups: Any = None, seed: int = 0) -> NDArray:
    """Return the labels exchanged at random between rows.

    With groups in which all rows have one label, whole groups exchange theirs: else the rows of a group, which are
    alike, would each be told something else, and the control would be harder than the task.

    Args:
        y: label of each row.
        groups: what each row belongs to.
        seed: of the exchange.
    """
    labels = array(y, "y")
    rng = np.random.default_rng(seed)
    of = check_groups(groups, len(labels))
    _, first = np.unique(of, return_index=True)
    if (labels == labels[first][of]).all():
        return labels[first][rng.permutation(len(first))][of]
    return labels[rng.permutation(len(labels))]


def control_task(types: Any, y: Any, *, seed: int = 0) -> NDArray:
    """Return a control task: each type's label, drawn once from the frequencies of y, for each of its rows.

    Args:
        types: what each row is of: token id, word, position, input.
        y: label of each row.
        seed: of the draw.

    Raises:
        ValueError: not one type for each label, or all drawn labels are one (too few types).
    """
    labels = array(y, "y")
    of = check_groups(types, len(labels))
    rng = np.random.default_rng(seed)
    drawn = labels[rng.integers(0, len(labels), of.max() + 1)][of]
    if len(np.unique(drawn)) < 2:
        raise ValueError(
            f"The control task drew one label for all {of.max() + 1} types; it needs more types, or another seed."
        )
    return drawn


def selectivity(
    probe: BaseProbe, x: Any, y: Any, types: Any, split: Split, *, groups: Any = None, seed: int = 0
) -> tuple[float, float]:
    """Return (selectivity, accuracy on the control task); the probe is cloned and fitted to both.

    A type must occur on both sides, else its random label cannot be known: the rows are divided by `split` as they
    are. With a split by types the accuracy on the control task is chance.

    Args:
        probe: the estimator; its own fit is left alone.
        x: activations [row, d_in].
        y: label of each row.
        types: what each row is of.
        split: the division.
        groups: what each row belongs to, for the folds that choose a penalty.
        seed: of the control task.
    """
    rows, labels = array(x, "x"), array(y, "y")
    control = control_task(types, labels, seed=seed)
    task, other = (_accuracy(probe, rows, one, split, groups) for one in (labels, control))
    return task - other, other


def _accuracy(probe: BaseProbe, x: NDArray, y: NDArray, split: Split, groups: Any) -> float:
    of = None if groups is None else check_groups(groups, len(y))[split.train]
    fitted = probe.fresh().fit(x[split.train], y[split.train], of)
    return float((fitted.predict(x[split.test]) == y[split.test]).mean())


def bag_of_tokens(
    tokens: Sequence[Any], train: Int[np.ndarray, " train"] | None = None, most: int = MOST_TOKENS
) -> Float[np.ndarray, "text token"]:
    """Return how often each text has each of the `most` commonest tokens.

    Args:
        tokens: ids of each text, of any lengths.
        train: texts whose tokens are counted to find the commonest (None: all).
        most: columns at most.

    Raises:
        ValueError: no tokens at all.
    """
    ids = [array(one, "tokens").astype(np.int64).ravel() for one in tokens]
    counted = np.concatenate([ids[i] for i in (range(len(ids)) if train is None else train)] or [np.zeros(0, np.int64)])
    if not len(counted):
        raise ValueError("There are no tokens to count; give the ids of each text.")
    names, counts = np.unique(counted, return_counts=True)
    names = np.sort(names[np.argsort(-counts, kind="stable")[:most]])
    found = np.zeros((len(ids), len(names)))
    for row, one in enumerate(ids):
        place = np.searchsorted(names, one).clip(max=len(names) - 1)
        np.add.at(found[row], place[names[place] == one], 1)
    return found


def position_only(positions: Any, train: Int[np.ndarray, " train"] | None = None) -> Float[np.ndarray, "row position"]:
    """Return a column for each position, 1 where the row stands there: any function of the position is linear in it.

    Args:
        positions: where each row stands, whole numbers.
        train: rows whose positions have columns (None: all); others are 0 everywhere.
    """
    where = array(positions, "positions")
    if where.ndim != 1 or where.dtype.kind not in "iu":
        raise ValueError(f"positions must be whole numbers [row], got {where.dtype} {list(where.shape)}.")
    return (where[:, None] == np.unique(where if train is None else where[train])).astype(float)
