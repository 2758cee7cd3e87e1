"""Settings of lenses that are fitted to a model. Importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TunedLensConfig:
    """How a tuned lens is trained (`interp.layers.tuned_lens`)."""

    steps: int = 250
    """Steps of Adam; the rate falls linearly to 0."""
    blocks: int = 8
    """Blocks of text that the model reads in a step."""
    positions: int = 1024
    """Positions out of them that a step learns from, at most."""
    lr: float = 3e-3
    """Rate at the start."""
    heldout: float = 0.1
    """Share of the blocks that is kept apart and measured before and after; 0: none."""
    seed: int = 0
    """Of the split, the order of the blocks and the choice of positions."""

    def __post_init__(self) -> None:
        for name in ("steps", "blocks", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}.")
        if not 0 <= self.heldout < 1:
            raise ValueError(f"heldout must lie in [0, 1), got {self.heldout}.")


@dataclass(frozen=True)
class JacobianLensConfig:
    """How a Jacobian lens is fitted (`interp.layers.jacobian_lens`)."""

    sequences: int = 32
    """Sequences to average over, at most: the first blocks that are real to the end."""
    context: int = 64
    """Tokens of a sequence, BOS included."""
    skip: int = 16
    """First positions that are left out, as attention sinks with a Jacobian of their own."""
    dims: int = 16
    """Output dimensions of one backward pass, so many copies of the sequence at once; no effect on the result."""

    def __post_init__(self) -> None:
        for name in ("sequences", "dims"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if self.skip < 0 or self.context < self.skip + 2:
            raise ValueError(
                f"context must be 2 more than skip or longer, so that a position is left: got context={self.context}, "
                f"skip={self.skip}."
            )
