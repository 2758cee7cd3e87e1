"""Runs: the one format in which results are stored, found again, resumed and checked.

A run is a folder `runs/<kind>/<slug>-<hash8>/`. Its identity is the hash of kind, configuration, seed and
parents, so the same request finds the finished run or resumes the broken one. `run.json` comes first and
stays live, `metrics.jsonl` is appended, `manifest.json` (sizes and SHA-256 of every file) comes last: its
presence means finished and frozen. Tensors are safetensors, tables Parquet, the rest JSON; never pickle.
"""

from __future__ import annotations

from interp.runs.errors import RunBusy, RunDamaged, RunError, RunNotFound, SchemaError
from interp.runs.index import (
    children,
    damaged_runs,
    find_runs,
    lineage,
    locate,
    open_run,
    runs_root,
    start_run,
    verify_run,
)
from interp.runs.records import SCHEMA
from interp.runs.run import Run

__all__ = [
    "SCHEMA",
    "Run",
    "RunBusy",
    "RunDamaged",
    "RunError",
    "RunNotFound",
    "SchemaError",
    "children",
    "damaged_runs",
    "find_runs",
    "lineage",
    "locate",
    "open_run",
    "runs_root",
    "start_run",
    "verify_run",
]
