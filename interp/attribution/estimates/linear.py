"""First-order estimates of patching: attribution patching, RelP, gradient times input.

    attribution patching   (a_clean - a_corrupt) . dm/da        Nanda 2023; Syed et al. 2023
    RelP                   (a_clean - a_corrupt) . rho          Jafari et al. 2025, arXiv 2508.21258
    gradient x input       a_clean . dm/da, a cell against 0    Simonyan et al. 2013

The gradient is taken at the run that a cell would be patched into: the corrupted one for denoising, the clean one for
noising. rho is the gradient that the rules of layer-wise relevance propagation make of it. Each costs two forwards and
one backward for any number of sites and cells; patching costs a forward for each cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from interp.attribution.axes import summed
from interp.attribution.estimates.cells import Scores, result
from interp.attribution.estimates.check import checked
from interp.attribution.estimates.question import (
    BATCH,
    AskedMetric,
    Progress,
    Question,
    Sites,
    ask,
    read_gradients,
    read_other,
)
from interp.attribution.relevance.rewriting import rewritten
from interp.attribution.relevance.rules import Rules, find_rules
from interp.attribution.result import Attribution
from interp.models import ModelHandle
from interp.sites import STREAM
from interp.tasks.pairs import Pairs


def attribution_patching(
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
) -> Attribution:
    """Return the first-order estimate of the effect of patching every cell.

    Args:
        handle: the model.
        pairs: clean and corrupted prompts.
        sites: where there are scores, as `Site` or by name.
        metric: what is explained, a metric or its name; None is the task's own.
        direction: `denoising` puts clean activations into the corrupted run, `noising` the reverse; None is denoising,
            and noising for the ablations.
        baseline: what clean activations are compared with: `corrupt`, or for an ablation `zero`, `mean`, `resample`.
        parts: what cells are a part by, of `pos`, `head` and `neuron`, as far as their kind has it; what is not named
            is summed.
        batch: prompts in a forward pass.
        on_progress: hears (done, total) batches of prompts, then patched prompts of the check.
        check: number of cells, the largest and as many random ones, that are really patched beside the estimate; 0
            measures none.

    Raises:
        ValueError: what `ask` refuses, or a metric without a gradient.
    """
    question = ask(handle, pairs, sites, metric, direction, baseline, parts, batch)
    found = _estimate(question, "atp", None, {}, on_progress)
    return checked(found, handle, pairs, check, check, metric=question.metric, batch=batch, on_progress=on_progress)


def relp(
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
    rules: Rules | str = "relp",
) -> Attribution:
    """Return attribution patching with the gradient that relevance rules rewrite; arguments as there.

    Args:
        handle: the model.
        pairs: clean and corrupted prompts.
        sites: where there are scores.
        metric: what is explained.
        direction: `denoising` or `noising`.
        baseline: what clean activations are compared with.
        parts: what cells are a part by.
        batch: prompts in a forward pass.
        on_progress: hears (done, total) batches of prompts, then patched prompts of the check.
        check: number of cells that are really patched beside the estimate.
        rules: a preset's name or rules, as `interp.attribution.relevance.rewritten` takes them.

    Raises:
        ValueError: as in `attribution_patching`, or unknown rules.
    """
    question = ask(handle, pairs, sites, metric, direction, baseline, parts, batch)
    scoreless = sorted({site.kind for site in question.sites} & {"q", "k", "pattern"})
    if scoreless and find_rules(rules).attention == "frozen":
        raise ValueError(
            f"These rules hold attention patterns fixed, so that no relevance reaches {', '.join(scoreless)}: leave "
            "them out, or pass rules='relp_qk'."
        )
    about = {"rules": rules if isinstance(rules, str) else repr(rules)}
    found = _estimate(question, "relp", lambda: rewritten(handle, rules), about, on_progress)
    return checked(found, handle, pairs, check, check, metric=question.metric, batch=batch, on_progress=on_progress)


def gradient_x_input(
    handle: ModelHandle,
    pairs: Pairs,
    sites: Sites,
    *,
    metric: AskedMetric = None,
    direction: str = "noising",
    baseline: str = "zero",
    parts: Iterable[str] = ("pos",),
    batch: int = BATCH,
    on_progress: Progress | None = None,
    check: int = 10,
) -> Attribution:
    """Return a_clean . gradient at the clean run: attribution patching against 0; arguments as there.

    The corrupted prompts are read for their metric only. The sum over a whole stream equals the metric where the model
    is homogeneous in it, and no further; `completeness` has the gap.

    Raises:
        ValueError: as in `attribution_patching`, or another direction or baseline.
    """
    if (direction, baseline) != ("noising", "zero"):
        raise ValueError(
            "gradient_x_input compares the clean run with 0 (direction noising, baseline zero), got "
            f"{direction}, {baseline}. attribution_patching takes other ones."
        )
    question = ask(handle, pairs, sites, metric, direction, baseline, parts, batch)
    found = _estimate(question, "gradient_x_input", None, {}, on_progress)
    return checked(found, handle, pairs, check, check, metric=question.metric, batch=batch, on_progress=on_progress)


def _estimate(
    question: Question,
    method: str,
    around: Callable[[], AbstractContextManager[object]] | None,
    about: dict[str, Any],
    on_progress: Progress | None,
) -> Attribution:
    """Return the scores (difference) . (gradient at the base run, taken inside `around`)."""
    scores, batches = Scores(), question.batches()
    for done, rows in enumerate(batches, 1):
        base = read_gradients(question, rows, around)
        other = read_other(question, rows, base)
        for site in question.sites:
            product = (other.acts[site] - base.acts[site]) * base.grads[site]
            scores.add(site, question.plan.sign * summed(product, site.kind, question.parts))
        scores.add_values(question, base.values, other.values)
        if question.plan.baseline == "corrupt":
            scores.add_whole(question)
        elif question.plan.baseline == "zero":
            for site in question.sites:
                if site.kind in STREAM:
                    scores.add_total(site, base.values)
        if on_progress is not None:
            on_progress(done, len(batches))
    return result(question, method, scores, about)
