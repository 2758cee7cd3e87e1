"""The program `train`: a cell trains a dictionary, then evaluates it in its model; both are runs of their own.

Parameters are the options of `mechscope train`, and under `evaluate.` those of `mechscope evaluate`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import tyro

from app import console
from app.commands import evaluate, train
from app.sweeps.mirror import Mirror
from app.sweeps.options import Option, nested, options
from interp.config import from_json
from interp.runs import RunBusy, open_run

T = TypeVar("T")

SKIPPED = ("runs", "json", "wandb", "evaluate.runs", "evaluate.json", "evaluate.sae", "evaluate.device")
"""Options that the sweep itself sets."""
WAIT = 2.0
"""Seconds between two looks at a run that another cell is writing."""


@dataclass(frozen=True)
class Cell:
    """What one cell does."""

    train: tyro.conf.OmitArgPrefixes[train.Args] = field(default_factory=train.Args)
    """The training."""
    evaluate: evaluate.Args = field(default_factory=evaluate.Args)
    """The evaluation."""


def table() -> dict[str, Option]:
    """Return the options that a parameter may set."""
    return options(Cell, SKIPPED)


def run_cell(values: Mapping[str, Any], runs: Path | None, mirror: Mirror) -> dict[str, Any]:
    """Train and evaluate, or find what was; return {"runs": {kind: ref}, "metrics": {name: number}}.

    Metrics of the evaluation have their own names, those of the training begin with "train/".
    """
    cell = from_json(Cell, nested(values, table()), "cell")
    trained = patiently(lambda: train.run(replace(cell.train, runs=runs)))
    dictionary = open_run(f"sae/{Path(trained['run']).name}", runs)
    mirror.trained(dictionary)
    asked = replace(cell.evaluate, sae=dictionary.ref, runs=runs, device=cell.train.device)
    measured = patiently(lambda: evaluate.run(asked))
    metrics = numbers(measured) | {f"train/{name}": value for name, value in numbers(trained).items()}
    mirror.measured(metrics)
    return {
        "runs": {"sae": dictionary.ref, "evaluation": f"evaluation/{Path(measured['run']).name}"},
        "metrics": metrics,
    }


def estimate(cells: Sequence[Mapping[str, Any]], runs: Path | None, threads: int) -> list[dict[str, float]]:
    """Return {"rows", "seconds", "disk_bytes", "memory_bytes"} for each cell, before anything is trained.

    The time is that of the multiplications (four dense products with the dictionary for a training step, one pass of
    the model for each token that is streamed, four for each that is evaluated) at the rate measured here and now on one
    product with `threads` threads: good to a factor of about two.
    """
    costs, found = Costs(runs, threads), []
    for values in cells:
        cell = from_json(Cell, nested(values, table()), "cell")
        cost = costs.training(cell.train)
        weights, parameters = costs.sizes(cell.train)
        measured = cell.evaluate.tokens * (4 * parameters + weights)
        found.append(cost | {"seconds": cost["seconds"] + measured / costs.rate})
    return found


class Costs:
    """What trainings cost; a model is looked up once."""

    def __init__(self, runs: Path | None, threads: int) -> None:
        """Measure the rate of this machine with `threads` threads."""
        self.runs, self.rate = runs, _multiplications_per_second(threads)
        self._found: dict[str, tuple[int, int]] = {}

    def sizes(self, asked: train.Args) -> tuple[int, int]:
        """Return (weights of the encoder, parameters of the model)."""
        key = str((asked.store, asked.site, asked.model, asked.revision, asked.model_dtype))
        if key not in self._found:
            self._found[key] = _width_and_parameters(asked, self.runs)
        d_in, parameters = self._found[key]
        return d_in * (asked.d_sae or 16 * d_in), parameters

    def training(self, asked: train.Args) -> dict[str, float]:
        """Return {"rows", "seconds", "disk_bytes", "memory_bytes"} of one training."""
        weights, parameters = self.sizes(asked)
        d_sae = asked.d_sae or math.isqrt(16 * weights)  # 16 d_in of d_in * 16 d_in weights
        step = 4 * weights + (0 if asked.store else parameters)
        return {
            "rows": asked.train.tokens,
            "seconds": asked.train.tokens * step / self.rate,
            "disk_bytes": 2 * weights * 4,
            "memory_bytes": 4 * (2 * weights * 4) + 4 * asked.train.batch * d_sae + 4 * parameters,
        }


def _width_and_parameters(asked: train.Args, runs: Path | None) -> tuple[int, int]:
    """Return (width of the site, parameters of the model)."""
    from app import sources
    from interp.compression import read_spec
    from interp.models import ModelSpec

    spec, site = ModelSpec(asked.model, asked.revision, asked.model_dtype), asked.site
    if asked.store:
        source = sources.from_store(asked.store, asked.site, runs)
        spec, site = read_spec(source.config["model"]), source.site
    handle = sources.open_model(spec, "cpu")
    return handle.width(sources.handle_site(handle, site)), handle.n_parameters


def _multiplications_per_second(threads: int) -> float:
    """Return the multiply-adds per second of one float32 product of middling size."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.ones(512, 256), torch.ones(256, 1024)
        out = a @ b  # pages are touched and the threads are there
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < 0.05:
            torch.mm(a, b, out=out)
            done += 1
        return done * 512 * 256 * 1024 / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)


def patiently(job: Callable[[], T]) -> T:
    """Return what `job` returns; where another process is making the same run, wait for it and take that."""
    told = False
    while True:
        try:
            return job()
        except RunBusy as busy:
            if not told:
                console.note(f"waiting: {busy}")
                told = True
            time.sleep(WAIT)


def numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers among what a command returned, its seconds apart."""
    return {name: value for name, value in result.items() if type(value) in (int, float) and name != "seconds"}
