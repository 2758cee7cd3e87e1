"""The program `compare`: a cell trains a dictionary, or finds it, and compares its model with another from the inside.

Parameters are the options of `mechscope train`, and under `compare.` those of `mechscope compare`; the model compared
against is the one the dictionary was trained on. Cells that differ in the recipe alone share one training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from app.commands import compare, train
from app.sweeps import training
from app.sweeps.mirror import Mirror
from app.sweeps.options import Option, nested, options
from interp.config import from_json
from interp.runs import open_run

SKIPPED = ("runs", "json", "wandb", "compare.runs", "compare.json", "compare.a", "compare.sae", "compare.device")
"""Options that the sweep itself sets."""
PASSES = 12
"""Multiplications for a token and a parameter: two models, their lenses at every layer, two splices, two ablations."""
SEARCH = 3
"""Comparisons that finding and measuring one null costs."""


@dataclass(frozen=True)
class Cell:
    """What one cell does."""

    train: tyro.conf.OmitArgPrefixes[train.Args] = field(default_factory=train.Args)
    """The training."""
    compare: compare.Args = field(default_factory=lambda: compare.Args(a=""))
    """The comparison."""


def table() -> dict[str, Option]:
    """Return the options that a parameter may set."""
    return options(Cell, SKIPPED)


def run_cell(values: Mapping[str, Any], runs: Path | None, mirror: Mirror) -> dict[str, Any]:
    """Train and compare, or find what was; return {"runs": {kind: ref}, "metrics": {name: number}}."""
    cell = _cell(values)
    trained = training.patiently(lambda: train.run(replace(cell.train, runs=runs)))
    dictionary = open_run(f"sae/{Path(trained['run']).name}", runs)
    mirror.trained(dictionary)
    asked = replace(
        cell.compare, a=dictionary.config["model"]["name"], sae=dictionary.ref, runs=runs, device=cell.train.device
    )
    compared = training.patiently(lambda: compare.run(asked))
    metrics = training.numbers(compared)
    for kind, path in compared.get("nulls", {}).items():
        null = open_run(f"compare/{Path(path).name}", runs)
        metrics |= {f"{kind}/{name}": value for name, value in training.numbers(null.summary).items()}
    mirror.measured(metrics)
    return {
        "runs": {"sae": dictionary.ref, "compare": f"compare/{Path(compared['run']).name}"},
        "metrics": metrics,
    }


def estimate(cells: Sequence[Mapping[str, Any]], runs: Path | None, threads: int) -> list[dict[str, float]]:
    """Return {"rows", "seconds", "disk_bytes", "memory_bytes"} for each cell; a training that cells share counts once.

    As rough as `app.sweeps.training.estimate`, by whose rate and sizes it goes.
    """
    costs, found, seen = training.Costs(runs, threads), [], set()
    for values in cells:
        cell = _cell(values)
        cost, (_, parameters) = costs.training(cell.train), costs.sizes(cell.train)
        key = str(sorted((name, value) for name, value in values.items() if not name.startswith("compare.")))
        searched = 1 + SEARCH * len(cell.compare.nulls)
        compared = PASSES * parameters * cell.compare.tokens * searched / costs.rate
        found.append(cost | {"seconds": compared + (0 if key in seen else cost["seconds"])})
        seen.add(key)
    return found


def _cell(values: Mapping[str, Any]) -> Cell:
    return from_json(Cell, nested({**values, "compare.a": ""}, options(Cell)), "cell")
