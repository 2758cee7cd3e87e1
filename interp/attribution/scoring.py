"""How right an attribution is: its scores against a known circuit, or against measured effects.

Over the cells of a kind, with scores s, the set C of cells in the circuit and true effects e,

    relevance mass    sum over C of |s| / sum of |s|                                      (Arras et al. 2022)
    rank accuracy     share of C among the |C| cells with the largest |s|                 (Arras et al. 2022)
    AUROC             chance that a cell of C has a larger |s| than one outside of it
    sign agreement    share of cells with e != 0 whose score has the sign of e
    Pearson, Spearman of s and e;   error: mean |s - e| / mean |e|

Where several cells have the same |s|, rank accuracy counts what drawing among them gives on average, so that an
attribution of zeros has the share of the circuit, not more. Scores a millionth of the largest are rounding: for ranks
and signs they are 0. What cannot be said (one class only, no effects, a
constant) is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from interp.attribution.agreement import paired
from interp.attribution.result import CELL, Attribution
from interp.attribution.statistics import correlation, quiet, sign_agreement

if TYPE_CHECKING:
    import pyarrow as pa

MEASURES = (
    "relevance_mass", "rank_accuracy", "auroc", "pearson", "spearman", "sign_agreement", "error",
)  # fmt: skip
"""What the tables have a column of."""


def relevance_mass(scores: Float[np.ndarray, " cell"], circuit: Bool[np.ndarray, " cell"]) -> float | None:
    """Return the share of the absolute scores that lies on the circuit; None where all scores are 0."""
    total = float(np.abs(scores).sum())
    return float(np.abs(scores[circuit]).sum()) / total if total > 0 else None


def rank_accuracy(scores: Float[np.ndarray, " cell"], circuit: Bool[np.ndarray, " cell"]) -> float | None:
    """Return the share of the circuit among as many cells of the largest scores; None for an empty circuit."""
    n = int(circuit.sum())
    if n == 0:
        return None
    size = np.abs(quiet(scores))
    cutoff = np.sort(size)[-n]
    above, equal = size > cutoff, size == cutoff
    drawn = (n - int(above.sum())) * float(circuit[equal].mean())
    return (float(circuit[above].sum()) + drawn) / n


def auroc(scores: Float[np.ndarray, " cell"], circuit: Bool[np.ndarray, " cell"]) -> float | None:
    """Return the area under the ROC curve of |scores|; None where all cells are in the circuit, or none is."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(circuit, np.abs(quiet(scores)))) if 0 < circuit.sum() < len(circuit) else None


def against_truth(found: Attribution, truth: pa.Table) -> pa.Table:
    """Return how `found` compares with a truth, kind by kind.

    Args:
        found: the attribution.
        truth: a table of cells with `in_circuit` and `effect` (null where it is not known), as of a compiled model or
            of `PublishedCircuit.truth`.

    Returns:
        A table: kind (and `all` for the cells of all kinds together, if there are several), cells (number), circuit
        (number of them in the circuit), and `MEASURES`.

    Raises:
        ValueError: a cell of `found` is not in the truth (the truth is of another model, or of other parts), or a
            score is not finite.
    """
    known = {tuple(row[name] for name in CELL): row for row in truth.to_pylist()}
    groups: dict[str, list[tuple[float, bool, float | None]]] = {}
    for row in found.nodes.to_pylist():
        cell = tuple(row[name] for name in CELL)
        if cell not in known:
            where = ", ".join(f"{name} {value}" for name, value in zip(CELL, cell, strict=True) if value is not None)
            raise ValueError(
                f"The truth says nothing of the cell {where}. It must be of the same model and task, and the "
                "attribution by the same parts."
            )
        groups.setdefault(row["kind"], []).append((row["score"], known[cell]["in_circuit"], known[cell]["effect"]))
    if len(groups) > 1:
        groups["all"] = [entry for entries in groups.values() for entry in entries]
    return _table({kind: _measures(entries, found.method) for kind, entries in groups.items()})


def _measures(entries: list[tuple[float, bool, float | None]], method: str) -> dict[str, Any]:
    """Return a row of the table for cells (score, in circuit, effect)."""
    scores, circuit = np.array([entry[0] for entry in entries], float), np.array([entry[1] for entry in entries], bool)
    _check_finite(scores, method)
    row: dict[str, Any] = {
        "cells": len(entries),
        "circuit": int(circuit.sum()),
        "relevance_mass": relevance_mass(scores, circuit),
        "rank_accuracy": rank_accuracy(scores, circuit),
        "auroc": auroc(scores, circuit),
    }
    if all(entry[2] is not None for entry in entries):
        row |= _agreement(scores, np.array([entry[2] for entry in entries], float))
    return row


def _agreement(scores: Float[np.ndarray, " cell"], effects: Float[np.ndarray, " cell"]) -> dict[str, float | None]:
    """Return the columns that need effects."""
    size = float(np.abs(effects).mean()) if len(effects) else 0.0
    return {
        "pearson": correlation(scores, effects, ranks=False),
        "spearman": correlation(scores, effects, ranks=True),
        "sign_agreement": sign_agreement(scores, effects),
        "error": float(np.abs(scores - effects).mean()) / size if size > 0 else None,
    }


def against_measured(found: Attribution, measured: Attribution | None = None) -> pa.Table:
    """Return how `found` compares with measured effects, kind by kind.

    Args:
        found: the attribution.
        measured: a map of patching; finer cells of one side are added up to the coarser ones of the other. None takes
            the column `measured` of `found`, which may hold only the cells that were checked.

    Returns:
        A table like that of `against_truth`; what needs a circuit is null, and `circuit` is 0.

    Raises:
        ValueError: the two share no cell, or a score is not finite.
    """
    groups: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for kind in found.kinds:
        if measured is None:
            rows = found.of(kind)
            scores = rows["score"].to_numpy()
            effects = np.array([np.nan if value is None else value for value in rows["measured"].to_pylist()], float)
            there = np.isfinite(effects)
            groups[kind] = (scores[there], effects[there])
        elif kind in measured.kinds:
            groups[kind] = paired(found, measured, kind)[:2]
    groups = {kind: both for kind, both in groups.items() if len(both[0])}
    if not groups:
        raise ValueError(f"No cell of {found.method} has a measured effect to be compared with.")
    rows = {}
    for kind, (scores, effects) in groups.items():
        _check_finite(scores, found.method)
        rows[kind] = {"cells": len(scores), "circuit": 0, **_agreement(scores, effects)}
    return _table(rows)


def _check_finite(scores: np.ndarray, method: str) -> None:
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores of {method} are not finite.")


def _table(rows: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Return the rows by kind as a table, with null where a measure cannot be said."""
    import pyarrow as pa

    schema = {"kind": pa.string(), "cells": pa.int32(), "circuit": pa.int32()}
    schema |= {name: pa.float64() for name in MEASURES}
    return pa.Table.from_pylist([{"kind": kind, **row} for kind, row in rows.items()], pa.schema(schema))


def completeness_gap(found: Attribution) -> dict[str, float]:
    """Return {kind: largest |gap| of its completeness over the size of what was to be explained}.

    Where the total is 0 in every row of a kind, the gap itself is returned.
    """
    worst: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for row in found.completeness.to_pylist():
        worst[row["kind"]] = max(worst.get(row["kind"], 0.0), abs(row["gap"]))
        sizes[row["kind"]] = max(sizes.get(row["kind"], 0.0), abs(row["total"]))
    return {kind: gap / sizes[kind] if sizes[kind] > 0 else gap for kind, gap in worst.items()}
