"""Gradient SAE: choose the latents that matter to the model's loss as well as to the norm (Olmo et al. 2025).

    z = relu(pre),   g = gradient of the model's loss at the site / mean over rows of its norm
    score = z (1 + beta |W_dec g|)  or, with mode "product", z |W_dec g|;   S = the k largest scores,   z on S

arXiv 2411.10397. z_i |<w_i, g>| is to first order what the loss changes by when latent i is ablated. The gradient is a
constant, and it knows the next token, so it chooses while training only: evaluation is plain top-k, and
`gap` says what that costs. A row without a gradient (the last of a text, say) is chosen for by z alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp.names import unknown
from sae import kernels
from sae.code import Code
from sae.rules.arguments import at_least, latents_per_row
from sae.rules.base import Context, Rule

if TYPE_CHECKING:
    from sae.model import Sae

MODES, NAMES = ("add", "product"), ("gradient", "plain")


class Gradient(Rule):
    """Keep the k latents of the largest value weighed by their effect on the loss."""

    needs: ClassVar[tuple[str, ...]] = ("gradient",)

    def __init__(self, d_in: int, d_sae: int, *, k: int | None = None, beta: float = 1.0, mode: str = "add") -> None:
        """Take `k` latents per row; `beta` weighs the gradient against the plain value (mode "add" only)."""
        super().__init__(d_in, d_sae)
        at_least(0.0, beta=beta)
        if mode not in MODES:
            raise ValueError(unknown("mode", mode, MODES))
        self.k, self.beta, self.mode = latents_per_row(k, d_in, d_sae), beta, mode

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:
        """Return the code of normalised activations."""
        with torch.no_grad():
            pre = sae.pre(x)
            if not self.training or ctx.gradient is None:
                values, indices = kernels.largest(pre, self.k)
            else:
                score = self._weights(ctx.gradient, sae).mul_(pre.relu())
                indices = kernels.largest(score, self.k)[1]
                values = pre.gather(1, indices)
        code = sae.select(x, indices, values)
        return code.with_values(code.values.relu())

    def _weights(self, gradient: Tensor, sae: Sae) -> Tensor:
        """Return what each latent's value is multiplied by; 1 in rows whose gradient is 0 or not finite."""
        norm = gradient.norm(dim=1, keepdim=True)
        known = norm.isfinite() & (norm > 0)
        gradient = torch.where(known, gradient, 0.0)
        mean = torch.where(known, norm, 0.0).mean().clamp_min(torch.finfo(norm.dtype).tiny)
        effect = (gradient / mean @ sae.unit()[2].t()).abs_()
        return effect.mul_(self.beta).add_(1) if self.mode == "add" else torch.where(known, effect, 1.0)


@torch.no_grad()
def gap(
    sae: Sae, x: Float[Tensor, "batch d_in"], gradient: Float[Tensor, "batch d_in"], target: Tensor | None = None
) -> dict[str, float]:
    """Return what plain top-k loses against the choice by gradient, on normalised rows and gradients.

    `overlap` is the share of the kept latents that both choose, `fvu_gradient` and `fvu_plain` what each leaves.
    """
    wanted, was = (x if target is None else target), sae.training
    found: dict[str, float] = {}
    try:
        codes = {name: sae.train(name == "gradient").encode_normalised(x, Context(gradient=gradient)) for name in NAMES}
    finally:
        sae.train(was)
    for name, code in codes.items():
        left = (wanted - sae.decode_normalised(code)).double().square().sum()
        found[f"fvu_{name}"] = float(left / (wanted - wanted.mean(0)).double().square().sum())
    gradient_on, plain_on = ((codes[name].dense() != 0) for name in NAMES)
    found["overlap"] = float((gradient_on & plain_on).sum() / gradient_on.sum().clamp_min(1))
    return found
