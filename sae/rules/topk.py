"""TopK: the k largest pre-activations of each row, then ReLU (Gao et al. 2024, arXiv 2406.04093).

    pre = (x - b_dec) W_enc^T + b_enc        z = relu(pre) on the k largest entries of pre, 0 elsewhere

The same in training and evaluation. A row with fewer than k positive pre-activations has fewer than k active latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sae import kernels
from sae.code import Code
from sae.config import default_k
from sae.rules.base import Context, Rule

if TYPE_CHECKING:
    from sae.model import Sae


class TopK(Rule):
    """Keep the k largest pre-activations of each row."""

    def __init__(self, d_in: int, d_sae: int, *, k: int | None = None) -> None:
        """Take `k` latents per row (None: `default_k` of the width)."""
        super().__init__(d_in, d_sae)
        self.k = default_k(d_in, d_sae) if k is None else k
        if not 1 <= self.k <= d_sae:
            raise ValueError(f"k must lie in 1..d_sae={d_sae}, got {self.k}.")

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:  # noqa: ARG002
        """Return the code of normalised activations."""
        with torch.no_grad():
            values, indices = kernels.largest(sae.pre(x), self.k)
        code = sae.select(x, indices, values)
        return code.with_values(code.values.relu())
