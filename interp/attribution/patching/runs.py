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
from interp.tasks import Custom, Metric, Pairs, measured, metric_for


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
        ValueError: the name is unknown, or the metric reads more positions than a prompt has.
    """
    if isinstance(metric, str) or metric is None:
        logits = None
        if (metric or pairs.metric) == "minus_kl":
            logits = torch.cat([run(handle, part, [], 1)[1][:, -1] for part in pairs.clean.split(batch)])
        found = metric_for(pairs, metric, logits)
    else:
        found = metric if isinstance(metric, Metric) else Custom(metric, getattr(metric, "__name__", "custom"))
    if not 1 <= found.reads <= pairs.n_pos:
        raise ValueError(
            f"The metric {found.name!r} reads the last {found.reads} positions, but the prompts have {pairs.n_pos}."
        )
    return found


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
