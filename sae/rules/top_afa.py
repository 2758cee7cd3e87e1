"""Top-AFA: as many latents as make the code as long as the activation; no k (Lee et al. 2025, arXiv 2503.24277).

    a = relu(pre)      n(x) = the n whose n largest a have a length nearest to ||x - b_dec||, at least 1
    z = a on the n(x) largest entries, 0 elsewhere
    penalty = afa / d_in · mean over rows of (||z|| - ||x - b_dec||)^2

If atoms were orthogonal the code would be as long as what it reconstructs; `afa` takes the place of k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

from sae import kernels
from sae.code import Code
from sae.rules.arguments import at_least
from sae.rules.base import Context, Rule

if TYPE_CHECKING:
    from sae.model import Sae

FIRST = 64
"""Latents per row that are sorted at first; rows that need more are sorted again, four times as far."""


class TopAFA(Rule):
    """Keep the latents that make the code as long as the row."""

    def __init__(self, d_in: int, d_sae: int, *, afa: float = 12.0) -> None:
        """Charge `afa` for a code of another length than its row; L0 grows with it."""
        super().__init__(d_in, d_sae)
        at_least(0, afa=afa)
        self.afa = afa

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:  # noqa: ARG002
        """Return the code of normalised activations."""
        with torch.no_grad():
            pre, lengths = sae.pre(x), vector_norm(sae.centred(x), dim=1)
            left, found = torch.arange(len(x), device=x.device), []
            k = min(FIRST, self.d_sae)
            while left.numel():
                values, indices = kernels.largest(pre if len(left) == len(pre) else pre.index_select(0, left), k)
                values, order = values.relu().sort(dim=1, descending=True)
                gap = (values.square().cumsum(1).sqrt() - lengths[left].unsqueeze(1)).abs()
                best = gap.argmin(1, keepdim=True)
                done = (best[:, 0] < k - 1) | (values[:, -1] <= 0) if k < self.d_sae else best[:, 0] >= 0
                on = (torch.arange(k, device=x.device) <= best) & ~(values <= 0) & done.unsqueeze(1)
                found.append((left.unsqueeze(1) * self.d_sae + indices.gather(1, order))[on])
                left, k = left[~done], min(4 * k, self.d_sae)
            code = Code.at(pre, torch.cat(found).sort().values if found else left)
        return sae.select(x, code.indices, code.values, code.pointers)

    def penalties(
        self,
        x: Float[Tensor, "batch d_in"],
        code: Code,
        recon: Float[Tensor, "batch d_out"],  # noqa: ARG002
        sae: Sae,
        ctx: Context,  # noqa: ARG002
    ) -> dict[str, Float[Tensor, ""]]:
        """Return what the difference in length costs."""
        energy = x.new_zeros(len(x)).index_add(0, code.rows, code.values.flatten().square())
        length = energy.clamp_min(torch.finfo(x.dtype).tiny).sqrt()  # whose slope at 0 is finite, too
        wanted = vector_norm(sae.centred(x).detach(), dim=1)
        return {"afa": self.afa / self.d_in * (length - wanted).square().mean()}
