"""Mutual choice: tokens and latents choose one another under one budget for the batch (Ayonrinde 2024).

    training     z = relu(pre) on the k · batch largest entries of all rows together, 0 elsewhere
    evaluation   z = pre where pre > threshold, 0 elsewhere
    AuxK         revives the dead, and latents that fire less than `dying` times what a Zipf curve gives their rank

arXiv 2411.02124. Selection is that of `batch_topk`; what is added is `aux_zipf`, which helps latents before they die.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from sae.budgets import zipf_shares
from sae.code import Code
from sae.rules.arguments import shares
from sae.rules.base import Context
from sae.rules.batch_topk import BatchTopK

MEMORY = 0.99
"""Share of the running densities that a step keeps."""


class MutualChoice(BatchTopK):
    """Keep the largest pre-activations of the batch, and help latents that fall far below a Zipf curve."""

    curve: Tensor
    density: Tensor
    seen: Tensor

    def __init__(
        self, d_in: int, d_sae: int, *, k: int | None = None, dying: float = 0.1, power: float = 1.0, cap: float = 0.5
    ) -> None:
        """Take `k` latents per row on average.

        The curve falls with the rank to the `power` and is held below `cap` of the rows; `dying` is the share of it
        below which AuxK helps (0: it helps the dead alone).
        """
        super().__init__(d_in, d_sae, k=k)
        shares("the curve", dying=dying)
        self.dying = dying
        self.register_buffer("curve", zipf_shares(d_sae, self.k, power=power, cap=cap), persistent=False)
        self.register_buffer("density", torch.zeros(d_sae))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def observe(self, code: Code, ctx: Context) -> None:
        """Move the threshold, and the running density of each latent."""
        super().observe(code, ctx)
        self.count(code)

    def count(self, code: Code) -> None:
        """Move the running density of each latent."""
        self.density.lerp_(code.counts().to(self.density.dtype) / max(1, len(code)), 1 - MEMORY)
        self.seen += 1

    def ranks(self) -> Tensor:
        """Return each latent's rank by density, 0 the most frequent; equal ones by index."""
        order = self.density.argsort(descending=True, stable=True)
        return torch.empty_like(order).scatter_(0, order, torch.arange(self.d_sae, device=order.device))

    def revive(self, dead: Bool[Tensor, " d_sae"]) -> Bool[Tensor, " d_sae"]:
        """Return the latents that are dead or, once 100 steps have shown it, dying."""
        return dead | ((self.density < self.dying * self.curve[self.ranks()]) & (self.seen >= 100))
