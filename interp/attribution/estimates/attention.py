"""What fused attention did in a forward: its queries, keys, mask and scale as the softmax saw them.

`scaled_dot_product_attention` never forms the pattern A. With queries and keys (after rotary positions) at hand A can
be formed afterwards, and from the gradient G_o of what attention put out and its values v the gradient at the pattern
is (dm/dA)_ts = G_o[t] . v[s]. Works in the plain Hugging Face view, for every family and any recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


CANCELLED = 1e-6
"""Share of probability left in a row, below which its softmax is formed anew."""


@dataclass(frozen=True, eq=False)
class Attention:
    """One call: the heads of one layer."""

    query: Float[Tensor, "batch head pos d_head"]
    """Queries as the softmax sees them."""
    key: Float[Tensor, "batch kv_head pos d_head"]
    """Keys likewise; fewer heads where they are shared."""
    value: Float[Tensor, "batch kv_head pos d_head"]
    """Values."""
    bias: Float[Tensor, "... pos pos"]
    """Added to the logits: 0, or -inf where a query must not look."""
    scale: float
    """The logits are scale * query . key + bias."""
    out: Float[Tensor, "batch head pos d_head"]
    """What attention puts out; its `.grad` is there after `backward`."""


class Attentions(TorchFunctionMode):
    """A context that keeps every call of fused attention, in the order of layers, in `found`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Attention] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`; keep it if it is attention."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is scaled_dot_product_attention:
            if out.requires_grad:
                out.retain_grad()
            given = dict(zip(_NAMES, args, strict=False)) | kwargs
            query, key = given["query"], given["key"]
            scale = given.get("scale")
            self.found.append(
                Attention(
                    query.detach(),
                    key.detach(),
                    given["value"].detach(),
                    _bias(query, key, given.get("attn_mask"), bool(given.get("is_causal", False))),
                    1 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
                    out,
                )
            )
        return out

    def layers(self, n_layers: int) -> list[Attention]:
        """Return the calls, one for each layer.

        Raises:
            ValueError: the model did not run fused attention once in each layer.
        """
        if len(self.found) != n_layers:
            raise ValueError(
                f"The QK fix reads fused attention (sdpa) once in each of {n_layers} layers, got {len(self.found)} "
                "calls: load the model with attn_implementation='sdpa', or leave out sites q and k."
            )
        return self.found


def _bias(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Return what is added to the logits."""
    bias = torch.zeros(query.shape[-2], key.shape[-2], dtype=torch.float64, device=query.device)
    if causal:
        ahead = torch.ones_like(bias, dtype=torch.bool).triu(1)
        bias = bias.masked_fill(ahead, -torch.inf)
    if mask is None:
        return bias
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def logits_of(attention: Attention, query: Tensor, key: Tensor) -> Float[Tensor, "batch head query key"]:
    """Return the logits of `query` and `key` in float64, with the mask and scale of `attention`."""
    spread = key.double().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return attention.scale * query.double() @ spread.transpose(-1, -2) + attention.bias


def pattern_gradient(attention: Attention) -> Float[Tensor, "batch head query key"]:
    """Return dm/dA after `backward`, in float64."""
    out = attention.out
    if out.grad is None:
        return torch.zeros(*out.shape[:3], attention.key.shape[2], dtype=torch.float64, device=out.device)
    spread = attention.value.double().repeat_interleave(out.shape[1] // attention.value.shape[1], dim=1)
    return out.grad.double() @ spread.transpose(-1, -2)


def query_effects(base: Attention, other: Attention) -> Float[Tensor, "batch head query"]:
    """Return G . (A' - A), A' with the query of one position and head from `other`: a row of logits changes."""
    changed = logits_of(base, other.query, base.key).softmax(-1) - logits_of(base, base.query, base.key).softmax(-1)
    return (pattern_gradient(base) * changed).sum(-1)


def key_effects(base: Attention, other: Attention, kv_heads: int, single: bool) -> Float[Tensor, "batch kv_head key"]:
    """Return G . (A' - A), A' with keys from `other`, summed over the heads that share one of `kv_heads` keys.

    With `single` the key of one position is exchanged at a time. A column of logits changes then, each row in one
    place, and with p the old probability there, delta the change of the logit and g the gradient,

        G . (A' - A) = sum_t r (g - sum_j A_j g_j),    r = p (e^delta - 1) / (1 + p (e^delta - 1)),

    so that all keys together cost no more than one pattern. Otherwise all positions of a head are exchanged at once
    and the whole effect stands in the last axis' only entry.
    """
    before, gradient = logits_of(base, base.query, base.key), pattern_gradient(base)
    after = logits_of(base, base.query, other.key)
    if single:
        effects = _column_effects(before, after, gradient).sum(-2)
    else:
        effects = (gradient * (after.softmax(-1) - before.softmax(-1))).sum((-1, -2)).unsqueeze(-1)
    return effects.unflatten(1, (kv_heads, -1)).sum(2)


def _column_effects(before: Tensor, after: Tensor, gradient: Tensor) -> Float[Tensor, "batch head query key"]:
    """Return what the exchange of one logit of a row does, at the place of that logit."""
    pattern = before.softmax(-1)
    delta = (after - before).masked_fill(before.isneginf(), 0.0)
    # For large delta everything is divided by e^delta, so that nothing overflows.
    grown = pattern * torch.where(delta > 0, -torch.expm1(-delta), torch.expm1(delta))
    rest = torch.where(delta > 0, torch.exp(-delta), 1.0) + grown
    effects = grown / rest * (gradient - (pattern * gradient).sum(-1, keepdim=True))
    lost = (rest < CANCELLED).nonzero()  # nearly all probability leaves: the difference of gradients has cancelled
    if len(lost):
        batch, head, row, column = lost.T
        changed = before[batch, head, row]
        changed[torch.arange(len(lost), device=changed.device), column] = after[batch, head, row, column]
        moved = changed.softmax(-1) - pattern[batch, head, row]
        effects[batch, head, row, column] = (moved * gradient[batch, head, row]).sum(-1)
    return effects
