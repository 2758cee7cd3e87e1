"""Transfer: a probe fitted on one set, measured on another, for all pairs of sets.

    fit on the training part of A, measure on the test part of B;   A = B is the ordinary probe

A direction of truth should tell true from false whatever the statements are about, and in denials too (Marks and
Tegmark 2023, arXiv 2310.06824). One division serves all sets: a group (a city) that occurs in several sets is on the
same side in each, else a probe is paid for knowing the city.

    centring "train"    nothing of B but its rows reaches the probe
    centring "each"     each set less its own mean, the published way: the mean of B, test rows included, is used

Where B is balanced "each" puts the threshold right whatever moved; a probe in use does not know that mean. Areas under
the ROC curve do not see a threshold, and do not change. `ccs` is fitted to pairs (a statement and its opposite) without
labels, which choose the sign on A; it takes part where sets hold pairs, standardises the two sides apart, and by "each"
on B's own pairs. Its rows of the table count pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from interp.names import unknown
from probes.base import LinearProbe
from probes.ccs import CCS
from probes.intervals import RESAMPLES, bootstrap, weighted_auroc, weighted_mean
from probes.lda import LDA
from probes.logistic import LogisticProbe
from probes.mass_mean import MassMean
from probes.ridge import RidgeProbe
from probes.rows import check_groups, check_rows
from probes.splits import Split, grouped_split
from probes.study import StudyResult

CENTRINGS = ("train", "each")
PROBES: dict[str, Callable[[], Any]] = {
    "mass_mean": MassMean,
    "mass_mean_whitened": lambda: MassMean(whiten=True),
    "lda": LDA,
    "logistic": LogisticProbe,
    "ridge": RidgeProbe,
    "ccs": CCS,
}
"""What can be transferred, by name."""
CCS_NAME = "ccs"


@dataclass(frozen=True, eq=False)
class TransferSet:
    """Rows of one set."""

    name: str
    """Name of the set."""
    x: Float[np.ndarray, "row d_in"]
    """Activations, at one site and position for all sets."""
    y: NDArray
    """bool [row]: which rows are positive (true)."""
    groups: Sequence[Any]
    """What each row belongs to; equal names are one group in all sets."""
    pairs: Int[np.ndarray, "pair 2"] | None = None
    """Rows of a statement and of its opposite, both of one group, for `ccs`; None: the set has no pairs."""

    def __post_init__(self) -> None:
        """Refuse lengths that differ, labels that are no truth values, and pairs that are none."""
        if not len(self.x) == len(self.y) == len(self.groups):
            raise ValueError(
                f"The set {self.name!r} must have as many rows as labels and groups, got {len(self.x)}, {len(self.y)} "
                f"and {len(self.groups)}."
            )
        if np.asarray(self.y).dtype != bool:
            raise ValueError(f"The labels of {self.name!r} must be truth values, got {np.asarray(self.y).dtype}.")
        if self.pairs is not None:
            _check_pairs(self)


def _check_pairs(held: TransferSet) -> None:
    pairs, of = np.asarray(held.pairs), np.array([str(group) for group in held.groups])
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise ValueError(f"The pairs of {held.name!r} must be [pair, 2] rows, got shape {list(pairs.shape)}.")
    left, right = pairs.T
    wrong = (held.y[left] == held.y[right]) | (of[left] != of[right])
    if wrong.any():
        raise ValueError(
            f"Pair {int(wrong.argmax())} of {held.name!r} is no statement and its opposite of one group "
            f"({int(wrong.sum())} of {len(pairs)} are not)."
        )


def transfer(
    sets: Sequence[TransferSet],
    probes: Sequence[str] = ("mass_mean", "lda", "logistic"),
    *,
    centring: str = "train",
    test: float = 0.4,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> StudyResult:
    """Return how well a probe of each set does on each set.

    Args:
        sets: two or more of one width; one gives the ordinary probe.
        probes: names in `PROBES`.
        centring: `train`, or `each` (uses the test rows' mean; see the module).
        test: share of the rows that is measured on.
        resamples: draws of the bootstrap, over groups of the test part.
        seed: of the division and the bootstrap.

    Returns:
        Table `transfer`: probe, fitted_on, measured_on, centring, accuracy, low, high, auc, auc_low, auc_high,
        majority, n_train, n_test, groups. Table `directions`: probe, first, second, cosine between the two sets'
        directions.

    Raises:
        ValueError: an unknown probe or centring, sets of one name or of several widths, or a set that lacks a class
            in a part.
    """
    _check(sets, probes, centring)
    splits = joint_split(sets, test=test, seed=seed)
    cells: list[dict[str, Any]] = []
    directions: dict[tuple[str, str], NDArray] = {}
    for kind in probes:
        able = [number for number, one in enumerate(sets) if kind != CCS_NAME or one.pairs is not None]
        for here in able:
            fitted, count = _fit(kind, sets[here], splits[here], centring)
            directions[kind, sets[here].name] = _direction(fitted)
            for there in able:
                scores, rows = _scores(kind, fitted, sets[there], splits[there], centring)
                about = {"probe": kind, "fitted_on": sets[here].name, "measured_on": sets[there].name}
                about |= {"centring": centring, "n_train": count}
                cells.append(about | _cell(sets[there], scores, rows, resamples, seed))
    return _result(cells, directions, [one.name for one in sets])


def joint_split(sets: Sequence[TransferSet], *, test: float = 0.4, seed: int = 0) -> list[Split]:
    """Return a division of each set; a group that several sets share is on one side in all of them.

    Raises:
        ValueError: no draw gives both parts of each set both classes.
    """
    kinds = np.concatenate([2 * number + np.asarray(one.y) for number, one in enumerate(sets)])
    groups = np.concatenate([[str(group) for group in one.groups] for one in sets])
    whole = grouped_split(kinds, groups, test=test, seed=seed)
    edges: list[int] = np.cumsum([0, *(len(one.y) for one in sets)]).tolist()
    none = np.zeros(0, dtype=int)
    return [
        Split(_within(whole.train, low, high), none, _within(whole.test, low, high)) for low, high in pairwise(edges)
    ]


def _within(rows: NDArray, low: int, high: int) -> NDArray:
    return rows[(rows >= low) & (rows < high)] - low


def _check(sets: Sequence[TransferSet], probes: Sequence[str], centring: str) -> None:
    if not sets or not probes:
        raise ValueError(f"Transfer needs a set and a probe at least, got {len(sets)} and {len(probes)}.")
    for kind in probes:
        if kind not in PROBES:
            raise ValueError(unknown("probe", kind, PROBES))
    if centring not in CENTRINGS:
        raise ValueError(unknown("centring", centring, CENTRINGS))
    names = [one.name for one in sets]
    if len(set(names)) < len(names):
        raise ValueError(f"Each set needs a name of its own, got {', '.join(names)}.")
    for one in sets:
        check_rows(one.x, one.name, np.shape(sets[0].x)[1])
    if CCS_NAME in probes and all(one.pairs is None for one in sets):
        raise ValueError("ccs is fitted to pairs of a statement and its opposite, and no set has any; leave it out.")


def _rows(held: TransferSet, centring: str) -> Float[np.ndarray, "row d_in"]:
    x = np.asarray(held.x, np.float64)
    return x - x.mean(0) if centring == "each" else x


def _pairs_in(held: TransferSet, rows: Int[np.ndarray, " part"]) -> Int[np.ndarray, "pair 2"]:
    assert held.pairs is not None
    return held.pairs[np.isin(held.pairs[:, 0], rows)]


def _fit(kind: str, held: TransferSet, split: Split, centring: str) -> tuple[BaseEstimator, int]:
    """Return the probe, and how many rows or pairs it was fitted to."""
    probe: Any = PROBES[kind]()
    if kind == CCS_NAME:
        pairs = _pairs_in(held, split.train)
        return probe.fit(np.asarray(held.x)[pairs], held.y[pairs[:, 0]]), len(pairs)
    of = check_groups([str(group) for group in held.groups], len(held.y))
    rows = _rows(held, centring)[split.train]
    return probe.fit(rows, held.y[split.train], of[split.train]), len(rows)


def _scores(kind: str, fitted: Any, held: TransferSet, split: Split, centring: str) -> tuple[NDArray, NDArray]:
    """Return (score, above 0 for true; row) of each row that is measured, or of each pair."""
    if kind != CCS_NAME:
        return fitted.decision_function(_rows(held, centring)[split.test]), split.test
    assert held.pairs is not None
    x = np.asarray(held.x, np.float64)[held.pairs]
    if centring == "each":  # the two sides by the means of this set, and not of the one fitted on
        x = x - x.mean(0) + fitted.mean_
    measured = np.isin(held.pairs[:, 0], split.test)
    return fitted.predict_proba(x[measured])[:, 1] - 0.5, held.pairs[measured, 0]


def _cell(held: TransferSet, scores: NDArray, rows: NDArray, resamples: int, seed: int) -> dict[str, Any]:
    of = [str(held.groups[row]) for row in rows]
    y = held.y[rows]
    drawn = {"resamples": resamples, "seed": seed}
    accuracy = bootstrap(weighted_mean((scores > 0) == y), of, **drawn)
    auc = bootstrap(weighted_auroc(scores, y), of, **drawn)
    return {
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "auc": auc.value,
        "auc_low": auc.low,
        "auc_high": auc.high,
        "majority": float(max(y.mean(), 1 - y.mean())),
        "n_test": len(rows),
        "groups": len(set(of)),
    }


def _direction(fitted: Any) -> NDArray:
    """Return the direction in raw units, of length 1."""
    w = fitted.coef_[0] if isinstance(fitted, LinearProbe) else fitted.coef_ / fitted.scale_.mean(0)
    return w / max(float(np.linalg.norm(w)), np.finfo(float).tiny)


def _result(
    cells: list[dict[str, Any]], directions: dict[tuple[str, str], NDArray], names: Sequence[str]
) -> StudyResult:
    import pyarrow as pa

    cosines = [
        {"probe": kind, "first": name, "second": other, "cosine": float(w @ directions[kind, other])}
        for (kind, name), w in directions.items()
        for other in names
        if (kind, other) in directions and names.index(other) > names.index(name)
    ]
    kinds = [(name, pa.string()) for name in ("probe", "first", "second")] + [("cosine", pa.float64())]
    summary: dict[str, float | None] = {}
    for kind in dict.fromkeys(cell["probe"] for cell in cells):
        own = [c["accuracy"] for c in cells if c["probe"] == kind and c["fitted_on"] == c["measured_on"]]
        other = [c["accuracy"] for c in cells if c["probe"] == kind and c["fitted_on"] != c["measured_on"]]
        summary |= {f"{kind}_own": float(np.mean(own)), f"{kind}_transfer": float(np.mean(other)) if other else None}
    tables = {"transfer": pa.Table.from_pylist(cells), "directions": pa.Table.from_pylist(cosines, pa.schema(kinds))}
    return StudyResult(tables, summary)
