"""Scale activations before the encoder, and back after the decoder.

One object, fitted once and stored with the dictionary, so that every metric is taken on raw activations and no
caller can forget the factor.

    scalar   x / s, with s the root mean square of a coordinate of x - centre, so that losses and rates
             mean the same at every site
    layer    (x - mean(x)) / std(x) for each token, undone with that token's own mean and std
    none     x

A row that is made of blocks (a crosscoder's) has one scale, or one mean and std, for each of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

KINDS = ("scalar", "layer", "none")


class Scale(NamedTuple):
    """What one batch was shifted and divided by."""

    shift: Float[Tensor, "batch _"] | None
    """Subtracted from each row (None: nothing)."""
    factor: Float[Tensor, ...]
    """Divided out of each row."""


class Normaliser(nn.Module):
    """Raw activations to the encoder's scale and back."""

    scale: Tensor

    def __init__(self, kind: str, blocks: tuple[int, ...] = ()) -> None:
        """Make an unfitted normaliser (scale 1) of one of `KINDS`, for rows of these blocks (none: rows are whole)."""
        super().__init__()
        if kind not in KINDS:
            from interp.names import unknown

            raise ValueError(unknown("normalisation", kind, KINDS))
        self.kind, self.blocks = kind, blocks
        self.register_buffer("scale", torch.ones(len(blocks)) if blocks else torch.ones(()))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "batch d_in"], centre: Float[Tensor, " d_in"]) -> None:
        """Set the scalar scale from a sample and its centre; the other kinds have nothing to fit."""
        if self.kind == "scalar":
            squares = (x.double() - centre.double()).square()
            parts = squares.split(self.blocks, dim=1) if self.blocks else [squares]
            scale = torch.stack([part.mean().sqrt() for part in parts])
            wrong = ~torch.isfinite(scale) | (scale == 0)
            if wrong.any():
                raise ValueError(
                    f"The sample's spread must be finite and above 0 to normalise by it, got {scale[wrong][0]:g}."
                )
            self.scale.copy_(scale if self.blocks else scale[0])

    @property
    def factor(self) -> Float[Tensor, ...]:
        """What rows are divided by: one number, or with blocks one for each coordinate."""
        if not self.blocks:
            return self.scale
        return self.scale.repeat_interleave(torch.tensor(self.blocks, device=self.scale.device))

    def into(self, x: Float[Tensor, "batch d_in"]) -> tuple[Float[Tensor, "batch d_in"], Scale]:
        """Return the scaled activations and what undoes it."""
        if self.kind != "layer":
            factor = self.factor
            return (x if self.kind == "none" else x / factor), Scale(None, factor)
        parts = x.split(self.blocks, dim=1) if self.blocks else (x,)
        shifts = [part.mean(-1, keepdim=True) for part in parts]
        factors = [
            (part - shift).std(-1, keepdim=True, correction=0) + 1e-5 for part, shift in zip(parts, shifts, strict=True)
        ]
        shift, factor = (self._spread(columns) for columns in (shifts, factors))
        return (x - shift) / factor, Scale(shift, factor)

    def _spread(self, columns: list[Float[Tensor, "batch 1"]]) -> Float[Tensor, "batch _"]:
        """Return the column of each block over all coordinates of it."""
        if not self.blocks:
            return columns[0]
        return torch.cat([c.expand(-1, width) for c, width in zip(columns, self.blocks, strict=True)], dim=1)

    def back(self, x: Float[Tensor, "batch d_out"], scale: Scale) -> Float[Tensor, "batch d_out"]:
        """Return `x` in raw units."""
        x = x * scale.factor
        return x if scale.shift is None else x + scale.shift
