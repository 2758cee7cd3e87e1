"""Latents as Gaussians: read along linear paths, drawn, and charged for what they tell.

    mu = relu(pre)        log sigma^2 = W_var (x - b_dec) + b_var, held in -6..2, or one number for all latents
    KL(N(mu, sigma^2) || N(0, 1)) = (mu^2 + sigma^2 - 1 - log sigma^2) / 2                               in nats

(Kingma and Welling 2014, arXiv 1312.6114, appendix B.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from sae import kernels
from sae.code import Code

if TYPE_CHECKING:
    from sae.model import Sae

LOG_VARIANCE = (-6.0, 2.0)
"""Least and largest log sigma^2 that is read off a row; beyond them exp would lead to infinities."""


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussians."""

    mu: Float[Tensor, "*slots"]
    """Their means."""
    log_variance: Float[Tensor, "*some"]
    """The log of their variances: one for each, or one for all."""

    def draw(self, generator: torch.Generator | None) -> tuple[Float[Tensor, "*slots"], Float[Tensor, "*slots"]]:
        """Return (values, the standard noise that they stand for)."""
        mu = self.mu
        noise = torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
        return self.drawn(noise), noise

    def drawn(self, noise: Float[Tensor, "*slots"]) -> Float[Tensor, "*slots"]:
        """Return the values that standard `noise` stands for."""
        return self.mu + (self.log_variance / 2).exp() * noise

    def divergence(self) -> Float[Tensor, ""]:
        """Return the sum of their divergences from a standard Gaussian, in nats."""
        return (self.mu.square() + self.log_variance.exp() - 1 - self.log_variance).sum() / 2


@dataclass(frozen=True)
class Latents:
    """The latents of some rows: a path to the mean, and one to the log of the variance where each row has its own."""

    x: Float[Tensor, "batch d_in"]
    """Normalised rows."""
    sae: Sae
    """The dictionary, whose pre-activations lead to the means."""
    log_variance: Float[Tensor, ""]
    """Log of the variance of all latents, where there is no path to it."""
    variance: tuple[Float[Tensor, "d_sae d_in"], Float[Tensor, " d_sae"]] | None = None
    """Weight and bias of the path to the log of the variance."""

    @cached_property
    def _dense(self) -> list[Float[Tensor, "batch d_sae"]]:
        """What each path leads to, of every latent, without a graph."""
        with torch.no_grad():
            return [linear(self.sae.centred(self.x), weight, bias) for weight, bias in self._paths()]

    def everywhere(self) -> Gaussian:
        """Return every latent of every row, with gradients from them all where gradients are taken."""
        if not torch.is_grad_enabled():
            return self._read(self._dense)
        return self._read([linear(self.sae.centred(self.x), weight, bias) for weight, bias in self._paths()])

    def at(self, indices: Int[Tensor, "batch k"]) -> Gaussian:
        """Return the latents at `indices`, with gradients from them alone."""
        codes = [Code(indices, each.gather(1, indices), self.sae.d_sae) for each in self._dense]
        return self._read(
            [
                kernels.preactivation(self.x, weight, bias, code, self.sae.centre).values
                for (weight, bias), code in zip(self._paths(), codes, strict=True)
            ]
        )

    def _paths(self) -> list[tuple[Tensor, Tensor]]:
        return [self.sae.unit()[:2], *([self.variance] if self.variance else [])]

    def _read(self, values: list[Tensor]) -> Gaussian:
        return Gaussian(values[0].relu(), values[1].clamp(*LOG_VARIANCE) if len(values) > 1 else self.log_variance)


def variance_path(d_sae: int, d_in: int, start: Float[Tensor, ""]) -> tuple[nn.Parameter, nn.Parameter]:
    """Return (weight, bias) of a path that gives every latent of every row the log variance `start` until trained."""
    return nn.Parameter(torch.zeros(d_sae, d_in)), nn.Parameter(start.repeat(d_sae))
