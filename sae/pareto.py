"""Dictionaries side by side at the L0 they have: the Pareto front, and each rule's curve read off at one L0.

A rule's k is not its L0, so numbers are compared along the curve of its runs: linear in log L0 between neighbours, and
never beyond the ends.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.names import unknown

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.runs import Run

BETTER_HIGH = frozenset({"ce_recovered_mean", "ce_recovered_zero", "mcc", "f1"})
"""Metrics of which more is better; of all others less is."""

KEPT = ("fvu", "ce_delta", "ce_recovered_mean", "kl", "dead_share")


def pareto(evaluations: Sequence[Run], metric: str = "fvu") -> pa.Table:
    """Return one row for each evaluation, by rule and L0.

    Args:
        evaluations: finished runs of kind "evaluation"; the dictionary's run must be beside them.
        metric: of the evaluation's summary, for the front.

    Returns:
        A table with run, sae_run, site, rule, d_sae, seed, l0, the usual metrics (null where a run has none) and front:
        whether no other run of that site has at most its L0 and a better value.

    Raises:
        ValueError: a run is no finished evaluation, or has no such metric.
    """
    import pyarrow as pa

    from interp.runs import open_run

    rows: list[dict[str, Any]] = []
    for run in evaluations:
        if run.kind != "evaluation" or not run.finished:
            raise ValueError(f"{run.ref} is no finished evaluation; make one with `mechscope evaluate`.")
        if metric not in run.summary:
            raise ValueError(unknown(f"metric of {run.ref}:", metric, run.summary))
        trained = open_run(run.config["sae_run"], run.root)
        sae = trained.config["sae"]
        row = {"run": run.ref, "sae_run": trained.ref, "site": run.config["site"], "rule": sae["rule"]}
        row |= {"d_sae": sae["d_sae"], "seed": trained.info.get("seed", 0), "l0": run.summary["l0"]}
        rows.append(row | {name: run.summary.get(name) for name in dict.fromkeys((*KEPT, metric))})
    rows.sort(key=lambda row: (row["site"], row["rule"], row["d_sae"], row["seed"], row["l0"]))
    for row in rows:
        rivals = [one for one in rows if one["site"] == row["site"] and one["l0"] <= row["l0"]]
        row["front"] = not any(_better(one[metric], row[metric], metric) for one in rivals)
    return pa.Table.from_pylist(rows)


def at_l0(points: pa.Table, l0: Sequence[float], metric: str = "fvu") -> pa.Table:
    """Return what each rule reaches at each L0, read off its curves.

    Args:
        points: with columns site, rule, d_sae, seed, l0 and the metric, as `pareto` returns.
        l0: where to read.
        metric: column to read.

    Returns:
        A table with site, rule, d_sae, l0, value (mean over the seeds whose curve reaches that L0, null where none
        does), low and high (their range), seeds (how many they are).

    Raises:
        ValueError: there is no such column, or an L0 is not above 0.
    """
    import pyarrow as pa

    if metric not in points.column_names:
        raise ValueError(unknown("column", metric, points.column_names))
    if any(not (value > 0 and math.isfinite(value)) for value in l0):
        raise ValueError(f"Each L0 must be above 0 and finite, got {list(l0)}.")
    curves: dict[tuple[str, str, int], dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in points.to_pylist():
        value = row[metric]
        if row["l0"] and row["l0"] > 0 and value is not None and math.isfinite(value):
            curves[row["site"], row["rule"], row["d_sae"]][row["seed"]].append((math.log(row["l0"]), value))
    rows = []
    for (site, rule, d_sae), seeds in sorted(curves.items()):
        for wanted in l0:
            read = (_read(sorted(curve), math.log(wanted)) for curve in seeds.values())
            values = [value for value in read if value is not None]
            row = {"site": site, "rule": rule, "d_sae": d_sae, "l0": float(wanted)}
            row |= {"value": sum(values) / len(values) if values else None, "low": min(values, default=None)}
            rows.append(row | {"high": max(values, default=None), "seeds": len(values)})
    return pa.Table.from_pylist(rows, schema=_schema(pa))


def _schema(pa: Any) -> Any:
    text, number = pa.string(), pa.float64()
    types = (text, text, pa.int64(), number, number, number, number, pa.int64())
    names = ("site", "rule", "d_sae", "l0", "value", "low", "high", "seeds")
    return pa.schema(list(zip(names, types, strict=True)))


def _better(a: float | None, b: float | None, metric: str) -> bool:
    """Return whether `a` is a better value than `b`; a missing one never is, and always loses."""
    if a is None or not math.isfinite(a):
        return False
    return b is None or not math.isfinite(b) or (a > b if metric in BETTER_HIGH else a < b)


def _read(curve: list[tuple[float, float]], at: float) -> float | None:
    """Return the value of a curve of sorted points at `at`, linear between neighbours, None outside."""
    for place, value in curve:
        if math.isclose(place, at, abs_tol=1e-9):
            return value
    for (left, before), (right, after) in itertools.pairwise(curve):
        if left < at < right:
            return before + (after - before) * (at - left) / (right - left)
    return None
