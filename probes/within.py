"""Area under the ROC curve among rows of one stratum only: what a column tells beyond the stratum.

    AUROC_within = sum_s n1_s n0_s AUROC_s / sum_s n1_s n0_s        over strata s with both classes

the chance that a positive row scores above a negative one of the same stratum. Late in a game more squares are occupied
and more discs are stable: a latent that counts moves has a large AUROC for them, and 0.5 within a move.
`stratum_only` is the AUROC of the stratum's number itself, in the better direction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from probes.roc import auroc
from probes.rows import check_groups


def auroc_within(scores: Any, labels: Bool[np.ndarray, "row label"], strata: Any) -> Float[np.ndarray, "column label"]:
    """Return the area of each column against each label among rows of one stratum; NaN where no stratum has both.

    Args:
        scores: [row, column], an array or a scipy sparse matrix.
        labels: bool [row, label].
        strata: what each row belongs to, such as its move number.

    Raises:
        ValueError: as `probes.roc.auroc`, or not one stratum for each row.
    """
    of = check_groups(strata, len(labels))
    rows: Any = sparse.csr_array(scores) if sparse.issparse(scores) else np.asarray(scores)
    total: Any = 0.0
    pairs = np.zeros(labels.shape[1])
    for stratum in range(int(of.max()) + 1):
        here = np.flatnonzero(of == stratum)
        marks = labels[here]
        ups = marks.sum(0).astype(float)
        weight = ups * (len(here) - ups)
        some = weight > 0
        if not some.any():
            continue
        areas = np.zeros((rows.shape[1], labels.shape[1]))
        areas[:, some] = auroc(rows[here], marks[:, some])
        total, pairs = total + areas * weight, pairs + weight
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.broadcast_to(total, (rows.shape[1], len(pairs))) / np.where(pairs > 0, pairs, np.nan)


def stratum_only(strata: Int[np.ndarray, " row"], labels: Bool[np.ndarray, "row label"]) -> Float[np.ndarray, " label"]:
    """Return the area of the stratum's number against each label, in the better direction."""
    areas = auroc(np.asarray(strata, dtype=float), labels)[0]
    return np.maximum(areas, 1 - areas)
