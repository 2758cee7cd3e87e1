"""What every estimate is asked, checked once, and the runs that it needs: activations, gradients, metric.

The base run is the one that a cell would be patched into, the other the one that the patch comes from:

    denoising   base corrupted, other clean       noising   base clean, other corrupted

Ablations (baselines zero, mean, resample) are noising with other activations in the place of the corrupted run's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attribution.patching.cells import chosen_sites
from interp.attribution.patching.maps import check_parts
from interp.attribution.patching.runs import check_gradient, last_logits, resolve_metric, run
from interp.attribution.patching.sources import Plan, make_plan
from interp.hooks import capture
from interp.models import ModelHandle
from interp.sites import Site
from interp.tasks.metrics import Metric, measured
from interp.tasks.pairs import Pairs

Progress: TypeAlias = Callable[[int, int], object]
"""Hears (done, total) batches of prompts."""

Sites: TypeAlias = Site | str | Iterable[Site | str]
AskedMetric: TypeAlias = Metric | Callable[[Tensor, Tensor], Tensor] | str | None

BATCH = 16
"""Prompts in a forward pass, unless told otherwise; the graph of all of them is held until the backward."""


@dataclass(frozen=True, eq=False)
class Question:
    """One model, pairs, sites and metric, and what would be patched with what."""

    handle: ModelHandle
    """The model."""
    pairs: Pairs
    """Clean and corrupted prompts."""
    sites: tuple[Site, ...]
    """Where there are scores."""
    metric: Metric
    """What is explained."""
    plan: Plan
    """Base and source of the patches that are estimated."""
    parts: tuple[str, ...]
    """What cells are a part by, as far as their kind has it."""
    batch: int
    """Prompts in a forward pass."""

    @property
    def view(self) -> str:
        """The bridge where a pattern is asked for, which exists in no other view."""
        return "bridge" if any(site.kind == "pattern" for site in self.sites) else "hf"

    def batches(self) -> list[Int[Tensor, " batch"]]:
        """Return the numbers of the prompts, batch by batch."""
        return list(torch.arange(len(self.pairs), device=self.handle.device).split(self.batch))

    def base(self, rows: Int[Tensor, " batch"]) -> Int[Tensor, "batch pos"]:
        """Return the prompts of the base run."""
        return self.plan.base.to(self.handle.device)[rows]


@dataclass(frozen=True, eq=False)
class Reading:
    """What the runs of a batch gave."""

    acts: dict[Site, Tensor]
    """Activations of the base run."""
    grads: dict[Site, Tensor]
    """d metric / d activation in the base run; empty if they were not asked for."""
    values: Float[Tensor, " batch"]
    """The metric of the base run."""


@dataclass(frozen=True, eq=False)
class Other:
    """What is put in the place of the base run's activations."""

    acts: dict[Site, Tensor]
    """Activations."""
    values: Float[Tensor, " batch"]
    """The metric of the run of the pair that is not the base."""


def ask(
    handle: ModelHandle,
    pairs: Pairs,
    sites: Sites,
    metric: AskedMetric,
    direction: str | None,
    baseline: str,
    parts: Iterable[str],
    batch: int,
) -> Question:
    """Return the question, checked.

    Raises:
        ValueError: a site that the model has not, an unknown direction, baseline or part, a batch below 1, prompts that
            the model cannot read.
    """
    asked = (parts,) if isinstance(parts, str) else tuple(parts)
    chosen = tuple(chosen_sites(handle, sites))
    check_parts(chosen, asked, None)
    if batch < 1:
        raise ValueError(f"batch must be 1 or more, got {batch}.")
    if pairs.n_pos > handle.n_ctx:
        raise ValueError(f"The model reads at most n_ctx={handle.n_ctx} tokens at a time, got {pairs.n_pos}.")
    view = "bridge" if any(site.kind == "pattern" for site in chosen) else "hf"
    plan = make_plan(handle, pairs, chosen, direction=direction, baseline=baseline, batch=batch, view=view)
    return Question(handle, pairs, chosen, resolve_metric(handle, pairs, metric, batch), plan, asked, batch)


def read(question: Question, rows: Int[Tensor, " batch"], sites: Iterable[Site] | None = None) -> Reading:
    """Return the base run without gradients, with activations at `sites` (None: the question's)."""
    wanted = question.sites if sites is None else tuple(sites)
    acts, logits = run(question.handle, question.base(rows), wanted, question.metric.reads, question.view)
    with torch.no_grad():
        return Reading(acts, {}, measured(question.metric, logits, rows))


def read_other(question: Question, rows: Int[Tensor, " batch"], base: Reading) -> Other:
    """Return what is put in at the sites of `base`, and the metric of the pair's other run."""
    plan, pairs = question.plan, question.pairs
    tokens = (pairs.clean if plan.direction == "denoising" else pairs.corrupt).to(question.handle.device)[rows]
    exchanged = plan.baseline == "corrupt"
    sites = tuple(base.acts) if exchanged else ()
    acts, logits = run(question.handle, tokens, sites, question.metric.reads, question.view)
    if not exchanged:
        prompts = slice(int(rows[0]), int(rows[-1]) + 1)
        acts = plan.activations(question.handle, prompts, base.acts, question.view)
    with torch.no_grad():
        return Other(acts, measured(question.metric, logits, rows))


def read_gradients(
    question: Question,
    rows: Int[Tensor, " batch"],
    around: Callable[[], AbstractContextManager[object]] | None = None,
) -> Reading:
    """Return the base run with gradients; what `around` makes is entered around forward and backward."""
    with ExitStack() as stack:
        if around is not None:
            stack.enter_context(around())
        found = stack.enter_context(capture(question.handle, question.sites, view=question.view, grad=True))
        values = values_with_graph(question, question.base(rows), rows)
        backward(values)
        grads = {site: gradient_of(found[site]) for site in question.sites}
    return Reading({site: value.detach() for site, value in found.items()}, grads, values.detach())


def values_with_graph(
    question: Question, tokens: Int[Tensor, "batch pos"], rows: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return the metric of a run inside an open `capture(grad=True)`.

    Raises:
        ValueError: the metric has no gradient.
    """
    with torch.enable_grad(), last_logits(question.handle, question.metric.reads, question.view):
        logits = question.handle.logits(tokens, view=question.view)
        values = measured(question.metric, logits, rows)
        if logits.requires_grad:
            check_gradient(question.metric, values)
    return values


def backward(values: Float[Tensor, " batch"], keep: bool = False) -> None:
    """Send gradients back from every prompt's metric, if it depends on anything that was captured."""
    if values.requires_grad:
        values.sum().backward(retain_graph=keep)


def gradient_of(value: Tensor) -> Tensor:
    """Return the gradient that `backward` left at a captured activation, 0 where nothing depends on it."""
    return torch.zeros_like(value) if value.grad is None else value.grad.detach()
