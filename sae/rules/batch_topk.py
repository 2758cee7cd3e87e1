"""BatchTopK: the k · batch largest pre-activations of a batch (Bussmann, Leask and Nanda 2024, arXiv 2412.06410).

    training     z = relu(pre) on the k · batch largest entries of all rows together, 0 elsewhere
    evaluation   z = pre where pre > threshold, 0 elsewhere

Rows take as many latents as they need, k on average. The threshold is the running mean of the smallest kept value,
which is the batch's own (k · batch)-th largest entry: averaging it over steps leaves no trace of the batch's size,
where the smallest value ever kept, or the last one, would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sae.code import Code
from sae.config import default_k
from sae.rules.base import Context, Rule
from sae.selection import batch_largest

if TYPE_CHECKING:
    from sae.model import Sae

WINDOW = 1000
"""Steps over which the threshold is averaged (a twentieth of a short training)."""


class BatchTopK(Rule):
    """Keep the largest pre-activations of the whole batch, k per row on average."""

    threshold: Tensor

    def __init__(self, d_in: int, d_sae: int, *, k: int | None = None) -> None:
        """Take `k` latents per row on average (None: `default_k` of the width)."""
        super().__init__(d_in, d_sae)
        self.k = default_k(d_in, d_sae) if k is None else k
        if not 1 <= self.k <= d_sae:
            raise ValueError(f"k must lie in 1..d_sae={d_sae}, got {self.k}.")
        self.register_buffer("threshold", torch.zeros(()))

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:  # noqa: ARG002
        """Return the code of normalised activations."""
        pre = sae.pre(x)
        if self.training:
            places = batch_largest(pre, self.k * len(x))
        else:
            places = (pre > self.threshold).flatten().nonzero().squeeze(1)
        code = Code.at(pre, places)
        code = sae.select(x, code.indices, code.values, code.pointers)
        return code.with_values(code.values.relu())

    def observe(self, code: Code, ctx: Context) -> None:
        """Move the threshold towards the smallest value that the batch kept."""
        share = 1 / min(ctx.step + 1, WINDOW, max(1, ctx.steps // 20))
        self.threshold.lerp_(code.values.detach().min(), share)
