"""Variational: a latent is a Gaussian, drawn while training and charged for what it tells (Baker and Li 2025).

    mu = relu(pre),   u = mu + sigma · noise,   S = the k largest |u_i|,   z = u on S, 0 elsewhere      (training)
    z = mu on the k largest mu_i, 0 elsewhere                                                          (evaluation)
    penalty = kl / d_in · warm(step) · mean over rows of sum_i (mu_i^2 + sigma_i^2 - 1 - log sigma_i^2) / 2

arXiv 2509.22994. `variance`: "none" draws nothing and leaves kl / 2 · mu^2, which is what the published runs did;
"fixed" has one sigma; "learned" has log sigma^2 = W_var (x - b_dec) + b_var, held in -6..2. The sum runs over the k
kept latents or over all of them: charged while it is silent too, a latent with little to tell is pushed out for good.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sae import kernels
from sae.code import Code
from sae.gaussian import Latents, variance_path
from sae.rules.arguments import at_least, one_of, risen, rising
from sae.rules.base import Context
from sae.rules.topk import TopK

if TYPE_CHECKING:
    from sae.model import Sae

VARIANCES, KL_ON = ("none", "fixed", "learned"), ("selected", "all")


class Variational(TopK):
    """Keep the k largest of noisy values and charge for their distance from a standard Gaussian."""

    log_variance: Tensor

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        k: int | None = None,
        kl: float = 0.01,
        kl_on: str = "selected",
        variance: str = "fixed",
        sigma: float = 1.0,
        warmup: float = 0.1,
    ) -> None:
        """Take `k` latents per row; `sigma` is the noise, or where a learned one starts."""
        super().__init__(d_in, d_sae, k=k)
        rising(warmup, kl=kl)
        at_least(0.0, above=True, sigma=sigma)
        one_of(KL_ON, kl_on=kl_on)
        one_of(VARIANCES, variance=variance)
        self.kl, self.kl_on, self.variance, self.warmup = kl, kl_on, variance, warmup
        self.register_buffer("log_variance", torch.tensor(0.0 if variance == "none" else 2 * math.log(sigma)))
        if variance == "learned":
            self.W_var, self.b_var = variance_path(d_sae, d_in, self.log_variance)

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:
        """Return the code of normalised activations."""
        if not self.training or self.variance == "none":
            return super().encode(x, sae, ctx)
        latents = self.latents(x, sae)
        with torch.no_grad():
            drawn, noise = latents.everywhere().draw(ctx.generator)
            indices = kernels.largest(drawn.abs(), self.k)[1]
        return Code(indices, latents.at(indices).drawn(noise.gather(1, indices)), self.d_sae)

    def latents(self, x: Float[Tensor, "batch d_in"], sae: Sae) -> Latents:
        """Return the latents of normalised activations."""
        return Latents(x, sae, self.log_variance, (self.W_var, self.b_var) if self.variance == "learned" else None)

    def penalties(
        self,
        x: Float[Tensor, "batch d_in"],
        code: Code,
        recon: Float[Tensor, "batch d_out"],  # noqa: ARG002
        sae: Sae,
        ctx: Context,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the divergence from a standard Gaussian, of the kept latents or of all."""
        latents = self.latents(x, sae)
        charged = latents.everywhere() if self.kl_on == "all" else latents.at(code.indices)
        return {"kl": self.kl * risen(ctx, self.warmup) * charged.divergence() / max(1, len(code)) / self.d_in}
