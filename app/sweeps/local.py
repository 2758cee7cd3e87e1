"""The local runner: a sweep's cells in worker processes, into one run of kind "sweep"."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app import console
from app.sweeps.options import convert
from app.sweeps.pool import Pool, worker_command, worker_environment
from app.sweeps.programs import open_program
from app.sweeps.results import (
    ABOUT,
    RECORDS,
    RESULTS,
    Axis,
    Record,
    axis,
    front,
    label,
    lines,
    missing,
    read_records,
    to_table,
    varied,
)
from app.sweeps.schema import Sweep, read_sweep
from interp.config import digest
from interp.runs import Run, RunError, open_run, runs_root, start_run


@dataclass(frozen=True)
class Plan:
    """What is going to be run."""

    sweep: Sweep
    """The file."""
    text: str
    """Its text."""
    module: Any
    """The program."""
    records: list[Record]
    """The cells, none of them run."""


def make_plan(path: Path, count: int | None = None, seed: int = 0) -> Plan:
    """Return the cells of the sweep in the file `path`.

    Raises:
        ValueError: the file is wrong: a key, a method, an option that the program does not have, a type.
    """
    sweep = read_sweep(path)
    module = open_program(sweep.program)
    table, cells = module.table(), {}
    for cell in sweep.cells(count, seed):
        values = convert(cell, table, f"{path.name}: parameters")
        cells.setdefault(digest(values)[:8], values)  # 1 and 1.0 are one cell
    records = [Record(i, key, values) for i, (key, values) in enumerate(cells.items())]
    return Plan(sweep, path.read_text(encoding="utf-8"), module, records)


def run_sweep(
    plan: Plan,
    axes: Sequence[Axis],
    *,
    root: Path | None = None,
    seed: int = 0,
    jobs: int = 1,
    threads: int = 1,
    wandb: str = "off",
) -> dict[str, Any]:
    """Run what is not finished, show the table, and return the run with "ok" False where cells failed.

    Args:
        plan: the cells.
        axes: metrics of the table; none takes l0 and the file's own metric.
        root: folder of the runs.
        seed: of a random sweep, for the record.
        jobs: cells at a time.
        threads: of each of them.
        wandb: how cells are shown there.
    """
    axes, started = list(axes) or _axes(plan.sweep), time.time()
    config = {"program": plan.sweep.program, "cells": [dict(record.parameters) for record in plan.records]}
    seed = seed if plan.sweep.method == "random" else 0
    with start_run("sweep", config, slug=plan.sweep.name, root=root, seed=seed) as run:
        if run.finished:
            console.note(f"{run.ref} is finished already")
            records = read_records(run)
        else:
            records = _work(plan, run, axes, jobs, threads, wandb)
            failed = sum(record.status == "failed" for record in records)
            if failed:
                run.fail(f"{failed} of {len(records)} cells failed; the same command tries them again.")
            else:
                run.finish(_summary(records, axes) | {"seconds": round(time.time() - started, 1)})
    _show(records, axes)
    summary = _summary(records, axes)
    return {"run": str(run.path), "ok": summary["failed"] == 0, **summary, "seconds": round(time.time() - started, 1)}


def _work(plan: Plan, run: Run, axes: Sequence[Axis], jobs: int, threads: int, wandb: str) -> list[Record]:
    """Return the records after every cell has been tried; cells whose runs are there are not tried again."""
    records = _known(plan, run)
    todo = [record for record in records if record.status != "finished"]
    console.note(
        f"{run.ref}: {len(records)} cells, {len(records) - len(todo)} of them finished; {jobs} at a time, "
        f"{threads} threads each"
    )
    _save(run, plan, records, axes)
    pool = Pool(worker_command(), worker_environment(threads), jobs, run.file("logs/workers.log"))
    requests, names = [_request(plan, run, record, wandb) for record in todo], varied(records)
    with (
        console.progress(len(records), "cells", "sweep", start=len(records) - len(todo)) as bar,
        contextlib.closing(pool.work(requests)) as answers,
    ):
        for request, answer in answers:
            i = request["index"]
            records[i] = replace(records[i], **({"error": None} | answer))
            _save(run, plan, records, axes)
            bar.update()
            run.progress(bar.done, len(records), "cells")
            console.note(f"[{bar.done:.0f}/{len(records)}] {label(records[i], names)}: {_outcome(records[i], axes)}")
    return records


def _known(plan: Plan, run: Run) -> list[Record]:
    """Return the plan's records with what an earlier attempt found, where its runs are still there."""
    old: dict[str, Any] = {}
    if run.resumed:
        with contextlib.suppress(ValueError):  # unreadable ones are made anew: the cells' runs are what counts
            old = {record.id: record for record in read_records(run)}
    kept = {key: record for key, record in old.items() if record.status == "finished" and _there(record, run.root)}
    return [kept.get(record.id, record) for record in plan.records]


def _there(record: Record, root: Path) -> bool:
    try:
        return all(open_run(ref, root).finished for ref in record.runs.values())
    except RunError:
        return False


def _request(plan: Plan, run: Run, record: Record, wandb: str) -> dict[str, Any]:
    """Return what a worker is told."""
    mirror = {
        "mode": wandb,
        "project": plan.sweep.project,
        "entity": plan.sweep.entity,
        "group": plan.sweep.name,
        "name": f"{plan.sweep.name}-{record.id}",
        "folder": str(run.path / ".wandb"),
    }
    return {
        "index": record.index,
        "program": plan.sweep.program,
        "parameters": dict(record.parameters),
        "runs": str(runs_root(run.root)),
        "log": str(run.file(f"logs/{record.id}.log")),
        "mirror": mirror,
    }


def _save(run: Run, plan: Plan, records: Sequence[Record], axes: Sequence[Axis]) -> None:
    """Write what is known now; an observer and the next attempt read it."""
    run.save_json(RECORDS, [record.to_dict() for record in records])
    run.save_table(RESULTS, to_table(records, front(records, axes[0], axes[1])))
    about = {"name": plan.sweep.name, "method": plan.sweep.method, "metric": plan.sweep.metric, "goal": plan.sweep.goal}
    run.save_json(ABOUT, about | {"pareto": [a.name for a in axes[:2]], "file": plan.text})


def _axes(sweep: Sweep) -> list[Axis]:
    if sweep.metric is None or sweep.metric == "l0":
        return [axis("l0"), axis("fvu")]
    return [axis("l0"), Axis(sweep.metric, sweep.goal == "maximize")]


def _show(records: Sequence[Record], axes: Sequence[Axis]) -> None:
    """Print the table, then what failed and why."""
    headers, rows = lines(records, axes)
    if rows:
        console.table(headers, rows)
        console.emit(f"* on the front of {axes[0].name} and {axes[1].name}: no other cell is as good in both")
    for text in missing(records, axes):
        console.note(text)
    for record in records:
        if record.status == "failed":
            console.note(f"failed: {label(record, varied(records))}: {record.error}")


def _outcome(record: Record, axes: Sequence[Axis]) -> str:
    if record.status == "failed":
        return f"failed: {record.error}"
    found = ", ".join(f"{a.name} {record.metrics[a.name]:.4g}" for a in axes if record.metrics.get(a.name) is not None)
    return f"{found} ({record.seconds:.0f} s)"


def _summary(records: Sequence[Record], axes: Sequence[Axis]) -> dict[str, Any]:
    done: list[Mapping[str, Any]] = [r.to_dict() for r in records if r.status == "finished"]
    best = front(records, axes[0], axes[1])
    return {
        "cells": len(records),
        "finished": len(done),
        "failed": sum(record.status == "failed" for record in records),
        "pareto": [a.name for a in axes[:2]],
        "front": [record.id for record in records if record.index in best],
    }
