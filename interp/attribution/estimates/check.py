"""The measured check: the cells that an estimate ranks first, and random ones, are really patched.

    check_pearson          correlation of score and measured effect over the cells that were patched
    check_sign_agreement   share of them whose score has the sign of the measured effect (where that is not 0)

Both speak of the cells that were patched, half of them chosen for their large scores, and of no others. NaN stands
where a number is not defined: one cell, or scores that do not vary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from interp.attribution.estimates.question import BATCH, AskedMetric, Progress
from interp.attribution.patching import measure_cells
from interp.attribution.result import Attribution
from interp.models import ModelHandle
from interp.tasks.metrics import METRICS
from interp.tasks.pairs import Pairs

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_PROMPT = 4
"""Rows of a forward without a graph for each prompt of one with a graph."""


def checked(
    found: Attribution,
    handle: ModelHandle,
    pairs: Pairs,
    top: int = 10,
    random: int = 10,
    *,
    metric: AskedMetric = None,
    batch: int = BATCH,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Attribution:
    """Return `found` with the measured effect of its top cells and of random other ones.

    Args:
        found: scores; those of relevance are compared with putting 0 into the clean run.
        handle: the model they are of.
        pairs: the pairs they are of.
        top: cells with the largest scores.
        random: cells drawn from the others.
        metric: the metric they are of; None takes the one of that name.
        batch: prompts in a forward pass of the estimate; four times as many rows go into one here.
        seed: of the drawing.
        on_progress: hears (done, total) patched prompts.

    Raises:
        ValueError: a number below 0; a metric of one's own that is not passed; a cell that cannot be patched.
    """
    picked = picked_cells(found.nodes["score"].to_numpy(), top, random, seed)
    if len(picked) == 0:
        return found
    if metric is None:
        if found.target not in METRICS:
            raise ValueError(f"The scores are of the metric {found.target!r}, which has to be passed as metric.")
        metric = found.target
    relevance = found.direction == "relevance"
    effects = measure_cells(
        handle,
        pairs,
        found.nodes.take(picked).to_pylist(),
        metric=metric,
        direction="noising" if relevance else found.direction,
        baseline="zero" if relevance else found.baseline,
        batch=ROWS_PER_PROMPT * batch,
        on_progress=on_progress,
    )
    return with_measured(found, picked, effects.score, effects.stderr)


def picked_cells(scores: Float[np.ndarray, " cell"], top: int, random: int, seed: int) -> Int[np.ndarray, " chosen"]:
    """Return the rows of the `top` largest scores and of `random` others, drawn with `seed`.

    Raises:
        ValueError: a number below 0.
    """
    if top < 0 or random < 0:
        raise ValueError(f"check (top, random) must be 0 or more cells, got {top}, {random}.")
    order = np.argsort(-np.abs(scores), kind="stable")
    rest = np.random.default_rng(seed).permutation(order[top:])[:random]
    return np.concatenate([order[:top], np.sort(rest)])


def with_measured(
    found: Attribution,
    picked: Int[np.ndarray, " chosen"],
    effects: Float[np.ndarray, " chosen"],
    stderr: Float[np.ndarray, " chosen"],
) -> Attribution:
    """Return `found` with the measured effects of the rows `picked`, and how well its scores agree with them."""
    nodes = found.nodes
    for name, values in (("measured", effects), ("measured_stderr", stderr)):
        nodes = nodes.set_column(nodes.column_names.index(name), name, _column(nodes[name], picked, values))
    scores = found.nodes["score"].to_numpy()[picked]
    unsigned = found.about.get("signed") is False
    numbers = {"check_pearson": pearson(scores, np.abs(effects) if unsigned else effects), "check_cells": len(picked)}
    if not unsigned:
        numbers["check_sign_agreement"] = sign_agreement(scores, effects)
    return replace(found, nodes=nodes, values=found.values | {name: float(n) for name, n in numbers.items()})


def _column(before: pa.ChunkedArray, picked: np.ndarray, values: np.ndarray) -> pa.Array:
    """Return a column with `values` in the rows `picked` and what it held elsewhere; NaN becomes null."""
    import pyarrow as pa

    column = before.to_numpy(zero_copy_only=False).astype(np.float64)
    column[picked] = values
    return pa.array(column, pa.float64(), mask=np.isnan(column))


def pearson(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Return the correlation of two series, NaN where one of them does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def sign_agreement(scores: Float[np.ndarray, " n"], effects: Float[np.ndarray, " n"]) -> float:
    """Return the share of effects other than 0 that have the sign of their score; NaN if there are none."""
    kept = effects != 0
    return float((np.sign(scores[kept]) == np.sign(effects[kept])).mean()) if kept.any() else float("nan")
