"""Switch: a router sends each token to one expert, a part of the dictionary with its own top k (Mudide et al. 2024).

    p = softmax(W_route (x - b_dec) + b_route)      e = argmax p
    z_i = p_e · relu(pre_i) on the k largest pre_i among expert e's latents, 0 elsewhere
    penalty = balance · experts · sum over e of (share of rows sent to e) · (mean of p_e)

The penalty is `balance` when all experts get equally much. arXiv 2410.08201. Only the chosen expert's encoder is
multiplied, so a step costs about 1/experts of the encoder's product. The experts share one decoder.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae import kernels
from sae.budgets import nearest_divisor
from sae.code import Code
from sae.rules.arguments import at_least, latents_per_row
from sae.rules.base import Context, Rule

if TYPE_CHECKING:
    from sae.model import Sae


class Switch(Rule):
    """Keep the k largest pre-activations within the expert that the router chose, times the router's share for it."""

    def __init__(self, d_in: int, d_sae: int, *, k: int | None = None, experts: int = 8, balance: float = 0.01) -> None:
        """Make `experts` of d_sae / experts latents each, `k` of which a row takes."""
        super().__init__(d_in, d_sae)
        at_least(0, balance=balance)
        if not 1 <= experts <= d_sae or nearest_divisor(d_sae, experts) != experts:
            raise ValueError(
                f"experts must divide d_sae={d_sae}, got {experts}; the nearest is {nearest_divisor(d_sae, experts)}."
            )
        self.size, self.experts, self.balance = d_sae // experts, experts, balance
        self.k = min(self.size, latents_per_row(None, d_in, d_sae)) if k is None else latents_per_row(k, d_in, d_sae)
        if self.k > self.size:
            raise ValueError(f"k must lie in 1..d_sae/experts={self.size}, got {self.k}: take fewer experts.")
        drawn = torch.randn(experts, d_in, generator=torch.Generator().manual_seed(experts))
        self.W_route = nn.Parameter(drawn / math.sqrt(d_in))
        self.b_route = nn.Parameter(torch.zeros(experts))

    @torch.no_grad()
    def begin(self, generator: torch.Generator) -> None:
        """Draw the router anew."""
        self.W_route.copy_(torch.randn(self.W_route.shape, generator=generator) / math.sqrt(self.d_in))

    def routed(self, x: Float[Tensor, "batch d_in"], sae: Sae) -> Float[Tensor, "batch experts"]:
        """Return how much of each row the router gives to each expert."""
        return (sae.centred(x).detach() @ self.W_route.t() + self.b_route).softmax(-1)

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:  # noqa: ARG002
        """Return the code of normalised activations."""
        most, expert = self.routed(x, sae).max(-1, keepdim=True)
        with torch.no_grad():
            weight, bias, _ = sae.unit()
            centred = sae.centred(x)
            values, indices = x.new_empty(len(x), self.k), expert.new_empty(len(x), self.k)
            for one in range(self.experts):
                rows, first = (expert[:, 0] == one).nonzero().squeeze(1), one * self.size
                part = slice(first, first + self.size)
                pre = torch.addmm(bias[part], centred.index_select(0, rows), weight[part].t())
                values[rows], found = kernels.largest(pre, self.k)
                indices[rows] = found + first
        code = sae.select(x, indices, values)
        return code.with_values(code.values.relu() * most)

    def penalties(
        self,
        x: Float[Tensor, "batch d_in"],
        code: Code,
        recon: Float[Tensor, "batch d_out"],  # noqa: ARG002
        sae: Sae,
        ctx: Context,  # noqa: ARG002
    ) -> dict[str, Float[Tensor, ""]]:
        """Return what uneven use of the experts costs."""
        sent = torch.bincount(code.indices[:, 0] // self.size, minlength=self.experts).to(x.dtype) / max(1, len(code))
        return {"balance": self.balance * self.experts * (sent * self.routed(x, sae).mean(0)).sum()}
