"""Relevance of what each block adds, by layer-wise relevance propagation (Bach et al. 2015; rules: docs/relevance.md).

    R_l = sum over positions of (a_l + m_l) · rho

What is explained is the sum over the text of logit(next token) - mean logit; rho are rewritten gradients at attention's
and the MLP's output. One forward and one backward serve all layers and the whole text. `mass` adds up |R| of each
position and part, as scores of layers for compression do (LRP-QViT; Ranjan and Savakis 2024, there for images); the
signed sum may cancel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.attribution.relevance.rewriting import rewritten
from interp.attribution.relevance.rules import Rules
from interp.hooks import capture
from interp.layers.gates import predicted
from interp.models.handle import ModelHandle
from interp.sites import Site

PARTS = ("attn_out", "mlp_out")


@dataclass(frozen=True, eq=False)
class LayerRelevance:
    """Relevance of blocks by sequence, in units of the logit."""

    signed: Float[Tensor, "seq layer"]
    """Sums over positions of the relevance of attention and MLP."""
    mass: Float[Tensor, "seq layer"]
    """Sums of its absolute value at each position, of attention and of the MLP."""
    output: Float[Tensor, " seq"]
    """What is explained."""
    tokens: Float[Tensor, " seq"]
    """Predicted tokens of each sequence."""

    def __add__(self, other: LayerRelevance) -> LayerRelevance:
        """Return both, one after the other."""
        pairs = ((self.signed, other.signed), (self.mass, other.mass))
        ends = ((self.output, other.output), (self.tokens, other.tokens))
        return LayerRelevance(*(torch.cat(pair) for pair in (*pairs, *ends)))

    @property
    def share(self) -> Float[Tensor, " layer"]:
        """Share of each layer in the mass of all."""
        total = self.mass.sum(0)
        return total / total.sum()


def layer_relevance(
    handle: ModelHandle,
    tokens: Int[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"] | None = None,
    *,
    preset: Rules | str = "cp_lrp",
) -> LayerRelevance:
    """Return the relevance of each layer in each sequence; padding (`real` is False) is at the end.

    Raises:
        ValueError: an unknown preset, an activation function without a rule, a sequence that predicts nothing.
    """
    sites = [Site(layer, kind) for layer in range(handle.n_layers) for kind in PARTS]
    ids, where, targets = predicted(handle, tokens, real)
    with torch.inference_mode(False):
        ids, where, targets = ids.clone(), where.clone(), targets.clone()
        with rewritten(handle, preset), capture(handle, sites, grad=True) as acts:
            logits = handle.logits(ids)
        rows = logits[where].float()
        explained = rows.gather(1, targets[:, None])[:, 0] - rows.mean(1)
        rhos = torch.autograd.grad(explained.sum(), [acts[site] for site in sites])
    found = torch.stack(
        [(acts[site].detach().double() * rho.double()).sum(-1) for site, rho in zip(sites, rhos, strict=True)], -1
    ).cpu()  # [batch pos layer*part]
    whole = torch.zeros(where.shape, dtype=torch.float64)
    whole[where.cpu()] = explained.detach().double().cpu()
    by_layer = found.unflatten(-1, (handle.n_layers, len(PARTS)))
    tokens_of = where.sum(1).double().cpu()
    return LayerRelevance(by_layer.sum((1, 3)), by_layer.abs().sum((1, 3)), whole.sum(1), tokens_of)
