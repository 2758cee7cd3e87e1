"""Gated: one path says which latents are on, another how strongly (Rajamanoharan et al. 2024a, arXiv 2404.16014).

    c = (x - b_dec) W_enc^T         gate = c + b_enc         magnitude = exp(r) · c + b_mag
    z = relu(magnitude) where gate > 0, 0 elsewhere

    L = mean (x - x_hat)^2 + l1 / sqrt(d_in) · mean over rows of sum_i relu(gate_i)
                           + mean (x - relu(gate) sg(W_dec) - sg(b_dec))^2

L1 shrinks the gate alone. No gradient passes through its step: it learns from the last two terms, z from the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae import kernels
from sae.code import Code
from sae.rules.arguments import at_least, risen, shares
from sae.rules.base import Context, Rule

if TYPE_CHECKING:
    from sae.model import Sae


class Gated(Rule):
    """Open a gate where it is positive and read the value off a path of its own."""

    def __init__(self, d_in: int, d_sae: int, *, l1: float = 0.1, warmup: float = 0.05) -> None:
        """Charge `l1` for the gates, risen from 0 over the first `warmup` share of the steps."""
        super().__init__(d_in, d_sae)
        at_least(0.0, l1=l1)
        shares("the steps", warmup=warmup)
        self.l1, self.warmup = l1, warmup
        self.r, self.b_mag = (nn.Parameter(torch.zeros(d_sae)) for _ in range(2))

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:  # noqa: ARG002
        """Return the code of normalised activations."""
        gate = sae.pre(x)
        code = Code.at(gate, (gate > 0).flatten().nonzero().squeeze(1))
        weight, bias, _ = sae.unit()
        if torch.is_grad_enabled():  # the gate's bias is no part of the magnitude
            code = kernels.preactivation(x, weight, bias.detach(), code, sae.centre)
        at, r, b_mag = (each.index_select(0, code.indices) for each in (bias.detach(), self.r, self.b_mag))
        return code.with_values((r.exp() * (code.values - at) + b_mag).relu())

    def penalties(
        self,
        x: Float[Tensor, "batch d_in"],
        code: Code,
        recon: Float[Tensor, "batch d_out"],  # noqa: ARG002
        sae: Sae,
        ctx: Context,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the L1 of the open gates, and how badly they alone reconstruct."""
        # Once more the product: a code has no room for a second value, and its own does not tell the gate's.
        opened = sae.pre(x).flatten().index_select(0, code.rows * self.d_sae + code.indices)
        gates = sae.select(x, code.indices, opened, code.pointers)
        alone = kernels.decode(gates, sae.unit()[2].detach(), sae.b_dec.detach())
        charged = gates.values.sum() / max(1, len(code)) / self.d_in**0.5
        return {"l1": self.l1 * risen(ctx, self.warmup) * charged, "gate": (ctx.wanted(x) - alone).square().mean()}
