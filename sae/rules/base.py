"""What a sparsity rule is: the only thing in which one kind of dictionary differs from another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae.code import Code

if TYPE_CHECKING:
    from sae.model import Sae


@dataclass(frozen=True)
class Context:
    """What only some rules need to know about a batch."""

    step: int = 0
    """Optimiser step."""
    steps: int = 1
    """Optimiser steps in all."""
    generator: torch.Generator | None = None
    """Seeded by (seed, step): a rule that draws stays exactly resumable."""
    dead: Bool[Tensor, " d_sae"] | None = None
    """Latents that have been silent for long."""
    gradient: Float[Tensor, "batch d_out"] | None = None
    """Gradient, in normalised units, of the model's loss where the reconstruction goes: the loss is the sum over all
    next tokens of a row's text, so that it does not depend on the batch."""
    target: Float[Tensor, "batch d_out"] | None = None
    """What the atoms are to reconstruct, normalised, where that is not x (see `wanted`)."""

    def wanted(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """Return what z W_dec + b_dec is to be: x itself, unless the dictionary's target is something else."""
        return x if self.target is None else self.target


class Rule(nn.Module, ABC):
    """From normalised activations to a code.

    A rule owns its parameters and buffers, so that a state dict is the whole truth. It may look across the batch
    while `training`; in evaluation each row's code is independent of its batch.
    """

    signed: ClassVar[bool] = False
    """Whether values may be negative: AuxK then picks by size, and pages show both ends."""
    tied: ClassVar[bool] = False
    """Whether the encoder is the atoms themselves: `sae.unit()` then returns the atoms as its rows too, W_enc is no
    parameter of the loss, and equals W_dec when done."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of `Context` that training has to fill beyond the usual ones: "gradient"."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        """Keep the widths; a subclass adds its arguments as keywords with defaults."""
        super().__init__()
        self.d_in, self.d_sae = d_in, d_sae

    def begin(self, generator: torch.Generator) -> None:
        """Draw what of the rule's own starts at random; `sae.initialise` calls this with a generator of its seed."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:
        """Return the code of normalised activations."""

    def penalties(
        self,
        x: Float[Tensor, "batch d_in"],  # noqa: ARG002
        code: Code,  # noqa: ARG002
        recon: Float[Tensor, "batch d_out"],  # noqa: ARG002
        sae: Sae,  # noqa: ARG002
        ctx: Context,  # noqa: ARG002
    ) -> dict[str, Float[Tensor, ""]]:
        """Return what the rule adds to the loss, weighted and named."""
        return {}

    def revive(self, dead: Bool[Tensor, " d_sae"]) -> Bool[Tensor, " d_sae"]:
        """Return the latents that AuxK is to bring back: the dead ones, unless the rule knows better."""
        return dead

    def observe(self, code: Code, ctx: Context) -> None:
        """Learn from a training step that is done, such as a running threshold; `encode` itself keeps nothing."""

    def finalise(self) -> None:
        """Fix what evaluation needs (thresholds and the like) once training is over."""
