"""Dictionaries side by side at the L0 they have: the Pareto front, and each rule's curve read off at one L0.

A rule's k is not its L0, so numbers are compared along the curve of its runs: linear in log L0 between neighbours, and
never beyond the ends. One curve is one rule with one number of latents, trained on one number of tokens; what differs
along it are numbers (k, a coefficient). Repeats under other seeds are curves of their own, and their range is the
interval.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.config import digest
from interp.names import unknown

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.runs import Run

BETTER_HIGH = frozenset({"ce_recovered_mean", "ce_recovered_zero", "mcc", "f1"})
"""Metrics of which more is better; of all others less is."""

KEPT = ("fvu", "ce_delta", "ce_recovered_mean", "kl", "dead_share")
CURVE = ("site", "rule", "variant", "d_sae", "trained")
"""Columns that are the same along one curve."""


def pareto(runs: Sequence[Run], metric: str = "fvu", *, dictionaries: Sequence[Run] = ()) -> pa.Table:
    """Return one row for each run, by rule and L0.

    Args:
        runs: finished runs of kind "evaluation", whose dictionary must be beside them; or of kind "sae", dictionaries
            that were not evaluated, of which the numbers at the end of training are taken.
        metric: of the runs' summaries, for the front.
        dictionaries: runs of kind "sae" that are open already; others are looked for beside the evaluations.

    Returns:
        A table with run, sae_run, site, rule, variant (arguments of the rule that are no numbers), args (all of them),
        d_sae, trained (tokens, null where that is not known), seed, repeat (the same for runs that differ in the seed
        only), l0, the usual metrics (null where a run has none) and front: whether no other run of that site has at
        most its L0 and a better value.

    Raises:
        ValueError: a run is of another kind, not finished or without an L0, or an evaluation has no such metric.
    """
    import pyarrow as pa

    trained = _dictionaries(runs, dictionaries)
    rows: list[dict[str, Any]] = []
    for run in runs:
        if run.kind not in ("evaluation", "sae") or not run.finished or "l0" not in run.summary:
            raise ValueError(f"{run.ref} is no finished evaluation; make one with `mechscope evaluate`.")
        if metric not in run.summary and (run.kind == "evaluation" or metric not in KEPT):
            raise ValueError(unknown(f"metric of {run.ref}:", metric, run.summary))
        row = {"run": run.ref} | about(trained[run.ref]) | {"l0": run.summary["l0"]}
        rows.append(row | {name: run.summary.get(name) for name in dict.fromkeys((*KEPT, metric))})
    rows.sort(key=lambda row: (row["site"], row["rule"], row["d_sae"], row["seed"], row["l0"] or 0.0))
    for row in rows:
        rivals = [one for one in rows if one["site"] == row["site"] and _sparser(one["l0"], row["l0"])]
        row["front"] = row["l0"] is not None and not any(_better(one[metric], row[metric], metric) for one in rivals)
    return pa.Table.from_pylist(rows)


def about(trained: Run) -> dict[str, Any]:
    """Return what `pareto` says of a dictionary, whatever was measured: sae_run, site, ..., repeat."""
    sae, train = trained.config["sae"], dict(trained.config.get("train") or {})
    seed = train.pop("seed", 0)
    arguments: Mapping[str, Any] = sae.get("rule_args") or {}
    words = {key: value for key, value in arguments.items() if isinstance(value, bool | str)}
    return {
        "sae_run": trained.ref,
        "site": trained.config["site"],
        "rule": sae["rule"],
        "variant": _text({key: value for key, value in words.items() if value is not False}),
        "args": _text(arguments),
        "d_sae": sae["d_sae"],
        "trained": trained.summary.get("tokens"),
        "seed": trained.info.get("seed", seed),
        "repeat": digest({"sae": sae, "train": train, "trained": trained.summary.get("tokens")})[:8],
    }


def _text(arguments: Mapping[str, Any]) -> str:
    return ", ".join(key if value is True else f"{key} {value}" for key, value in arguments.items())


def _dictionaries(runs: Sequence[Run], given: Sequence[Run]) -> dict[str, Run]:
    """Return {ref of a run: the dictionary that it measured}; a folder is read once, not once for each."""
    from interp.runs import find_runs, open_run

    known = {run.ref: run for run in (*runs, *given)}
    wanted = {run.ref: run.config.get("sae_run") or next(iter(run.parents), run.ref) for run in runs}
    wanted |= {run.ref: run.ref for run in runs if run.kind == "sae"}
    for root in {run.root for run in runs if wanted[run.ref] not in known}:
        known |= {run.ref: run for run in find_runs(root, kind="sae")}
    return {run.ref: known.get(wanted[run.ref]) or open_run(wanted[run.ref], run.root) for run in runs}


def at_l0(points: pa.Table, l0: Sequence[float], metric: str = "fvu") -> pa.Table:
    """Return what each rule reaches at each L0, read off its curves.

    Args:
        points: with columns seed, l0, the metric and those of `CURVE` (variant and trained may be missing), as `pareto`
            returns.
        l0: where to read.
        metric: column to read.

    Returns:
        A table with site, rule, d_sae, l0, value (mean over the seeds whose curve reaches that L0, null where none
        does), low and high (their range), seeds (how many they are), variant, trained.

    Raises:
        ValueError: there is no such column, or an L0 is not above 0.
    """
    import pyarrow as pa

    if metric not in points.column_names:
        raise ValueError(unknown("column", metric, points.column_names))
    if any(not (value > 0 and math.isfinite(value)) for value in l0):
        raise ValueError(f"Each L0 must be above 0 and finite, got {list(l0)}.")
    curves: dict[tuple[Any, ...], dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in points.to_pylist():
        value = row[metric]
        if row["l0"] and row["l0"] > 0 and value is not None and math.isfinite(value):
            curves[curve_of(row)][row["seed"]].append((math.log(row["l0"]), value))
    rows = []
    for key, seeds in sorted(curves.items(), key=lambda item: [str(part) for part in item[0]]):
        for wanted in l0:
            read = (_read(sorted(curve), math.log(wanted)) for curve in seeds.values())
            values = [value for value in read if value is not None]
            row = dict(zip(CURVE, key, strict=True)) | {"l0": float(wanted), "seeds": len(values)}
            row |= {"value": sum(values) / len(values) if values else None, "low": min(values, default=None)}
            rows.append(row | {"high": max(values, default=None)})
    return pa.Table.from_pylist(rows, schema=_schema(pa))


def curve_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what names the curve of a row of `pareto` or `at_l0`: its values of `CURVE`."""
    return tuple(row.get(name) or "" if name == "variant" else row.get(name) for name in CURVE)


def _schema(pa: Any) -> Any:
    text, number, whole = pa.string(), pa.float64(), pa.int64()
    types = (text, text, whole, number, number, number, number, whole, text, whole)
    names = ("site", "rule", "d_sae", "l0", "value", "low", "high", "seeds", "variant", "trained")
    return pa.schema(list(zip(names, types, strict=True)))


def _sparser(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and a <= b


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
