"""k-sparse probing: how well do a few latents tell a label, and would as many neurons do?

    the k columns with the largest |mean over positive - mean over negative texts|, chosen on the training part
    logistic regression on these (L2, C = 1)                               measured on the test part

Gurnee et al. 2023, arXiv 2305.01610; settings of SAEBench (Karvonen et al. 2025, arXiv 2503.09532). Columns are divided
by their standard deviation in the training part before the regression, since otherwise the penalty, and so the
accuracy, depends on the unit of each column. Codes may be signed. With more than two labels each is told from all
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from app.studies.pooled import Pooled
    from interp.data.labelled import Labelled

KS = (1, 2, 5)


@dataclass(frozen=True)
class Score:
    """One probe."""

    label: str
    """The label that is told from all others."""
    columns: str
    """`latents` or `neurons` (coordinates of the activation)."""
    k: int | None
    """How many; None is the full probe on all neurons."""
    accuracy: float
    """Share of test texts told right."""
    chosen: tuple[int, ...]
    """The columns, strongest first; empty for the full probe."""


@dataclass(frozen=True)
class SparseProbing:
    """What all probes say."""

    scores: tuple[Score, ...]
    """Each probe."""
    majority: dict[str, float]
    """By label: accuracy of always giving the answer that is commoner in the training part."""
    train: int
    """Texts to train on."""
    test: int
    """Texts to measure on."""

    def mean(self, columns: str, k: int | None) -> float:
        """Return the accuracy of one kind of probe, averaged over labels."""
        found = [score.accuracy for score in self.scores if (score.columns, score.k) == (columns, k)]
        if not found:
            raise ValueError(
                f"There is no probe on {columns} with k={k}; k was {sorted({s.k or 0 for s in self.scores})}."
            )
        return float(np.mean(found))


def strongest(x: NDArray, y: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    """Return the k columns with the largest difference of class means, the first of equals first."""
    from probes.sparse import ranking

    return ranking(x, y.astype(int), "raw_difference")[:k]


def logistic_accuracy(x: NDArray, y: NDArray[np.bool_], train: NDArray[np.bool_]) -> float:
    """Return the test accuracy of a logistic regression on the columns of x."""
    from probes.logistic import LogisticProbe

    return float(LogisticProbe(C=1.0).fit(x[train], y[train]).score(x[~train], y[~train]))


def sparse_probing(
    pooled: Pooled, labelled: Labelled, ks: Sequence[int] = KS, *, test: float = 0.2, seed: int = 0
) -> SparseProbing:
    """Return how well k latents, k neurons and all neurons tell each label.

    Args:
        pooled: the texts' codes and activations (`app.studies.pooled.pool`).
        labelled: the labels, in the same order.
        ks: numbers of columns.
        test: share of the texts that is only measured on; groups are not divided.
        seed: of the division.

    Raises:
        ValueError: k out of range, or as many rows as texts are missing.
    """
    if len(pooled) != len(labelled):
        raise ValueError(f"There are {len(pooled)} rows for {len(labelled)} texts; pool the texts of this set.")
    most = min(pooled.codes.shape[1], pooled.raw.shape[1])
    for k in ks:
        if not 1 <= k <= most:
            raise ValueError(f"k must lie in 1..{most} (latents, neurons), got {k}.")
    train = labelled.split(test, seed)
    columns = {"latents": pooled.codes.double().numpy(), "neurons": pooled.raw.double().numpy()}
    classes = labelled.classes[1:] if len(labelled.classes) == 2 else labelled.classes
    scores, majority = [], {}
    for name in classes:
        y = labelled.is_class(name)
        majority[name] = float((y[~train] == (y[train].mean() > 0.5)).mean())
        for kind, x in columns.items():
            for k in ks:
                chosen = strongest(x[train], y[train], k)
                accuracy = logistic_accuracy(x[:, chosen], y, train)
                scores.append(Score(name, kind, k, accuracy, tuple(chosen.tolist())))
        scores.append(Score(name, "neurons", None, logistic_accuracy(columns["neurons"], y, train), ()))
    return SparseProbing(tuple(scores), majority, int(train.sum()), int((~train).sum()))
