"""`mechscope sweep`: many cells from one file in wandb's schema, here, or one cell for an agent of wandb."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from app import command, console
from app.command import Common


@dataclass(frozen=True)
class Args(Common):
    """Run a grid or random sweep from a file in wandb's schema; each cell trains a dictionary and evaluates it.

    The same command finds the finished cells and tries the failed ones again. The same file goes to `wandb sweep`,
    whose agents run one cell each through `--cell`.
    """

    file: tyro.conf.Positional[Path | None] = None
    """The sweep, a YAML file such as sweeps/train.yaml."""
    count: int | None = None
    """Cells at most; a random sweep needs it here or as run_cap in the file."""
    seed: int = 0
    """Of a random sweep; a larger count begins with the same cells."""
    jobs: int = 1
    """Cells at a time, each a process with its share of the threads."""
    threads: int | None = None
    """Threads of each process; None shares the cores out evenly."""
    dry_run: bool = False
    """List the cells with what they are expected to take, and stop."""
    pareto: tuple[str, ...] = ()
    """Metrics of the closing table, `NAME`, `NAME:min` or `NAME:max`; the front is that of the first two. None given:
    l0 and the file's metric, or l0 and fvu."""
    wandb: Literal["off", "online", "offline", "disabled"] = "off"
    """Show every cell in Weights & Biases, as one group; the numbers are the same in every mode."""
    cell: tuple[str, ...] = ()
    """Run one cell only: program and parameters follow, in any form that wandb's agent passes. Comes last."""


def parse(cls: type[Args], arguments: Sequence[str], prog: str) -> Args:
    """Return the arguments; whatever follows --cell is taken as it is."""
    words = list(arguments)
    if "--cell" not in words:
        return command.parse(cls, words, prog)
    at = words.index("--cell")
    return replace(command.parse(cls, words[:at], prog), cell=tuple(words[at + 1 :]) or ("",))


def run(args: Args) -> dict[str, Any]:
    """Run the sweep, or one cell of it; return the run and how many cells finished."""
    from app.sweeps.local import Plan, make_plan, run_sweep
    from app.sweeps.results import axis

    if args.cell:
        return _cell(args)
    if args.file is None:
        raise ValueError("Name the sweep's file, such as `mechscope sweep sweeps/train.yaml`.")
    if min(args.jobs, args.threads or 1, args.count or 1) < 1:
        raise ValueError(f"jobs, threads and count must be 1 or more, got {args.jobs}, {args.threads}, {args.count}.")
    if len(args.pareto) == 1:
        raise ValueError(f"pareto takes two metrics or more, got {args.pareto[0]!r} alone; such as --pareto l0 kl.")
    axes = [axis(text) for text in args.pareto]
    plan: Plan = make_plan(args.file, args.count, args.seed)
    for text in plan.sweep.notes:
        console.note(text)
    threads = args.threads or _threads(args.jobs)
    if args.dry_run:
        return _dry_run(plan, args, threads)
    return run_sweep(plan, axes, root=args.runs, seed=args.seed, jobs=args.jobs, threads=threads, wandb=args.wandb)


def _dry_run(plan: Any, args: Args, threads: int) -> dict[str, Any]:
    """List the cells with rows, time, memory and disk."""
    from app.sweeps.results import varied
    from interp.activations.estimates import duration, size

    expected = plan.module.estimate([record.parameters for record in plan.records], args.runs, threads)
    names = varied(plan.records)
    fixed = [f"{name}={value}" for name, value in plan.records[0].parameters.items() if name not in names]
    console.emit(f"In every cell: {' '.join(fixed) or 'nothing'}")
    rows = [
        (r.index, r.id, *(r.parameters.get(name) for name in names), e["rows"], duration(e["seconds"]),
         size(e["memory_bytes"]), size(e["disk_bytes"]))
        for r, e in zip(plan.records, expected, strict=True)
    ]  # fmt: skip
    console.table(("cell", "id", *names, "rows", "time", "memory", "disk"), rows)
    seconds = sum(e["seconds"] for e in expected) / min(args.jobs, len(expected))
    disk = sum(e["disk_bytes"] for e in expected)
    console.emit(
        f"{len(rows)} cells, {args.jobs} at a time with {threads} threads each: about {duration(seconds)} and "
        f"{size(disk)} of disk, less what is finished already. The time is a rough one, from one product timed now."
    )
    cells = [r.to_dict() | {"estimate": e} for r, e in zip(plan.records, expected, strict=True)]
    return {"ok": True, "cells": cells, "seconds": seconds, "disk_bytes": disk}


def _cell(args: Args) -> dict[str, Any]:
    """Run one cell in this process, as wandb's agent asks for it."""
    from app.sweeps.mirror import Mirror, agent_config
    from app.sweeps.options import convert, read_arguments
    from app.sweeps.programs import open_program

    name, *rest = args.cell
    program = open_program(name)
    if {"-h", "--help"} & set(rest):
        console.table(("parameter", "type"), [(key, _type(o.hint)) for key, o in program.table().items()])
        return {"ok": True}
    started = time.time()
    values = convert(read_arguments(rest), program.table(), "parameters")
    with Mirror(agent_config(args.wandb), values, args.runs) as mirror:
        found = program.run_cell(values, args.runs, mirror)
    from interp.runs import open_run

    last = open_run(list(found["runs"].values())[-1], args.runs)
    metrics = {name: value for name, value in found["metrics"].items() if not name.startswith("train/")}
    return {"run": str(last.path), "runs": found["runs"], **metrics, "seconds": round(time.time() - started, 1)}


def _type(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)).replace("typing.", "") if isinstance(hint, type) else str(hint)


def _threads(jobs: int) -> int:
    from app.machine import system

    return max(1, system()["cores"] // jobs)
