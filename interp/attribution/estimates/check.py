"""The measured check: the cells that an estimate ranks first, and random ones, are really patched.

    check_pearson          correlation of score and measured effect over the cells that were patched
    check_sign_agreement   share of them whose score has the sign of the measured effect, rounding left out

Both speak of the cells that were patched, half of them chosen for their large scores, and of no others. NaN stands
where a number is not defined: fewer than three cells, or scores that do not vary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from interp.attribution.estimates.question import BATCH, AskedMetric, Progress
from interp.attribution.patching import measure_cells
from interp.attribution.result import Attribution
from interp.attribution.statistics import correlation, sign_agreement
from interp.models import ModelHandle
from interp.sites import KINDS
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
    picked = picked_cells(_patchable(found), top, random, seed)
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


def _patchable(found: Attribution) -> Float[np.ndarray, " cell"]:
    """Return the scores, NaN for cells that lie at no site of the model (relevance of the embeddings)."""
    inside = np.isin(np.asarray(found.nodes["kind"].to_pylist(), dtype=object), KINDS)
    return np.where(inside, found.nodes["score"].to_numpy(), np.nan)


def picked_cells(scores: Float[np.ndarray, " cell"], top: int, random: int, seed: int) -> Int[np.ndarray, " chosen"]:
    """Return the rows of the `top` largest scores and of `random` others, drawn with `seed`; NaN is never one.

    Raises:
        ValueError: a number below 0.
    """
    if top < 0 or random < 0:
        raise ValueError(f"check (top, random) must be 0 or more cells, got {top}, {random}.")
    order = np.argsort(-np.abs(scores), kind="stable")[: int(np.isfinite(scores).sum())]  # NaN is sorted last
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
    found = found.with_nodes(nodes)
    return replace(found, values=found.values | check_values(found))


def check_values(found: Attribution) -> dict[str, float]:
    """Return how well the scores agree with the effects of the cells that were measured.

    `check_cells` is their number; `check_pearson` is NaN for fewer than three cells or where one side is constant;
    `check_sign_agreement` is left out where scores are magnitudes, and NaN where no cell has an effect.
    """
    effects = found.nodes["measured"].to_numpy(zero_copy_only=False).astype(np.float64)
    there = np.isfinite(effects)
    scores, effects = found.nodes["score"].to_numpy()[there], effects[there]
    unsigned = found.about.get("signed") is False
    nan = float("nan")
    pearson = correlation(scores, np.abs(effects) if unsigned else effects)
    numbers = {"check_pearson": nan if pearson is None else pearson, "check_cells": float(len(scores))}
    if not unsigned:
        signs = sign_agreement(scores, effects)
        numbers["check_sign_agreement"] = nan if signs is None else signs
    return numbers


def _column(before: pa.ChunkedArray, picked: np.ndarray, values: np.ndarray) -> pa.Array:
    """Return a column with `values` in the rows `picked` and what it held elsewhere; NaN becomes null."""
    import pyarrow as pa

    column = before.to_numpy(zero_copy_only=False).astype(np.float64)
    column[picked] = values
    return pa.array(column, pa.float64(), mask=np.isnan(column))
