"""Is relevance conserved? What each layer receives, against what the layers above it hand down.

    relevance_l = sum over positions and width of a * rho at resid_pre.l
    target_l    = relevance_(l+1)  (above the last block: the relevance of the logits)
    gap_l       = target_l - relevance_l  =  bias_l + rest_l

bias_l is what the biases of block l (of its linear layers and norms) take, counted operation by operation; rest_l is
what the rules themselves lose or make. The rules 0, gamma, alpha-beta and those of `cp_lrp` and `relp` have no rest;
epsilon keeps some back, alpha-beta where an output has no contribution of one sign, and a softmax that is not frozen
(`attn_lrp`, `relp_qk`, `gradient`) is not conservative at all.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from interp.attribution.patching.runs import check_gradient
from interp.attribution.relevance.operations import Ledger
from interp.attribution.relevance.prompts import AskedMetric, explained
from interp.attribution.relevance.rewriting import rewriting
from interp.attribution.relevance.rules import Rules, find_rules
from interp.hooks import capture
from interp.models.handle import ModelHandle
from interp.models.taps import VIEWS
from interp.sites import Site
from interp.tasks.metrics import measured
from interp.tasks.pairs import Pairs

if TYPE_CHECKING:
    import pyarrow as pa


class Wide(TorchFunctionMode):
    """Keeps float64 where a model would compute a part of itself in float32, as Llama's RMSNorm does.

    Otherwise that rounding, not the rules, would be what a check in float64 sees.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to or func is Tensor.float or "dtype" in kwargs:
            given = args[0] if args else None
            if isinstance(given, Tensor) and given.dtype == torch.float64:
                narrow = func is Tensor.float or torch.float32 in args[1:] or kwargs.get("dtype") is torch.float32
                if narrow and func in (Tensor.to, Tensor.float):
                    return given
                if narrow:
                    kwargs = kwargs | {"dtype": torch.float64}
        return func(*args, **kwargs)


def check_conservation(
    handle: ModelHandle,
    prompts: Pairs | Int[Tensor, "*prompt pos"],
    metric: AskedMetric = None,
    preset: Rules | str = "cp_lrp",
    *,
    view: str = "hf",
    batch: int = 16,
) -> pa.Table:
    """Return what each layer's relevance is and should be, averaged over prompts, in units of the metric.

    Args:
        handle: the model; in float64 every part of it is computed in float64.
        prompts: pairs of a task (their clean prompts) or token ids.
        metric: what is explained; None: the task's own, and for tokens the logit of the likeliest next token.
        preset: rules of relevance, or the name of a preset.
        view: `hf` or `bridge`.
        batch: prompts of one pass.

    Returns:
        One row for each layer: layer (n_layers: the stream after the last block), relevance, target (what is handed
        down to it), gap (target - relevance), bias (what biases between take), rest (gap - bias), float64 but `layer`.

    Raises:
        ValueError: tokens, metric or preset do not fit.
    """
    import pyarrow as pa

    tokens, metric = explained(handle, prompts, metric, batch)
    rules, n, ledger = find_rules(preset), handle.n_layers, Ledger()
    sums = torch.zeros(n + 2, dtype=torch.float64)  # by layer; the last is that of the logits
    sites = [*(Site(layer, "resid_pre") for layer in range(n)), Site(n - 1, "resid_post")]
    for rows in torch.arange(len(tokens), device=handle.device).split(batch):
        with handle.lock, ExitStack() as undo:
            undo.enter_context(rewriting(handle, rules, (view,) if not rules.layers else VIEWS, ledger))
            if handle.unembed().dtype is torch.float64:  # elsewhere float64 is a step's own, such as its noise
                undo.enter_context(Wide())
            acts = undo.enter_context(capture(handle, sites, view=view, grad=True))
            logits = handle.forward(tokens[rows.to(tokens.device)], view=view, grad=True)
        if logits is None:
            raise RuntimeError("A capture(stop=True) around check_conservation() ended the pass before the logits.")
        values = measured(metric, logits, rows)
        check_gradient(metric, values)
        read = [*(acts[site] for site in sites), logits]
        rhos = torch.autograd.grad(values.sum(), read)
        sums += torch.stack([(a.detach() * rho).double().sum().cpu() for a, rho in zip(read, rhos, strict=True)])
    found, target = (sums / len(tokens))[:-1], (sums / len(tokens))[1:]
    bias = torch.tensor([ledger.taken.get(layer, 0.0) / len(tokens) for layer in range(n + 1)], dtype=torch.float64)
    columns = {"relevance": found, "target": target, "gap": target - found, "bias": bias, "rest": target - found - bias}
    layers = pa.array(range(n + 1), pa.int32())
    return pa.table({"layer": layers} | {name: values.numpy() for name, values in columns.items()})
