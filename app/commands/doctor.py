"""`mechscope doctor`: look at the installation, the machine and the caches, and say what to repair."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import console, machine, shadowing
from app.command import ALLOCATOR, Common

_LITTLE_DISK = 2.0  # GiB: less than one demo with its environment


@dataclass(frozen=True)
class Args(Common):
    """Look at the installation, the machine and the caches; say what to repair.

    The exit status is 1 when something is wrong.
    """


def run(args: Args) -> dict[str, Any]:
    """Print what is there and what is wrong; return both."""
    from mechscope import __version__

    runs = args.runs or Path(os.environ.get("MECHSCOPE_RUNS") or "runs")
    total, available = machine.memory_gib()
    facts = {
        "version": __version__,
        "root": str(shadowing.ROOT),
        **machine.system(),
        **machine.devices(),
        "memory_gib": total,
        "memory_available_gib": available,
        "allocator": all(key in os.environ for key in ALLOCATOR),
        "runs_folder": str(runs.absolute()),
        "disk_free_gib": machine.disk_gib(runs),
        "hub": machine.hub_cache(),
        "packages": machine.packages(),
    }
    wrong = [*machine.requirement_problems(), *shadowing.problems(Path.cwd()), *_place_problems(runs, facts)]
    _show(facts)
    for sentence in wrong:
        console.emit(f"\nWRONG: {sentence}")
    console.emit("" if wrong else "\nNothing is wrong.")
    return {"ok": not wrong, "problems": wrong, **facts}


def _place_problems(runs: Path, facts: dict[str, Any]) -> list[str]:
    found = []
    if "device" not in facts:
        found.append("torch does not import. Do: pip install torch, and see what `python -c 'import torch'` says.")
    place = machine.existing(runs)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        found.append(f"Runs cannot be written: {place} is not a folder open for writing. Do: give --runs another.")
    if facts["disk_free_gib"] < _LITTLE_DISK:
        found.append(f"Only {facts['disk_free_gib']:.1f} GiB are free at {place}. Do: free some, or --runs ELSEWHERE.")
    return found


def _show(facts: dict[str, Any]) -> None:
    gpus = ", ".join(f"{gpu['name']} ({gpu['gib']:.0f} GiB)" for gpu in facts.get("gpus", ())) or "none"
    hub = facts["hub"]
    rows = [
        ["mechscope", f"{facts['version']} in {facts['root']}"],
        ["Python", f"{facts['python']} at {facts['executable']}"],
        ["system", facts["system"]],
        ["cores", f"{facts['cores']}, torch uses {facts.get('threads', '?')} ({facts.get('cpu_capability', '?')})"],
        ["GPUs", gpus],
        ["device", facts.get("device", "torch does not import")],
        ["memory", f"{_gib(facts['memory_gib'])}, {_gib(facts['memory_available_gib'])} available"],
        ["runs folder", f"{facts['runs_folder']}, {facts['disk_free_gib']:.0f} GiB free"],
        ["model cache", f"{hub['cache']}, {hub['models']} models from the hub"],
        ["network", f"offline by {', '.join(hub['offline'])}" if hub["offline"] else "used for what is not here"],
        ["wandb", hub["wandb"]],
    ]
    console.table(["what", "is"], rows)
    console.emit()
    console.table(["package", "version"], [[name, have or "MISSING"] for name, have in facts["packages"].items()])


def _gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} GiB"
