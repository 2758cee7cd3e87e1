"""What the cells of a sweep found: the records while it runs, one table at its end, and the front among two metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from interp.config import from_json
from interp.names import nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.runs import Run

RECORDS, RESULTS, ABOUT = "cells.json", "results.parquet", "sweep.json"
"""Files in the run of a sweep: the records as they come, the table, and what the file said."""

LARGER_IS_BETTER = ("ce_recovered", "train/rows_per_s")
"""Beginnings of the metrics that are good when they are large; of all others the smaller is better."""


@dataclass(frozen=True)
class Record:
    """One cell."""

    index: int
    """Its number in the sweep, from 0."""
    id: str
    """The first 8 digits of the hash of its parameters."""
    parameters: Mapping[str, Any]
    """What it was given."""
    status: str = "waiting"
    """"waiting", "finished" or "failed"."""
    seconds: float | None = None
    """How long it took, 0 where it was found finished."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """What it measured."""
    runs: Mapping[str, str] = field(default_factory=dict)
    """{kind: ref} of the runs it made."""
    error: str | None = None
    """Why it failed."""

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Axis:
    """A metric and which way is better."""

    name: str
    """The metric."""
    larger: bool = False
    """Whether larger is better."""

    def cost(self, record: Record) -> float:
        """Return the metric so that smaller is better; NaN where the cell has none."""
        value = record.metrics.get(self.name)
        if value is None or not math.isfinite(value):
            return math.nan
        return -value if self.larger else value


def read_records(run: Run) -> list[Record]:
    """Return the records of a sweep's run.

    Raises:
        ValueError: there are none, or they are not what this version writes.
    """
    return [from_json(Record, entry, f"{run.ref}/{RECORDS}") for entry in run.json(RECORDS)]


def axis(text: str) -> Axis:
    """Return the axis that `text` names: a metric, or `metric:min` and `metric:max`.

    Raises:
        ValueError: something else stands after the colon.
    """
    name, colon, goal = text.partition(":")
    if colon and goal not in ("min", "max"):
        raise ValueError(f"A metric is given as NAME, NAME:min or NAME:max, got {text!r}.")
    return Axis(name, goal == "max" if colon else name.startswith(LARGER_IS_BETTER))


def front(records: Sequence[Record], x: Axis, y: Axis) -> set[int]:
    """Return the indices of the cells that no other cell beats: none is as good in both and better in one."""
    points = [(x.cost(r), y.cost(r), r.index) for r in records if r.status == "finished"]
    points = sorted(p for p in points if not (math.isnan(p[0]) or math.isnan(p[1])))
    found, best, previous = set(), math.inf, None
    for a, b, index in points:
        if b < best or (a, b) == previous:
            found.add(index)
            best, previous = min(best, b), (a, b)
    return found


def to_table(records: Sequence[Record], marked: set[int]) -> pa.Table:
    """Return one row for each cell: cell, id, status, seconds, front, error, runs.*, parameters.*, metrics.*."""
    import pyarrow as pa

    columns: dict[str, pa.Array] = {
        "cell": pa.array([r.index for r in records], pa.int32()),
        "id": pa.array([r.id for r in records], pa.string()),
        "status": pa.array([r.status for r in records], pa.string()),
        "seconds": pa.array([r.seconds for r in records], pa.float64()),
        "front": pa.array([r.index in marked for r in records], pa.bool_()),
        "error": pa.array([r.error for r in records], pa.string()),
    }
    for kind in _keys(records, "runs"):
        columns[f"runs.{kind}"] = pa.array([r.runs.get(kind) for r in records], pa.string())
    for name in _keys(records, "parameters"):
        columns[f"parameters.{name}"] = _column([r.parameters.get(name) for r in records])
    for name in _keys(records, "metrics"):
        columns[f"metrics.{name}"] = pa.array([_float(r.metrics.get(name)) for r in records], pa.float64())
    return pa.table(columns)


def lines(records: Sequence[Record], axes: Sequence[Axis]) -> tuple[list[str], list[list[Any]]]:
    """Return (headers, rows) of the table for people, best first; `*` marks the front of the first two axes.

    Only parameters that differ between cells are shown.
    """
    marked = front(records, axes[0], axes[1])
    names = varied(records)
    headers = ["", *names, *(a.name for a in axes), "seconds", "runs"]
    done = [r for r in records if r.status == "finished"]
    rows = [
        [
            "*" if r.index in marked else "",
            *(_shown(r.parameters.get(name)) for name in names),
            *(_shown(r.metrics.get(a.name)) for a in axes),
            r.seconds,
            " ".join(ref.rsplit("-", 1)[-1] for ref in r.runs.values()),
        ]
        for r in sorted(done, key=lambda r: ([(math.isnan(c), c) for c in (a.cost(r) for a in axes)], r.index))
    ]
    return headers, rows


def missing(records: Sequence[Record], axes: Sequence[Axis]) -> list[str]:
    """Return a line about each metric that no finished cell measured, with the nearest one that there is."""
    known = _keys([r for r in records if r.status == "finished"], "metrics")
    found = []
    for one in axes:
        if known and one.name not in known:
            match = nearest(one.name, known)
            hint = f"; did you mean {match!r}?" if match else "."
            found.append(f"no cell measured {one.name!r}{hint} There are: {', '.join(known)}.")
    return found


def varied(records: Sequence[Record]) -> list[str]:
    """Return the parameters that differ between cells."""
    return [name for name in _keys(records, "parameters") if len({repr(r.parameters.get(name)) for r in records}) > 1]


def label(record: Record, names: Sequence[str]) -> str:
    """Return the parameters `names` of a cell in one line; its id where there are none."""
    shown = ((name, record.parameters[name]) for name in names if name in record.parameters)
    return " ".join(f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in shown) or record.id


def _keys(records: Sequence[Record], what: str) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in getattr(record, what)))


def _column(values: Sequence[Any]) -> pa.Array:
    """Return a column of numbers or booleans where all are, of text otherwise."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    for kind, arrow in ((bool, pa.bool_()), (int, pa.int64()), (float, pa.float64())):
        if kinds == {kind}:
            return pa.array(values, arrow)
    if kinds and kinds <= {int, float}:
        return pa.array([_float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _shown(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value
