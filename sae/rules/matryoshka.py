"""Matryoshka: every prefix of the dictionary has to reconstruct on its own (Bussmann et al. 2025, arXiv 2503.17547).

    z                  = the code of `batch_topk` (or of `topk`) over all latents
    x_hat_m            = b_dec + sum of z_i W_dec[i] over the latents below size_m, for nested sizes up to d_sae
    loss               = mean (x - x_hat)^2 + weight · sum over the smaller sizes of mean (x - x_hat_m)^2

The first latents serve in every prefix and so cannot hand a general feature's special cases to later ones (absorption).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sae import kernels
from sae.code import Code
from sae.rules.arguments import at_least
from sae.rules.base import Context
from sae.rules.batch_topk import BatchTopK
from sae.selection import latents_between

if TYPE_CHECKING:
    from sae.model import Sae


class Matryoshka(BatchTopK):
    """Charge for what the nested prefixes of the dictionary leave."""

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        k: int | None = None,
        sizes: str = "",
        weight: float = 1.0,
        batch: bool = True,
    ) -> None:
        """Take `k` latents per row on average (exactly, unless `batch`) in one code for all prefixes.

        `sizes` are those of the prefixes, such as "256 1024"; "" takes d_sae / 2, / 4, / 8 and / 16.
        """
        super().__init__(d_in, d_sae, k=k)
        at_least(0, weight=weight)
        self.batch, self.weight = batch, weight
        try:
            given = [int(size) for size in sizes.replace(",", " ").split()]
        except ValueError:
            raise ValueError(f'sizes must be whole numbers such as "256 1024", got {sizes!r}.') from None
        self.sizes = [*(given or sorted({d_sae >> half for half in (4, 3, 2, 1)} - {0, d_sae})), d_sae]
        if self.sizes != sorted(set(self.sizes)) or self.sizes[0] < 1:
            raise ValueError(f"sizes must rise and lie in 1..d_sae-1={d_sae - 1}, got {sizes!r}; d_sae is added.")

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:
        """Return the code of normalised activations."""
        if self.batch:
            return super().encode(x, sae, ctx)
        with torch.no_grad():
            values, indices = kernels.largest(sae.pre(x), self.k)
        code = sae.select(x, indices, values)
        return code.with_values(code.values.relu())

    def prefix(self, code: Code, level: int) -> Code:
        """Return the part of `code` in the first `sizes[level]` latents: decoded, it is x_hat_m."""
        return latents_between(code, 0, self.sizes[level])

    def penalties(
        self,
        x: Float[Tensor, "batch d_in"],
        code: Code,
        recon: Float[Tensor, "batch d_out"],  # noqa: ARG002
        sae: Sae,
        ctx: Context,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return what the prefixes smaller than the dictionary leave; each atom is decoded once for all of them."""
        wanted, atoms, total = ctx.wanted(x), sae.unit()[2], x.new_zeros(())
        rest = wanted - sae.b_dec
        for first, end in zip([0, *self.sizes], self.sizes[:-1], strict=False):
            rest = rest - kernels.decode(latents_between(code, first, end), atoms)
            total = total + rest.square().mean()
        return {"prefixes": self.weight * total}
