"""Plain forwards that patching needs: logits at the last positions, activations at sites, the metric's ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks import capture
from interp.models import ModelHandle
from interp.models.taps import mark
from interp.sites import Site
from interp.tasks import NOTHING, Custom, Metric, Pairs, measured, metric_for


@contextmanager
def last_logits(handle: ModelHandle, reads: int, view: str = "hf") -> Iterator[None]:
    """Let forwards unembed the last `reads` positions only; the bridge always unembeds all of them."""
    if view != "hf":
        yield
        return
    head: Any = handle.module.get_output_embeddings()
    with handle.lock:
        hook = head.register_forward_pre_hook(mark(lambda _module, args: (args[0][:, -reads:], *args[1:])))
        try:
            yield
        finally:
            hook.remove()


def run(
    handle: ModelHandle, tokens: Int[Tensor, "prompt pos"], sites: Sequence[Site], reads: int, view: str = "hf"
) -> tuple[dict[Site, Tensor], Float[Tensor, "prompt read d_vocab"]]:
    """Return the activations at `sites` and the logits at the last `reads` positions."""
    with handle.lock, ExitStack() as open_contexts:
        open_contexts.enter_context(last_logits(handle, reads, view))
        found = open_contexts.enter_context(capture(handle, sites, view=view)) if sites else {}
        logits = handle.logits(tokens, view=view)[:, -reads:]
    return dict(found), logits


def resolve_metric(
    handle: ModelHandle,
    pairs: Pairs,
    metric: Metric | Callable[[Tensor, Tensor], Tensor] | str | None = None,
    batch: int = 64,
) -> Metric:
    """Return the metric: of a name (None: the task's own), a `Metric` as it is, a function wrapped in `Custom`.

    Raises:
        ValueError: the name is unknown, an answer that the metric reads is missing or no token of the model, or the
            metric reads more positions than a prompt has.
    """
    if isinstance(metric, str) or metric is None:
        check_answers(handle, pairs, metric or pairs.metric)
        logits = None
        if (metric or pairs.metric) == "minus_kl":
            logits = torch.cat([run(handle, part, [], 1)[1][:, -1] for part in pairs.clean.split(batch)])
        return as_metric(metric_for(pairs, metric, logits), pairs.n_pos)
    return as_metric(metric, pairs.n_pos)


def as_metric(given: Metric | Callable[[Tensor, Tensor], Tensor], n_pos: int) -> Metric:
    """Return a metric as it is, and a function as a `Custom` of its name.

    Raises:
        ValueError: it is neither, or reads more positions than a prompt has.
    """
    if not callable(given):
        raise ValueError(f"A metric is a name, a Metric or a function of (logits, rows), got {given!r}.")
    found = given if isinstance(given, Metric) else Custom(given, getattr(given, "__name__", "custom"))
    if not 1 <= found.reads <= n_pos:
        raise ValueError(
            f"The metric {found.name!r} reads the last {found.reads} positions, but the prompts have {n_pos}."
        )
    return found


READ_BY = {"logit_diff": ("correct", "wrong"), "probability": ("correct",), "probability_diff": ("correct", "wrong")}
"""Which answers of the pairs a metric reads."""


def check_answers(handle: ModelHandle, pairs: Pairs, metric: str) -> None:
    """Refuse pairs without the answers that `metric` reads.

    Raises:
        ValueError: a prompt has none, or one is no token id of the model.
    """
    for name in READ_BY.get(metric, ()):
        ids = getattr(pairs, name)
        there = ids != NOTHING
        if not bool(there.any(1).all()):
            first = int((~there.any(1)).nonzero()[0, 0])
            raise ValueError(f"The metric {metric!r} reads the {name} answers, and prompt {first} has none.")
        wild = ids[there & ((ids < 0) | (ids >= handle.d_vocab))]
        if len(wild):
            raise ValueError(
                f"Ids of {name} answers must lie in 0..d_vocab-1={handle.d_vocab - 1} (or be {NOTHING}: nothing), got "
                f"{int(wild[0])}."
            )


def check_gradient(metric: Metric, values: Tensor) -> None:
    """Refuse a metric whose values do not depend on the logits by anything that has a gradient.

    Raises:
        ValueError: there is no gradient.
    """
    if not values.requires_grad:
        raise ValueError(f"The metric {metric.name!r} has no gradient, which this method needs: use patching.")


def metric_of(
    handle: ModelHandle, tokens: Int[Tensor, "prompt pos"], metric: Metric, batch: int, view: str = "hf"
) -> Float[Tensor, " prompt"]:
    """Return the metric of each prompt in a plain run.

    Raises:
        ValueError: the metric is no finite number for each prompt.
    """
    found = []
    for rows in torch.arange(len(tokens), device=handle.device).split(batch):
        found.append(measured(metric, run(handle, tokens[rows.to(tokens.device)], [], metric.reads, view)[1], rows))
    return torch.cat(found)
