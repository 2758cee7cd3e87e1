"""What is explained: the clean prompts of a task and its metric, or any tokens and the likeliest next one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from interp.attribution.patching.runs import as_metric, resolve_metric, run
from interp.models.handle import ModelHandle
from interp.tasks.metrics import Custom, Metric
from interp.tasks.pairs import Pairs

AskedMetric = Metric | Callable[[Tensor, Tensor], Tensor] | str | None


def explained(
    handle: ModelHandle, prompts: Pairs | Int[Tensor, "*prompt pos"], metric: AskedMetric, batch: int
) -> tuple[Int[Tensor, "prompt pos"], Metric]:
    """Return (tokens, metric): of pairs the clean prompts; without a metric the task's, or `top_logit` of tokens.

    Raises:
        ValueError: a metric by name was asked of tokens, which have no answers, it reads more than a prompt has, or
            what is to be explained is neither pairs nor tokens.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}.")
    if isinstance(prompts, Pairs):
        return prompts.clean, resolve_metric(handle, prompts, metric, batch)
    if not isinstance(prompts, Tensor):
        raise ValueError(
            f"What is explained are Pairs or a tensor of token ids [prompt pos], got {type(prompts).__name__}. Text "
            "goes through tokens() of the model."
        )
    tokens = prompts[None] if prompts.ndim == 1 else prompts
    if isinstance(metric, str):
        raise ValueError(f"The metric {metric!r} needs the answers of a task's pairs; pass those, or a function.")
    if metric is None:
        top = torch.cat([run(handle, part, [], 1)[1][:, -1].argmax(-1) for part in tokens.split(batch)])
        return tokens, Custom(lambda logits, rows: logits[:, -1].gather(-1, top[rows][:, None])[:, 0], "top_logit")
    return tokens, as_metric(metric, tokens.shape[1])
