"""The effect of patches on the metric, prompt by prompt, by really running the patched model.

effect = m(base run with the patch) - m(base run),  with the sign that `interp.attribution.result` gives it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attribution.patching.cells import as_patch
from interp.attribution.patching.cone import why_not
from interp.attribution.patching.effects import Count, Progress, evaluate, make_engine
from interp.attribution.patching.runs import metric_of, resolve_metric, run
from interp.attribution.patching.sources import make_plan
from interp.attribution.tables import standard_error
from interp.models import ModelHandle
from interp.names import unknown
from interp.sites import Cell
from interp.tasks import Metric, Pairs, measured

PATHS = ("cone", "full")


@dataclass(frozen=True, eq=False)
class Measured:
    """Effects of patches, in units of the metric; positive: what the clean run has there raises it."""

    per_prompt: Float[np.ndarray, "patch prompt"]
    """Effect of each patch on each prompt."""
    clean: Float[np.ndarray, " prompt"]
    """Metric of the clean run."""
    corrupt: Float[np.ndarray, " prompt"]
    """Metric of the corrupted run."""
    metric: str
    """Name of the metric."""
    direction: str
    """`denoising` or `noising`."""
    path: str
    """`cone` or `full`: how it was computed."""
    reason: str
    """Why whole forwards were run; empty for the cone."""
    run_rows: int
    """Rows that were run; the others had nothing to change."""

    @property
    def score(self) -> Float[np.ndarray, " patch"]:
        """Mean effect over prompts."""
        return self.per_prompt.mean(1)

    @property
    def stderr(self) -> Float[np.ndarray, " patch"]:
        """Standard error of the mean over prompts, NaN for one prompt."""
        return standard_error(self.per_prompt)


def measure_cells(
    handle: ModelHandle,
    pairs: Pairs,
    cells: Iterable[Cell | Mapping[str, Any] | Iterable[Any]],
    *,
    metric: Metric | Callable[[Tensor, Tensor], Tensor] | str | None = None,
    direction: str | None = None,
    baseline: str = "corrupt",
    reference: Int[Tensor, "reference pos"] | None = None,
    batch: int = 64,
    seed: int = 0,
    exact_path: str = "cone",
    on_progress: Progress | None = None,
) -> Measured:
    """Measure the effect of chosen patches.

    Args:
        handle: the model.
        pairs: clean and corrupted prompts.
        cells: what to patch. Each entry is a `Cell`, a row of `Attribution.nodes` as a dictionary, or several of
            these, which are then patched together.
        metric: a name, a `Metric`, a function of (logits, rows), or None for the task's own.
        direction: `denoising` (the corrupted run gets clean activations) or `noising`; None: denoising for the
            baseline corrupt, else noising.
        baseline: what clean activations are compared with: `corrupt`, `zero`, `mean` or `resample`.
        reference: prompts for mean and resample, as long as the pairs'; None: the corrupted ones.
        batch: rows in one forward; the base run of as many prompts is kept at a time.
        seed: of the drawing of `resample`.
        exact_path: `cone` computes only what a patch can change; `full` runs whole forwards. They agree to rounding.
        on_progress: hears (rows done, rows in all) after each forward; an exception in it stops the measurement.

    Raises:
        ValueError: a cell outside of the model or the prompts, an unknown name, prompts longer than n_ctx, a metric
            that is no finite number for each prompt.
    """
    patches = [as_patch(handle, cell, pairs.n_pos) for cell in cells]
    check_request(patches, batch, exact_path)
    sites = sorted({cell.site for patch in patches for cell in patch})
    view = "bridge" if any(site.kind == "pattern" for site in sites) else "hf"
    found = resolve_metric(handle, pairs, metric, batch)
    plan = make_plan(
        handle, pairs, sites, direction=direction, baseline=baseline, reference=reference, batch=batch, seed=seed,
        view=view,
    )  # fmt: skip
    ends = [metric_of(handle, tokens, found, batch, view) for tokens in (pairs.clean, pairs.corrupt)]
    reason = "asked for" if exact_path == "full" else why_not(handle, view)
    count = Count(len(patches) * len(pairs), on_progress)
    parts = []
    for prompts in torch.arange(len(pairs), device=handle.device).split(batch):
        chosen = slice(int(prompts[0]), int(prompts[-1]) + 1)
        engine, reason = make_engine(handle, plan.base[chosen], found.reads, view, reason)
        acts, logits = run(handle, plan.base[chosen], sites, found.reads, view)
        source = plan.activations(handle, chosen, acts, view)
        base = measured(found, logits, prompts)
        effects = evaluate(
            engine, patches, acts, source, base, torch.arange(len(prompts)), prompts, found, batch, count
        )
        parts.append(plan.sign * effects)
    effects, clean, corrupt = (part.double().cpu().numpy() for part in (torch.cat(parts, 1), *ends))
    path = "full" if reason else "cone"
    return Measured(effects, clean, corrupt, found.name, plan.direction, path, reason, count.run)


def check_request(patches: Sequence[Any], batch: int, exact_path: str) -> None:
    """Refuse what no engine could run.

    Raises:
        ValueError: no patch, an unknown path, an empty batch.
    """
    if not patches:
        raise ValueError("There is nothing to measure: no cell is given.")
    if exact_path not in PATHS:
        raise ValueError(unknown("exact_path", exact_path, PATHS))
    if batch < 1:
        raise ValueError(f"batch must be 1 or more rows, got {batch}.")
