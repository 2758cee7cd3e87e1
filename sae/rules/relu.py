"""ReLU with an L1 penalty: whatever is positive is on, and being on costs (Bricken et al. 2023; Conerly et al. 2024).

    z = relu((x - b_dec) W_enc^T + b_enc)        penalty = l1 / sqrt(d_in) · mean over rows of sum_i |z_i|

z counts in units of an atom of length 1. With `SaeConfig(atoms="unit")` that is the L1 of *Towards Monosemanticity*;
with `atoms="free"` it is sum_i f_i ||W_dec[i]||, the one of Anthropic's April 2024 update.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from sae.code import Code
from sae.rules.base import Context, Rule

if TYPE_CHECKING:
    from sae.model import Sae


class Relu(Rule):
    """Keep every positive pre-activation and charge for its size."""

    def __init__(self, d_in: int, d_sae: int, *, l1: float = 0.1, warmup: float = 0.05) -> None:
        """Charge `l1`, risen from 0 over the first `warmup` share of the steps."""
        super().__init__(d_in, d_sae)
        if not (l1 >= 0 and math.isfinite(l1)):
            raise ValueError(f"l1 must be at least 0 and finite, got {l1}.")
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup is a share of the steps and must lie in 0..1, got {warmup}.")
        self.l1, self.warmup = l1, warmup

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:  # noqa: ARG002
        """Return the code of normalised activations."""
        pre = sae.pre(x)
        code = Code.at(pre, (pre > 0).flatten().nonzero().squeeze(1))
        return sae.select(x, code.indices, code.values, code.pointers)

    def penalties(
        self,
        x: Float[Tensor, "batch d_in"],  # noqa: ARG002
        code: Code,
        recon: Float[Tensor, "batch d_out"],  # noqa: ARG002
        sae: Sae,  # noqa: ARG002
        ctx: Context,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the L1 penalty."""
        risen = min(1.0, (ctx.step + 1) / max(1.0, self.warmup * ctx.steps))
        return {"l1": self.l1 * risen / math.sqrt(self.d_in) * code.values.abs().sum() / max(1, len(code))}
