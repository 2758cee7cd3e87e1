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
from torch import Tensor, nn
from torch.nn.functional import linear

from interp.names import unknown
from sae import kernels
from sae.code import Code
from sae.rules.arguments import at_least, risen, shares
from sae.rules.base import Context
from sae.rules.topk import TopK

if TYPE_CHECKING:
    from sae.model import Sae

VARIANCES, KL_ON = ("none", "fixed", "learned"), ("selected", "all")
LOG_VARIANCE = (-6.0, 2.0)
"""Least and largest log sigma^2; beyond them exp would lead to infinities."""


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
        at_least(0.0, kl=kl)
        at_least(0.0, above=True, sigma=sigma)
        shares("the steps", warmup=warmup)
        for name, value, known in (("kl_on", kl_on, KL_ON), ("variance", variance, VARIANCES)):
            if value not in known:
                raise ValueError(unknown(name, value, known))
        self.kl, self.kl_on, self.variance, self.warmup = kl, kl_on, variance, warmup
        self.register_buffer("log_variance", torch.tensor(0.0 if variance == "none" else 2 * math.log(sigma)))
        if variance == "learned":
            self.W_var, self.b_var = (
                nn.Parameter(value) for value in (torch.zeros(d_sae, d_in), self.log_variance.repeat(d_sae))
            )

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:
        """Return the code of normalised activations."""
        if not self.training or self.variance == "none":
            return super().encode(x, sae, ctx)
        with torch.no_grad():
            dense = self.dense(x, sae)
            mu, log_variance = self.read(dense)
            noise = torch.randn(mu.shape, generator=ctx.generator, device=mu.device, dtype=mu.dtype)
            indices = kernels.largest((mu + (log_variance / 2).exp() * noise).abs(), self.k)[1]
        mu, log_variance = self.read(self.at(indices, dense, x, sae))
        return Code(indices, mu + (log_variance / 2).exp() * noise.gather(1, indices), self.d_sae)

    def dense(self, x: Tensor, sae: Sae) -> list[Tensor]:
        """Return pre-activations and, where the variance is learned, log sigma^2 of every latent."""
        return [linear(sae.centred(x), weight, bias) for weight, bias in self._paths(sae)]

    def at(self, indices: Tensor, dense: list[Tensor], x: Tensor, sae: Sae) -> list[Tensor]:
        """Return the entries of `dense` at `indices`, with gradients from them alone."""
        codes = [Code(indices, each.gather(1, indices), self.d_sae) for each in dense]
        return [
            kernels.preactivation(x, weight, bias, code, sae.centre).values
            for (weight, bias), code in zip(self._paths(sae), codes, strict=True)
        ]

    def read(self, values: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return (mu, log sigma^2)."""
        return values[0].relu(), values[1].clamp(*LOG_VARIANCE) if len(values) > 1 else self.log_variance

    def _paths(self, sae: Sae) -> list[tuple[Tensor, Tensor]]:
        return [sae.unit()[:2], *([(self.W_var, self.b_var)] if self.variance == "learned" else [])]

    def penalties(
        self,
        x: Float[Tensor, "batch d_in"],
        code: Code,
        recon: Float[Tensor, "batch d_out"],  # noqa: ARG002
        sae: Sae,
        ctx: Context,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the divergence from a standard Gaussian, of the kept latents or of all."""
        with torch.set_grad_enabled(self.kl_on == "all" and torch.is_grad_enabled()):
            values = self.dense(x, sae)
        mu, log_variance = self.read(values if self.kl_on == "all" else self.at(code.indices, values, x, sae))
        divergence = (mu.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return {"kl": self.kl * risen(ctx, self.warmup) * divergence / max(1, len(code)) / self.d_in}
