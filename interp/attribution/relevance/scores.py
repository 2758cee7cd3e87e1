"""Relevance of a task's prompts, or of any tokens, at every layer: R = a * rho in one forward and one backward.

rho is the rewritten gradient of the metric at an activation a (`interp.attribution.relevance.rules`). A cell's score is
the sum of R over its numbers: over the width for each position, over d_head for each head and position, over positions
for each neuron. The relevance of all positions of the residual stream in one layer adds up to that of the output where
the rules conserve it and no bias takes a share; `completeness` says how far it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attribution.axes import axis_names, summed
from interp.attribution.patching.cells import chosen_sites
from interp.attribution.patching.runs import check_gradient, last_logits, metric_of
from interp.attribution.relevance.conditions import Through
from interp.attribution.relevance.prompts import AskedMetric, explained
from interp.attribution.relevance.rewriting import rewriting
from interp.attribution.relevance.rules import Rules, find_rules
from interp.attribution.result import Attribution
from interp.attribution.tables import completeness_table, nodes_of, token_labels, token_texts
from interp.hooks import capture
from interp.models.handle import ModelHandle
from interp.models.taps import VIEWS
from interp.sites import STREAM, WITH_HEADS, Site
from interp.tasks.metrics import Metric, measured
from interp.tasks.pairs import Pairs

SITES = ("embed", "resid_pre", "head_out", "attn_out", "mlp_out")
"""What is scored unless asked otherwise. `embed` are the token embeddings, and `pos_embed` learnt positions if any."""


@dataclass(frozen=True, eq=False)
class _Asked:
    """One question, checked."""

    handle: ModelHandle
    rules: Rules
    metric: Metric
    sites: list[Site]
    embeddings: bool
    conditions: list[Through]
    view: str

    @property
    def read(self) -> list[Site]:
        """Sites whose activation and gradient are needed."""
        embedded = [Site(0, "resid_pre")] if self.embeddings else []
        return list(dict.fromkeys([*self.sites, *embedded, *(one.at for one in self.conditions)]))


@dataclass
class _Found:
    """Scores of every prompt by kind and layer, and the metric and relevance of the output, batch by batch."""

    cells: dict[tuple[str, int], list[Float[Tensor, "batch ..."]]] = field(default_factory=dict)
    clean: list[Float[Tensor, " batch"]] = field(default_factory=list)
    output: list[Float[Tensor, " batch"]] = field(default_factory=list)

    def add(self, kind: str, layer: int, values: Tensor) -> None:
        self.cells.setdefault((kind, layer), []).append(values)


def relevance(
    handle: ModelHandle,
    prompts: Pairs | Int[Tensor, "*prompt pos"],
    metric: AskedMetric = None,
    *,
    preset: Rules | str = "cp_lrp",
    through: Through | Sequence[Through] = (),
    sites: Site | str | Iterable[Site | str] = SITES,
    batch: int = 16,
    view: str = "hf",
    on_progress: Callable[[int, int], object] | None = None,
) -> Attribution:
    """Return the relevance of the cells at `sites` for `metric` on the (clean) prompts.

    Args:
        handle: the model.
        prompts: pairs of a task, of which the clean prompts are explained, or token ids.
        metric: what is explained; None: the task's own, and for tokens the logit of the likeliest next token.
        preset: rules of relevance, or the name of a preset.
        through: conditions that relevance has to run through. What lies after the first of them gets no score.
        sites: sites, kinds (`mlp_act`: all layers), patterns of sites, and `embed`.
        batch: prompts of one pass.
        view: `hf` or `bridge`.
        on_progress: hears (prompts done, prompts in all).

    Returns:
        Scores by position, by head and position (`head_out`, `q`, `k`, `v`) or by neuron (`mlp_act`), in units of the
        metric, averaged over prompts. `values["output"]` is the relevance of the logits, or what the conditions let
        pass: the metric itself where that is linear in the logits. `completeness` compares each layer with it.

    Raises:
        ValueError: tokens, metric, sites, conditions or preset do not fit.
    """
    tokens, found_metric = explained(handle, prompts, metric, batch)
    conditions = sorted([through] if isinstance(through, Through) else through, key=lambda one: one.at)
    for one in conditions:
        one.check(handle, tokens.shape[1])
    if len({one.at for one in conditions}) < len(conditions):
        raise ValueError("Conditions must lie at different sites; name all heads of a site in one of them.")
    asked = _Asked(handle, find_rules(preset), found_metric, *_sites(handle, sites, conditions), conditions, view)
    found = _Found()
    for rows in torch.arange(len(tokens), device=handle.device).split(batch):
        _explain(asked, tokens[rows.to(tokens.device)], rows, found)
        if on_progress is not None:
            on_progress(int(rows[-1]) + 1, len(tokens))
    return _result(asked, prompts, tokens, found, preset, batch)


def _sites(handle: ModelHandle, sites: Any, conditions: list[Through]) -> tuple[list[Site], bool]:
    """Return (sites that get scores, whether the embeddings do)."""
    given = [sites] if isinstance(sites, Site | str) else list(sites)
    others = [one for one in given if one != "embed"]
    found = chosen_sites(handle, others) if others or not given else []
    if any(site.kind == "pattern" for site in found):
        raise ValueError("A pattern has no relevance: the rules take it as a constant, or relevance does not add up.")
    if conditions:
        found = [site for site in found if site <= conditions[0].at]
    return found, "embed" in given


def _explain(asked: _Asked, tokens: Tensor, rows: Tensor, found: _Found) -> None:
    """Add the relevance of a batch to `found`."""
    handle, view = asked.handle, asked.view
    follow = VIEWS if asked.rules.layers else ()
    with handle.lock, ExitStack() as undo:
        undo.enter_context(rewriting(handle, asked.rules, follow))
        undo.enter_context(last_logits(handle, asked.metric.reads, view))
        for one in asked.conditions:
            undo.enter_context(one.opened(handle, view))
        acts = undo.enter_context(capture(handle, asked.read, view=view, grad=True))
        logits = handle.forward(tokens, view=view, grad=True)
    if logits is None:
        raise RuntimeError("A capture(stop=True) around relevance() ended the pass before the logits.")
    values = measured(asked.metric, logits, rows)
    check_gradient(asked.metric, values)
    rhos, output = _propagate(asked, acts, logits, values)
    found.clean.append(values.detach().double().cpu())
    found.output.append(output.double().cpu())
    _score(asked, tokens, acts, rhos, found)


def _propagate(asked: _Asked, acts: Any, logits: Tensor, values: Tensor) -> tuple[dict[Site, Tensor], Tensor]:
    """Return (rho at each site that is read and lies before the conditions, relevance handed on [batch])."""
    if not asked.conditions:
        read = [*(acts[site] for site in asked.read), logits]  # the rules may leave no way to some, such as queries
        *rhos, at_logits = torch.autograd.grad(values.sum(), read, materialize_grads=True)
        return dict(zip(asked.read, rhos, strict=True)), (logits.detach() * at_logits).flatten(1).sum(1)
    end: Tensor = values.sum()
    seed = torch.ones_like(end)
    for one in reversed(asked.conditions):
        (rho,) = torch.autograd.grad(end, acts[one.at], seed, retain_graph=True, materialize_grads=True)
        end, seed = acts[one.at], one.masked(rho)
    first = asked.conditions[0].at
    sites = [site for site in asked.read if site < first]
    rhos = torch.autograd.grad(end, [acts[site] for site in sites], seed, materialize_grads=True) if sites else ()
    return {first: seed, **dict(zip(sites, rhos, strict=True))}, (end.detach() * seed).flatten(1).sum(1)


def _score(asked: _Asked, tokens: Tensor, acts: Any, rhos: dict[Site, Tensor], found: _Found) -> None:
    for site in asked.sites:
        if site in rhos:
            parts = _parts(site.kind)
            found.add(site.kind, site.layer, summed(acts[site].detach() * rhos[site], site.kind, parts))
    first = Site(0, "resid_pre")
    if asked.embeddings and first in rhos:
        module: Any = asked.handle.module
        embedded = module.get_input_embeddings().weight[tokens.to(asked.handle.device)]
        found.add("embed", 0, summed(embedded * rhos[first], "resid_pre", ("pos",)))
        positions = getattr(getattr(module, "transformer", None), "wpe", None)
        if positions is not None:
            learnt = positions.weight[: tokens.shape[1]].expand_as(embedded)
            found.add("pos_embed", 0, summed(learnt * rhos[first], "resid_pre", ("pos",)))


def _parts(kind: str) -> tuple[str, ...]:
    return ("pos", "head") if kind in WITH_HEADS else ("neuron",) if kind == "mlp_act" else ("pos",)


def _result(asked: _Asked, prompts: Any, tokens: Tensor, found: _Found, preset: Rules | str, batch: int) -> Attribution:
    import pyarrow as pa

    cells = {key: torch.cat(parts).numpy() for key, parts in found.cells.items()}
    if not cells:
        raise ValueError("No site that was asked for lies before the condition; ask for earlier ones, such as 'embed'.")
    tables = []
    for (kind, layer), values in cells.items():
        names = [name for name in axis_names(kind) if name in _parts(kind)]
        grid = list(np.indices(values.shape[1:]).reshape(values.ndim - 1, -1))
        tables.append(nodes_of(kind, layer, names, grid, values.reshape(len(values), -1)))
    handle, output = asked.handle, float(torch.cat(found.output).mean())
    labels = token_labels(handle, prompts) if isinstance(prompts, Pairs) else token_texts(handle, tokens[0])
    numbers = {"clean": float(torch.cat(found.clean).mean()), "output": output, "prompts": float(len(tokens))}
    if isinstance(prompts, Pairs):
        numbers["corrupt"] = float(metric_of(asked.handle, prompts.corrupt, asked.metric, batch).mean())
    return Attribution(
        preset if isinstance(preset, str) else "relevance",
        asked.metric.name,
        "none",
        "relevance",
        pa.concat_tables(tables),
        completeness_table(_sums(cells, output)),
        labels,
        numbers,
        about={
            "model": asked.handle.spec.name,
            "task": prompts.task if isinstance(prompts, Pairs) else "text",
            "rules": asdict(asked.rules),
            "through": [one.describe() for one in asked.conditions],
            "sites": [*(["embed"] if asked.embeddings else []), *map(str, asked.sites)],
            "view": asked.view,
        },
    )


def _sums(cells: dict[tuple[str, int], np.ndarray], output: float) -> list[tuple[str, int, str, float, float]]:
    """Return the rows of `completeness`: what a whole layer of the stream, or the embeddings together, explain."""
    rows = [
        (kind, layer, "all", float(values.sum() / len(values)), output)
        for (kind, layer), values in cells.items()
        if kind in STREAM
    ]
    embedded = [values.sum() / len(values) for (kind, _), values in cells.items() if kind.endswith("embed")]
    return [*rows, *([("embed", 0, "all", float(sum(embedded)), output)] if embedded else [])]
