"""p-annealing: an L1 penalty that turns, step by step, into a count of what is on (Karvonen et al. 2024).

    z = relu(pre)        penalty = l1 / sqrt(d_in) · scale · mean over rows of sum_i ((z_i + eps)^p - eps^p)
    p = 1 until the share `start` of the steps is over, then down to `p_end` in 10 equal updates
    scale <- scale · (mean of sum z^p) / (the same with the next p) at each update, over the last 10 batches

arXiv 2408.00113. Each update leaves the penalty's level where it was. The slope of z^p at 0 is infinite; eps bounds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sae.code import Code
from sae.rules.arguments import risen, shares
from sae.rules.base import Context
from sae.rules.relu import Relu

if TYPE_CHECKING:
    from sae.model import Sae

UPDATES, BATCHES = 10, 10
EPS = 0.01


class PAnneal(Relu):
    """Keep every positive pre-activation and charge for a power of its size that falls while training goes on."""

    scale: Tensor
    history: Tensor

    def __init__(
        self, d_in: int, d_sae: int, *, l1: float = 0.1, p_end: float = 0.2, start: float = 0.5, warmup: float = 0.05
    ) -> None:
        """Charge `l1`, risen over the first `warmup` share of the steps; bring p from 1 to `p_end` after `start`."""
        super().__init__(d_in, d_sae, l1=l1, warmup=warmup)
        shares("the steps", start=start)
        if not 0 < p_end <= 1:
            raise ValueError(f"p_end must be above 0 and at most 1, got {p_end}.")
        self.p_end, self.start = p_end, start
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("history", torch.zeros(BATCHES, 2))

    def updates(self, ctx: Context) -> int:
        """Return how many times p has been lowered at this step."""
        begun = self.start * ctx.steps
        if ctx.step < begun:
            return 0
        return min(UPDATES, 1 + int(UPDATES * (ctx.step - begun) / max(1.0, ctx.steps - begun)))

    def power(self, updates: int) -> float:
        """Return p after so many updates."""
        return 1 - (1 - self.p_end) * min(updates, UPDATES) / UPDATES

    def charged(self, code: Code, updates: int) -> Float[Tensor, ""]:
        """Return the mean over rows of the sum of z^p."""
        p = self.power(updates)
        return ((code.values + EPS) ** p - EPS**p).sum() / max(1, len(code))

    def penalties(
        self,
        x: Float[Tensor, "batch d_in"],  # noqa: ARG002
        code: Code,
        recon: Float[Tensor, "batch d_out"],  # noqa: ARG002
        sae: Sae,  # noqa: ARG002
        ctx: Context,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the penalty."""
        weight = self.l1 / self.d_in**0.5 * risen(ctx, self.warmup)
        return {"lp": weight * self.scale * self.charged(code, self.updates(ctx))}

    def observe(self, code: Code, ctx: Context) -> None:
        """Take down the penalty at this p and the next; where the next step's p is lower, match its level."""
        now, after = self.updates(ctx), self.updates(Context(ctx.step + 1, ctx.steps))
        levels = torch.stack([self.charged(code.detach(), updates) for updates in (now, now + 1)])
        self.history[ctx.step % BATCHES] = levels
        if after > now:
            before, then = self.history.sum(0)
            self.scale *= torch.where(then > 0, before / then, 1.0)
            self.history.zero_()
