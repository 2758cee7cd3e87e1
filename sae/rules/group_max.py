"""GroupMax: the largest pre-activation of each of k groups of latents (EleutherAI's sparsify).

    z_i = relu(pre_i) where i has the largest pre of its group, 0 elsewhere;   group of i = i // (d_sae / k)

A fast stand-in for `topk`: no search across the row, and exactly one candidate per group. It is a rule of its own and
not an option of `topk`, because latents of one group exclude one another, in evaluation as in training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sae.budgets import nearest_divisor
from sae.code import Code
from sae.config import default_k
from sae.rules.arguments import latents_per_row
from sae.rules.base import Context, Rule

if TYPE_CHECKING:
    from sae.model import Sae


class GroupMax(Rule):
    """Keep the largest pre-activation of each group."""

    def __init__(self, d_in: int, d_sae: int, *, k: int | None = None) -> None:
        """Make `k` groups of neighbouring latents (None: the divisor of d_sae nearest to `default_k`)."""
        super().__init__(d_in, d_sae)
        nearest = nearest_divisor(d_sae, default_k(d_in, d_sae) if k is None else latents_per_row(k, d_in, d_sae))
        if k is not None and nearest != k:
            raise ValueError(f"k must divide d_sae={d_sae} into groups of one size, got {k}; the nearest is {nearest}.")
        self.k = nearest

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:  # noqa: ARG002
        """Return the code of normalised activations."""
        with torch.no_grad():
            values, places = sae.pre(x).view(len(x), self.k, -1).max(-1)
            indices = places + torch.arange(0, self.d_sae, self.d_sae // self.k, device=x.device)
        code = sae.select(x, indices, values)
        return code.with_values(code.values.relu())
