"""First and second order estimates of what leaving a block out costs, by gates on what blocks add.

With a gate g_l = 1 on each block, h_{l+1} = h_l + g_l c_l, and L the loss of a sequence per token:

    dL/dg_l = sum over tokens of c_l · dL/dh_{l+1}
    taylor_l     = - E[dL/dg_l]                               the rise that a straight line to g_l = 0 predicts
    taylor_abs_l = E[sum over tokens of |c_l · dL/dh_{l+1}|]  without signs that cancel (Molchanov et al. 2017)
    F_ij         = E[dL/dg_i dL/dg_j]                         empirical Fisher over sequences, with interactions

One forward and one backward give all of them. A gate is at an end of its range: skipping is as far from g = 1 as can
be, where a straight line need not know anything. The empirical Fisher takes the text's own tokens, not the model's, so
that it is no curvature where the model does not fit; with n sequences its normalised entries scatter by about 1/sqrt n.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from interp.hooks import capture
from interp.layers.suffix import wide
from interp.models.handle import ModelHandle
from interp.sites import Site


@dataclass(frozen=True, eq=False)
class GateGradients:
    """Gradients of the loss by the gates of blocks, by sequence."""

    gradient: Float[Tensor, "seq layer"]
    """Gradient of the summed loss of each sequence."""
    size: Float[Tensor, "seq layer"]
    """Sums over positions of |c · gradient|."""
    tokens: Float[Tensor, " seq"]
    """Predicted tokens of each sequence."""

    def __add__(self, other: GateGradients) -> GateGradients:
        """Return both, one after the other."""
        return GateGradients(
            torch.cat([self.gradient, other.gradient]),
            torch.cat([self.size, other.size]),
            torch.cat([self.tokens, other.tokens]),
        )

    @property
    def per_token(self) -> Float[Tensor, "seq layer"]:
        """Gradient of the loss per token of each sequence."""
        return self.gradient / self.tokens[:, None]

    @property
    def taylor(self) -> Float[Tensor, " layer"]:
        """Predicted rise of the loss per token without each block."""
        return -self.gradient.sum(0) / self.tokens.sum()

    @property
    def taylor_abs(self) -> Float[Tensor, " layer"]:
        """Sum of absolute terms, per token."""
        return self.size.sum(0) / self.tokens.sum()

    @property
    def fisher(self) -> Float[Tensor, "layer layer"]:
        """Empirical Fisher of the gates."""
        return self.per_token.T @ self.per_token / len(self.tokens)

    @property
    def interactions(self) -> Float[Tensor, "layer layer"]:
        """F_ij / sqrt(F_ii F_jj), -1 to 1; NaN where a gate has no gradient."""
        size = self.fisher.diagonal().sqrt()
        return self.fisher / torch.outer(size, size)


def gate_gradients(
    handle: ModelHandle, tokens: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"] | None = None
) -> GateGradients:
    """Return the gradients by gate of each sequence; padding (`real` is False) is at the end.

    Raises:
        ValueError: a sequence predicts nothing.
    """
    sites = [Site(0, "resid_pre"), *(Site(layer, "resid_post") for layer in range(handle.n_layers))]
    ids, where, targets = predicted(handle, tokens, real)
    with torch.inference_mode(False):
        ids, where, targets = ids.clone(), where.clone(), targets.clone()
        with capture(handle, sites, grad=True) as acts:
            logits = handle.logits(ids)
            loss = cross_entropy(logits[where].float(), targets, reduction="sum")
            gradients = torch.autograd.grad(loss, [acts[site] for site in sites[1:]])
    stream = [acts[site].detach() for site in sites]
    terms = torch.stack(
        [
            ((wide(after) - wide(before)).double() * gradient.double()).sum(-1)
            for before, after, gradient in zip(stream, stream[1:], gradients, strict=False)
        ],
        -1,
    ).cpu()  # [batch pos layer]
    return GateGradients(terms.sum(1), terms.abs().sum(1), where.sum(1).double().cpu())


def predicted(
    handle: ModelHandle, tokens: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"] | None
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"], Int[Tensor, " row"]]:
    """Return (ids, positions that predict a real token, those tokens), on the model's device.

    Raises:
        ValueError: a sequence predicts nothing.
    """
    ids = tokens.to(handle.device, torch.long)
    real = torch.ones_like(ids, dtype=torch.bool) if real is None else real.to(ids.device)
    where = torch.zeros_like(real)
    where[:, :-1] = real[:, :-1] & real[:, 1:]
    if not where.any(1).all():
        row = int((~where.any(1)).nonzero()[0, 0])
        raise ValueError(f"Each sequence must predict a token, two real tokens or more; sequence {row} does not.")
    return ids, where, ids.roll(-1, 1)[where]
