"""Feature choice: each latent takes the tokens on which it is largest, as many as its budget says (Ayonrinde 2024).

    training     z_i = relu(pre_i) on the m_i rows of the batch where pre_i is largest, 0 elsewhere
                 m_i = batch · k · Zipf share of latent i's rank, at most cap · batch, sum_i m_i = k · batch
    evaluation   z_i = pre_i where pre_i > threshold_i, 0 elsewhere

arXiv 2411.02124. Ranks come from a first phase, `warm` of the steps, that selects like `mutual_choice`; budgets keep
every latent alive from then on. A latent's threshold is the running mean of the level above which it is in as many rows
as it kept, just below the smallest value that it kept (`selection.floors`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sae import selection
from sae.budgets import check_places
from sae.code import Code
from sae.rules.arguments import shares
from sae.rules.base import Context
from sae.rules.batch_topk import WINDOW
from sae.rules.mutual_choice import MutualChoice

if TYPE_CHECKING:
    from sae.model import Sae

REFRESH = 100
"""Steps between two looks at the ranks."""


class FeatureChoice(MutualChoice):
    """Let each latent keep its own number of rows."""

    rank: Tensor
    thresholds: Tensor
    kept: Tensor

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        k: int | None = None,
        power: float = 1.0,
        cap: float = 0.5,
        warm: float = 0.1,
        dying: float = 0.1,
    ) -> None:
        """Share `k` latents per row out by rank to the `power` (0: all alike), after a `warm` share of the steps."""
        super().__init__(d_in, d_sae, k=k, dying=dying, power=power, cap=cap)
        shares("the steps", warm=warm)
        self.warm = warm
        self.register_buffer("rank", torch.arange(d_sae))
        self.register_buffer("thresholds", torch.zeros(d_sae))
        self.register_buffer("kept", torch.zeros(d_sae, dtype=torch.long))

    def warming(self, ctx: Context) -> bool:
        """Return whether this step still selects over the whole batch."""
        return ctx.step < self.warm * ctx.steps

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:
        """Return the code of normalised activations."""
        if self.training:
            columns = selection.transposed(x, sae)
            if self.warming(ctx):
                places = selection.batch_largest(columns, self.k * len(x))
            else:
                places = selection.column_shares(columns, self.curve[self.rank], ctx.generator)
            code = selection.from_columns(columns, places)
        else:
            code = selection.above(sae.pre(x), torch.where(self.kept > 0, self.thresholds, self.threshold))
        code = sae.select(x, code.indices, code.values, code.pointers)
        return code.with_values(code.values.relu())

    def observe(self, code: Code, ctx: Context) -> None:
        """Move the thresholds, the running densities and, now and then, the ranks."""
        check_places("feature_choice", self.k, len(code), self.d_sae)
        if self.warming(ctx):
            super().observe(code, ctx)
        else:
            self.count(code)
        if self.warming(ctx) or ctx.step % REFRESH == 0:
            self.rank.copy_(self.ranks())
        selection.follow_floors(code, self.thresholds, self.kept, max(1, min(WINDOW, ctx.steps // 20)))
