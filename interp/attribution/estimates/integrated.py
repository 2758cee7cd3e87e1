"""Integrated gradients along the straight way from the corrupted to the clean run (Sundararajan et al. 2017).

    score = (a_clean - a_corrupt) . mean over alpha of dm/da at alpha,    alpha = (k + 1/2) / steps

What moves along the way is either the site itself, whole and with everything before it as in the base run
(path="activations"), or the input embeddings alone, everything else following (path="inputs", as EAP-IG does; Hanna et
al. 2024, arXiv 2403.17806). The first costs `steps` forwards and backwards for each site, and its cells add up to the
effect of patching the site at all its positions. The second costs `steps` for all sites together; its cells add up to
the effect of the whole at the embeddings, and elsewhere only as far as activations move straight too.

The midpoint rule leaves a gap of order 1/steps^2; published code often sums from the left end (order 1/steps).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attribution.axes import summed
from interp.attribution.estimates.cells import Scores, result
from interp.attribution.estimates.check import checked
from interp.attribution.estimates.question import (
    BATCH,
    AskedMetric,
    Other,
    Progress,
    Question,
    Reading,
    Sites,
    ask,
    backward,
    gradient_of,
    read,
    read_other,
    values_with_graph,
)
from interp.attribution.result import Attribution
from interp.hooks import capture, patch
from interp.models import ModelHandle
from interp.names import unknown
from interp.sites import Site
from interp.tasks.pairs import Pairs

METHOD = {"activations": "ig", "inputs": "ig_inputs"}
PATHS = tuple(METHOD)
INPUT = Site(0, "resid_pre")
"""The embeddings, with whatever positions add to them."""


def integrated_gradients(
    handle: ModelHandle,
    pairs: Pairs,
    sites: Sites,
    *,
    metric: AskedMetric = None,
    direction: str | None = None,
    baseline: str = "corrupt",
    parts: Iterable[str] = ("pos",),
    batch: int = BATCH,
    on_progress: Progress | None = None,
    check: int = 10,
    steps: int = 10,
    path: str = "activations",
) -> Attribution:
    """Return integrated gradients for every cell.

    Args:
        handle: the model.
        pairs: clean and corrupted prompts.
        sites: where there are scores.
        metric: what is explained, a metric or its name; None is the task's own.
        direction: `denoising` or `noising`; with path="inputs" the scores are the same.
        baseline: `corrupt`.
        parts: what cells are a part by.
        batch: rows (prompts times points of the path) in a forward pass.
        on_progress: hears (done, total) batches of prompts, then patched prompts of the check.
        check: number of cells that are really patched beside the estimate.
        steps: points of the path.
        path: what moves, one of `PATHS`.

    Raises:
        ValueError: as in `attribution_patching`; steps below 1; an unknown path; another baseline.
    """
    question = ask(handle, pairs, sites, metric, direction, baseline, parts, batch)
    if baseline != "corrupt":
        raise ValueError(f"integrated_gradients goes from the corrupted to the clean run, got baseline {baseline!r}.")
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}.")
    if path not in PATHS:
        raise ValueError(unknown("path", str(path), PATHS))
    scores, batches = Scores(), question.batches()
    for done, rows in enumerate(batches, 1):
        needed = {*question.sites, INPUT} if path == "inputs" else question.sites
        base = read(question, rows, sorted(needed))
        other = read_other(question, rows, base)
        for site, gradient in site_gradients(question, rows, base, other, steps, path):
            product = question.plan.sign * (other.acts[site] - base.acts[site]) * gradient
            scores.add(site, summed(product, site.kind, question.parts))
            if path == "activations":
                whole = _patched(question, site, rows, other.acts[site]) - base.values
                scores.add_total(site, question.plan.sign * whole)
        scores.add_values(question, base.values, other.values)
        if path == "inputs":
            scores.add_whole(question)
        if on_progress is not None:
            on_progress(done, len(batches))
    found = result(question, METHOD[path], scores, {"steps": steps, "path": path})
    return checked(found, handle, pairs, check, check, metric=question.metric, batch=batch, on_progress=on_progress)


def site_gradients(
    question: Question, rows: Int[Tensor, " batch"], base: Reading, other: Other, steps: int, path: str
) -> Iterator[tuple[Site, Tensor]]:
    """Yield (site, mean gradient along the path), shaped as the site's activation."""
    if path == "inputs":
        yield from _mean_gradients(question, rows, INPUT, question.sites, base, other, steps).items()
        return
    for site in question.sites:
        yield site, _mean_gradients(question, rows, site, (site,), base, other, steps)[site]


def _mean_gradients(
    question: Question,
    rows: Int[Tensor, " batch"],
    moving: Site,
    sites: tuple[Site, ...],
    base: Reading,
    other: Other,
    steps: int,
) -> dict[Site, Tensor]:
    """Return the gradient at `sites`, averaged over `steps` points between the two activations at `moving`."""
    start, way = base.acts[moving], other.acts[moving] - base.acts[moving]
    sums = {site: torch.zeros_like(base.acts[site]) for site in sites}
    points = (torch.arange(steps, device=start.device, dtype=start.dtype) + 0.5) / steps
    at_once = max(1, question.batch // len(rows))
    for alphas in points.split(at_once):
        times = len(alphas)
        weights = alphas.repeat_interleave(len(rows)).reshape(-1, *[1] * (start.ndim - 1))
        spread = torch.cat([start] * times) + weights * torch.cat([way] * times)
        repeated = rows.repeat(times)
        with (
            patch(question.handle, moving, lambda _, new=spread: new, view=question.view),
            capture(question.handle, sites, view=question.view, grad=True) as found,
        ):
            values = values_with_graph(question, question.base(repeated), repeated)
            backward(values)
            for site in sites:
                sums[site] += gradient_of(found[site]).unflatten(0, (times, len(rows))).sum(0)
    return {site: total / steps for site, total in sums.items()}


def _patched(question: Question, site: Site, rows: Int[Tensor, " batch"], value: Tensor) -> Float[Tensor, " batch"]:
    """Return the metric of the base run with the whole activation at `site` replaced by `value`."""
    with patch(question.handle, site, lambda _: value, view=question.view):
        return read(question, rows, ()).values
