"""Matching pursuit: the atoms are the encoder, and each step reads what the steps before it left.

    r = x - b_dec;   k times:   i = argmax_j <d_j, r>,   v = max(<d_i, r>, 0),   z_i += v,   r -= v d_i

(Costa, Fel, Lubana, Tolooshams and Ba 2025, arXiv 2506.03093.) A latent that explains a parent feature is out of the
way when its children are looked for, so features need to be orthogonal only given those before them. Each step leaves
||r||^2 smaller by v^2, whatever their number, so evaluation may take other steps than training. Gradients pass through
all of the loop at fixed choices (`sae.pursuit.unrolled`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor

from sae.code import Code
from sae.pursuit import matching_pursuit, merged, unrolled
from sae.rules.arguments import latents_per_row, shares
from sae.rules.base import Context, Rule

if TYPE_CHECKING:
    from sae.model import Sae


class MatchingPursuit(Rule):
    """Take the best atom, subtract it, go on."""

    tied: ClassVar[bool] = True

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        k: int | None = None,
        residual: float = 0.0,
        until_repeat: bool = False,
        k_eval: int | None = None,
    ) -> None:
        """Take `k` steps (None: `default_k` of the width), `k_eval` in evaluation (None: as many), or stop before.

        A row is done when what is left of it is at most the share `residual` of its norm, and with `until_repeat`
        when it would take an atom a second time.
        """
        super().__init__(d_in, d_sae)
        shares("the row's norm", residual=residual)
        self.k = latents_per_row(k, d_in, d_sae)
        self.k_eval = self.k if k_eval is None else latents_per_row(k_eval, d_in, d_sae)
        self.residual, self.until_repeat = residual, until_repeat

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:  # noqa: ARG002
        """Return the code of normalised activations."""
        rows, atoms = sae.centred(x), sae.unit()[2]
        k = self.k if self.training else self.k_eval
        steps = matching_pursuit(rows, atoms, k, residual=self.residual, until_repeat=self.until_repeat)
        return merged(unrolled(rows, atoms, steps), self.d_sae)
