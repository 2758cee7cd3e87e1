"""JumpReLU: a threshold for each latent, learned through a straight-through kernel (Rajamanoharan et al. 2024b).

    z = pre where pre > theta, 0 elsewhere             penalty = l0 · mean over rows of sum_i H(pre_i - theta_i)
    dz / dtheta = -theta / eps · K((pre - theta) / eps)     dH / dtheta = -1 / eps · K(...),   K = 1 on (-1/2, 1/2)

arXiv 2407.14435. The kernel reads pre, not z: z is 0 below theta, so that half of the kernel would be lost on it. While
training, the slots of a code are the entries above theta - eps / 2: those that are on, and those that only the kernel
sees, whose value is 0. With `penalty="tanh"` the charge is sum_i tanh(4 z_i), which also moves values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae import selection
from sae.code import Code
from sae.config import default_k
from sae.rules.arguments import at_least, one_of, risen, rising
from sae.rules.base import Context, Rule

if TYPE_CHECKING:
    from sae.model import Sae

PENALTIES = ("l0", "tanh")
SLOPE = 4.0
"""Of tanh: a value of 0.5 is charged for as on."""


class JumpRelu(Rule):
    """Keep what exceeds its latent's own threshold and charge for each latent that is on."""

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        l0: float | None = None,
        penalty: str = "l0",
        bandwidth: float = 1.0,
        threshold: float = 0.5,
        warmup: float = 0.1,
    ) -> None:
        """Charge `l0` per latent (None: 0.1 / `default_k` of the width).

        Thresholds start at `threshold` and feel what lies within half of `bandwidth`, both in units of a value.
        """
        super().__init__(d_in, d_sae)
        l0 = 0.1 / default_k(d_in, d_sae) if l0 is None else l0
        rising(warmup, l0=l0)
        at_least(0.0, above=True, bandwidth=bandwidth)
        at_least(bandwidth / 2, threshold=threshold)
        one_of(PENALTIES, penalty=penalty)
        self.l0, self.penalty, self.bandwidth, self.warmup = l0, penalty, bandwidth, warmup
        self.threshold = nn.Parameter(torch.full((d_sae,), float(threshold)))

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:  # noqa: ARG002
        """Return the code of normalised activations."""
        floor = self.threshold.detach() - (self.bandwidth / 2 if self.training else 0.0)
        code = selection.above(sae.pre(x), floor)
        code = sae.select(x, code.indices, code.values, code.pointers)
        at = self.threshold.index_select(0, code.indices)
        near = code.values.detach() < at.detach() + self.bandwidth / 2
        # The last term is 0 and has the kernel's gradient.
        jump = near * at.detach() / self.bandwidth * (at - at.detach())
        return code.with_values(torch.where(code.values > at, code.values, 0.0) - jump)

    def penalties(
        self,
        x: Float[Tensor, "batch d_in"],  # noqa: ARG002
        code: Code,
        recon: Float[Tensor, "batch d_out"],  # noqa: ARG002
        sae: Sae,  # noqa: ARG002
        ctx: Context,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the charge for the latents that are on."""
        if self.penalty == "tanh":
            charged = (SLOPE * code.values).tanh().sum()
        else:
            at, values = self.threshold.index_select(0, code.indices), code.values.detach()
            near = values < at.detach() + self.bandwidth / 2
            charged = (values != 0).sum() - (near * (at - at.detach())).sum() / self.bandwidth
        return {"charge": self.l0 * risen(ctx, self.warmup) * charged / max(1, len(code))}

    def observe(self, code: Code, ctx: Context) -> None:  # noqa: ARG002
        """Hold the thresholds above half the bandwidth, below which the kernel would reach what is silent at 0."""
        self.threshold.data.clamp_(min=self.bandwidth / 2)
