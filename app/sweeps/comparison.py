"""The program `compare`: a cell trains a dictionary, or finds it, and compares its model with another from the inside.

Parameters are the options of `mechscope train`, and under `compare.` those of `mechscope compare`; the model compared
against is the one the dictionary was trained on. Cells that differ in the recipe alone share one training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from app.commands import compare, train
from app.sweeps import training
from app.sweeps.mirror import Mirror
from app.sweeps.options import Option, nested, options
from interp.compression import read_spec, recipe_json
from interp.config import from_json
from interp.runs import Run, open_run

SKIPPED = (
    "runs", "json", "wandb", *(f"compare.{name}" for name in ("runs", "json", "a", "sae", "device")),
    *(f"compare.{name}" for name in ("revision", "model_dtype", "recipe_a")),
)  # fmt: skip
"""Options that the sweep itself sets: model a is the one that the dictionary was trained on."""
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
    asked = replace(subject_of(cell.compare, dictionary), runs=runs, device=cell.train.device)
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


def subject_of(asked: compare.Args, dictionary: Run) -> compare.Args:
    """Return the comparison `asked` of the very model that `dictionary` was trained on: revision, format, recipe."""
    spec = read_spec(dictionary.config["model"], f"the model of {dictionary.ref}")
    recipe = json.dumps(recipe_json(spec.recipe)) if spec.recipe else None
    return replace(
        asked, a=spec.name, revision=spec.revision, model_dtype=spec.dtype, recipe_a=recipe, sae=dictionary.ref
    )


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
