"""AtP*: attribution patching with its two known blind spots mended (Kramar et al. 2024, arXiv 2403.00745).

QK fix. Where attention is saturated the gradient through the softmax is about 0, though another query or key would
move all of it. For q and k cells the softmax is recomputed exactly and only what follows is linear:

    score = (dm/dA) . (A' - A),    A' the pattern with the cell's query or key exchanged

GradDrop. A cell's direct effect and its effect through a later layer may cancel in the gradient. With dm/da without
what runs through the blocks' contribution to the stream of layer l (one backward for each l),

    magnitude = mean over l of |score with layer l dropped|

over the layers whose dropping leaves the cell a gradient: all but its own for what lies within a block, all for the
stream. The published score is that magnitude. Here it carries the sign of the estimate without dropping, so that
it can stand beside the other methods; `signed=False` gives it as published.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attribution.axes import parts_of, summed
from interp.attribution.estimates.attention import Attention, Attentions, key_effects, query_effects
from interp.attribution.estimates.cells import Scores, result
from interp.attribution.estimates.check import checked
from interp.attribution.estimates.question import (
    BATCH,
    AskedMetric,
    Progress,
    Question,
    Reading,
    Sites,
    ask,
    backward,
    gradient_of,
    read_other,
    values_with_graph,
)
from interp.attribution.result import Attribution
from interp.hooks import capture, patch
from interp.models import ModelHandle
from interp.sites import STREAM, Site
from interp.tasks.pairs import Pairs

WRITES = ("attn_out", "mlp_out")
"""What a block adds to the stream."""


def atp_star(
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
    grad_drop: bool = True,
    signed: bool = True,
) -> Attribution:
    """Return the AtP* estimate of the effect of patching every cell.

    Args:
        handle: the model, which runs fused attention (sdpa) where sites q or k are asked for.
        pairs: clean and corrupted prompts.
        sites: where there are scores; not `pattern`.
        metric: what is explained, a metric or its name; None is the task's own.
        direction: `denoising` or `noising`.
        baseline: `corrupt`.
        parts: what cells are a part by. The key of a head without `pos` is exchanged at all positions at once.
        batch: prompts in a forward pass.
        on_progress: hears (done, total) batches of prompts, then patched prompts of the check.
        check: number of cells that are really patched beside the estimate.
        grad_drop: False leaves out the backward passes with a layer dropped, and gives the QK fix alone.
        signed: False gives GradDrop's magnitudes.

    Raises:
        ValueError: as in `attribution_patching`; a pattern; GradDrop on a model of one layer.
    """
    question = ask(handle, pairs, sites, metric, direction, baseline, parts, batch)
    if baseline != "corrupt":
        raise ValueError(f"AtP* exchanges queries and keys with the corrupted run, got baseline {baseline!r}.")
    if question.view != "hf":
        raise ValueError("AtP* has no score for a pattern: attribution_patching is exact in the softmax there.")
    if grad_drop and handle.n_layers < 2:
        raise ValueError("GradDrop leaves out one layer at a time, and this model has one. Pass grad_drop=False.")
    scores, batches = Scores(), question.batches()
    for done, rows in enumerate(batches, 1):
        _add_batch(question, scores, rows, grad_drop, signed)
        if on_progress is not None:
            on_progress(done, len(batches))
    found = result(question, "atp_star", scores, {"grad_drop": grad_drop, "signed": signed})
    return checked(found, handle, pairs, check, check, metric=question.metric, batch=batch, on_progress=on_progress)


@dataclass
class _Gates:
    """Which layer's contribution to the stream passes no gradient (None: every layer's does)."""

    closed: int | None = None
    layers: list[int] = field(default_factory=list)

    def gate(self, value: Tensor, layer: int) -> Tensor:
        """Return `value`, whose gradient is 0 while `layer` is closed."""
        if value.requires_grad:
            value.register_hook(lambda grad: torch.zeros_like(grad) if self.closed == layer else None)
        return value


@contextmanager
def _gated(handle: ModelHandle, gates: _Gates) -> Iterator[None]:
    """Put a gate at what every block adds to the stream, behind whatever is captured there."""
    with ExitStack() as stack:
        for layer in range(handle.n_layers):
            for kind in WRITES:
                stack.enter_context(patch(handle, Site(layer, kind), partial(gates.gate, layer=layer)))
        yield


def _add_batch(question: Question, scores: Scores, rows: Int[Tensor, " batch"], grad_drop: bool, signed: bool) -> None:
    """Add the scores of the prompts `rows`."""
    handle, gates = question.handle, _Gates()
    softmax = any(site.kind in ("q", "k") for site in question.sites)
    with (
        capture(handle, question.sites, grad=True) as found,
        _gated(handle, gates),
        Attentions() as near,
    ):
        values = values_with_graph(question, question.base(rows), rows)
    base = Reading({site: value.detach() for site, value in found.items()}, {}, values.detach())
    with Attentions() as far:
        other = read_other(question, rows, base)
    patterns = list(zip(near.layers(handle.n_layers), far.layers(handle.n_layers), strict=True)) if softmax else []

    def estimate(closed: int | None, keep: bool) -> dict[Site, Tensor]:
        """Return the scores of every site with the gradient of one more backward pass."""
        gates.closed = closed
        for value in (*found.values(), *(attention.out for attention in near.found)):
            value.grad = None
        backward(values, keep)
        return {site: _score(question, site, found[site], other.acts[site], patterns) for site in question.sites}

    dropped = range(handle.n_layers) if grad_drop else ()
    plain = estimate(None, keep=grad_drop)
    sums = {site: torch.zeros_like(plain[site]) for site in question.sites}
    for layer in dropped:
        for site, values_without in estimate(layer, keep=layer + 1 < handle.n_layers).items():
            sums[site] += values_without.abs()
    for site in question.sites:
        passes = handle.n_layers - (site.kind not in STREAM)
        size = sums[site] / passes if grad_drop else plain[site]
        scores.add(site, size * plain[site].sign() if grad_drop and signed else size)
    scores.add_values(question, values.detach(), other.values)


def _score(
    question: Question, site: Site, base: Tensor, other: Tensor, patterns: list[tuple[Attention, Attention]]
) -> Float[Tensor, "batch ..."]:
    """Return the scores of one site after a backward pass."""
    if site.kind not in ("q", "k"):
        product = (other - base.detach()) * gradient_of(base)
        return question.plan.sign * summed(product, site.kind, question.parts)
    near, far = patterns[site.layer]
    if site.kind == "q":
        effects = query_effects(near, far)
    else:
        effects = key_effects(near, far, question.handle.n_kv_heads, "pos" in question.parts)
    cells = effects.transpose(1, 2)  # [batch pos head]
    kept = parts_of(site.kind, question.parts)
    gone = [axis for axis, name in enumerate(("pos", "head"), 1) if name not in kept]
    return question.plan.sign * (cells.sum(gone) if gone else cells).cpu().double()
