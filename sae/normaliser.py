"""Scale activations before the encoder, and back after the decoder.

One object, fitted once and stored with the dictionary, so that every metric is taken on raw activations and no
caller can forget the factor.

    scalar   x / s, with s the root mean square of a coordinate of x - centre, so that losses and rates
             mean the same at every site
    layer    (x - mean(x)) / std(x) for each token, undone with that token's own mean and std
    none     x
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

KINDS = ("scalar", "layer", "none")


class Scale(NamedTuple):
    """What one batch was shifted and divided by."""

    shift: Float[Tensor, "batch 1"] | None
    """Subtracted from each row (None: nothing)."""
    factor: Float[Tensor, ...]
    """Divided out of each row."""


class Normaliser(nn.Module):
    """Raw activations to the encoder's scale and back."""

    scale: Tensor

    def __init__(self, kind: str) -> None:
        """Make an unfitted normaliser (scale 1) of one of `KINDS`."""
        super().__init__()
        if kind not in KINDS:
            from interp.names import unknown

            raise ValueError(unknown("normalisation", kind, KINDS))
        self.kind = kind
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "batch d_in"], centre: Float[Tensor, " d_in"]) -> None:
        """Set the scalar scale from a sample and its centre; the other kinds have nothing to fit."""
        if self.kind == "scalar":
            scale = (x.double() - centre.double()).square().mean().sqrt()
            if not torch.isfinite(scale) or scale == 0:
                raise ValueError(f"The sample's spread must be finite and above 0 to normalise by it, got {scale:g}.")
            self.scale.copy_(scale)

    def into(self, x: Float[Tensor, "batch d_in"]) -> tuple[Float[Tensor, "batch d_in"], Scale]:
        """Return the scaled activations and what undoes it."""
        if self.kind != "layer":
            return (x if self.kind == "none" else x / self.scale), Scale(None, self.scale)
        shift = x.mean(-1, keepdim=True)
        factor = (x - shift).std(-1, keepdim=True, correction=0) + 1e-5
        return (x - shift) / factor, Scale(shift, factor)

    def back(self, x: Float[Tensor, "batch d_out"], scale: Scale) -> Float[Tensor, "batch d_out"]:
        """Return `x` in raw units."""
        x = x * scale.factor
        return x if scale.shift is None else x + scale.shift
