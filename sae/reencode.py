"""The atoms of a finished dictionary under another encoder: what could its code be, if it were looked for?

A dictionary's own encoder is one product; a pursuit over the same atoms finds codes of the same L0 that leave less
(Smith 2024, *Inference-time optimisation*; Engels et al. 2024, arXiv 2410.14670). `Reencoded` goes wherever a
dictionary does: `sae.evaluation.evaluate(handle, site, Reencoded(sae, "omp", k=32), blocks)`, or `splice`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.names import unknown
from sae.code import Code
from sae.greedy import gradient_pursuit, orthogonal_pursuit
from sae.model import Sae
from sae.normaliser import Scale
from sae.pursuit import matching_pursuit, merged

ENCODERS = ("omp", "gradient_pursuit", "matching_pursuit")


class Reencoded(nn.Module):
    """A dictionary whose codes come from a pursuit over its atoms."""

    def __init__(
        self, sae: Sae, encoder: str = "omp", *, k: int | None = None, residual: float = 0.0, nonnegative: bool = True
    ) -> None:
        """Look for codes with one of `ENCODERS`.

        Args:
            sae: the dictionary; its atoms, b_dec and normalisation are used, its encoder only where k is None.
            encoder: one of `ENCODERS`.
            k: latents per row at most; None takes as many as the dictionary's own code of that row has.
            residual: a row is done when what is left of it is at most this share of its norm, b_dec apart.
            nonnegative: whether coefficients are held at 0 or above (matching pursuit's always are).

        Raises:
            ValueError: an unknown encoder, numbers out of range, or one that reconstructs another site or several.
        """
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(unknown("encoder", encoder, ENCODERS))
        if not sae.target.centred or sae.d_out != sae.d_in:
            raise ValueError(
                f"A pursuit looks for x among the atoms; those of this dictionary ({sae.config.target.kind}) "
                "reconstruct something else. Use its own encoder."
            )
        if sae.config.target.blocks:
            raise ValueError(
                "A pursuit needs atoms of Euclidean length 1; a crosscoder's have length 1 summed over blocks. Use its "
                "own encoder."
            )
        if k is not None and not 1 <= k <= sae.d_sae:
            raise ValueError(f"k must lie in 1..d_sae={sae.d_sae}, got {k}.")
        if not 0 <= residual < 1 or math.isnan(residual):
            raise ValueError(f"residual is a share of the row's norm and must lie in 0..1, got {residual}.")
        if encoder == "matching_pursuit" and (k is None or not nonnegative):
            raise ValueError("matching_pursuit takes k, the same for all rows, and gives no negative coefficients.")
        self.sae, self.encoder, self.k, self.residual, self.nonnegative = sae, encoder, k, residual, nonnegative

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.sae.d_in

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.sae.d_sae

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Code:
        """Return the code of raw activations; leading axes are flattened to rows. There is no gradient."""
        rows, _ = self.sae.normaliser.into(x.reshape(-1, self.d_in).to(self.sae.W_dec.dtype))
        atoms, centred = self.sae.unit()[2], self.sae.centred(rows)
        if self.encoder == "matching_pursuit":
            assert self.k is not None
            return merged(matching_pursuit(centred, atoms, self.k, residual=self.residual), self.d_sae)
        k: Any = self.sae.encode_normalised(rows).l0() if self.k is None else self.k
        pursuit = orthogonal_pursuit if self.encoder == "omp" else gradient_pursuit
        steps = pursuit(centred, atoms, k, residual=self.residual, nonnegative=self.nonnegative)
        return merged(steps, self.d_sae)

    def decode(self, code: Code, scale: Scale | None = None) -> Float[Tensor, "batch d_in"]:
        """Return raw activations, as the dictionary itself does."""
        return self.sae.decode(code, scale)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch d_in"], Code]:
        """Return (reconstruction in raw units, code) of raw activations."""
        _, scale = self.sae.normaliser.into(x.reshape(-1, self.d_in).to(self.sae.W_dec.dtype))
        code = self.encode(x)
        return self.decode(code, scale).view_as(x), code
