"""AbsTopK: the k largest pre-activations by size, with their sign (Zhu, Khalili and Zhu 2025, arXiv 2510.00404).

    z = pre on the k entries of largest |pre|, 0 elsewhere        (a hard threshold: no ReLU)

One latent stands for both ends of an axis, so half the dictionary covers as many directions as a non-negative one.
With `batch` the k · batch largest |pre| of all rows are kept, and evaluation keeps |pre| > threshold (`batch_topk`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from sae import kernels
from sae.code import Code
from sae.rules.base import Context
from sae.rules.batch_topk import BatchTopK
from sae.selection import batch_largest

if TYPE_CHECKING:
    from sae.model import Sae


class AbsTopK(BatchTopK):
    """Keep the k pre-activations of largest size in each row, or k per row on average."""

    signed = True

    def __init__(self, d_in: int, d_sae: int, *, k: int | None = None, batch: bool = False) -> None:
        """Take `k` latents per row (None: `default_k` of the width), on average over a batch if `batch`."""
        super().__init__(d_in, d_sae, k=k)
        self.batch = batch

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:  # noqa: ARG002
        """Return the code of normalised activations."""
        pre = sae.pre(x)
        size = pre.abs()
        if not self.batch:
            indices = kernels.largest(size, self.k)[1]
            return sae.select(x, indices, pre.gather(1, indices))
        if self.training:
            places = batch_largest(size, self.k * len(x))
        else:
            places = (size > self.threshold).flatten().nonzero().squeeze(1)
        code = Code.at(pre, places)
        return sae.select(x, code.indices, code.values, code.pointers)

    def observe(self, code: Code, ctx: Context) -> None:
        """Move the threshold towards the smallest size that the batch kept."""
        super().observe(code.with_values(code.values.abs()), ctx)
