"""Skipping blocks: resid_post.l = resid_pre.l, to the bit, in both views. Indices of layers stay as they are.

What attention and MLP of the block add is replaced by zero, so an intervention at resid_pre.l still reaches the blocks
after it, and gradients run through. The zero is negative: x + (-0) is x for every x, also for x = -0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from interp.compression.steps.base import NamedStep
from interp.models.taps import BLOCKS, per_token
from interp.sites import Site
from interp.types import Change, StepReport

if TYPE_CHECKING:
    from interp.models.handle import ModelHandle


@dataclass(frozen=True)
class SkipLayers(NamedStep):
    """Let whole blocks do nothing."""

    name: ClassVar[str] = "skip_layers"

    layers: tuple[int, ...] = ()
    """Which blocks, counted from 0."""

    def __post_init__(self) -> None:
        for layer in self.layers:
            if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
                raise ValueError(f"layers of skip_layers are whole numbers from 0 on, got {layer!r}.")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers of skip_layers must differ, got {list(self.layers)}.")
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))  # in any order they are one step

    @property
    def is_nothing(self) -> bool:
        """Whether no layer is skipped."""
        return not self.layers

    def describe(self) -> str:
        """Return such as `skip_layers-3.4`."""
        return f"skip_layers-{'.'.join(map(str, self.layers)) or 'none'}"

    def attach(self, handle: ModelHandle) -> StepReport:
        """Silence the blocks in both views of `handle`; what they hold need not be stored then.

        Raises:
            ValueError: a layer lies beyond the model.
        """
        from interp.compression.walk import count, matrices

        beyond = [layer for layer in self.layers if layer >= handle.n_layers]
        if beyond:
            raise ValueError(
                f"skip_layers cannot skip layer {beyond[0]}: the layers of {handle.spec.name} are "
                f"0..{handle.n_layers - 1}."
            )
        if self.is_nothing:
            return StepReport(self.describe())
        for layer in self.layers:
            handle.attach(Site(layer, "attn_out"), nothing)
            handle.attach(Site(layer, "mlp_out"), nothing)
        blocks, _ = matrices(handle.module)
        gone = tuple(f"{BLOCKS[handle.family]}.{layer}." for layer in self.layers)
        changes = [
            Change(name, count(leaf) if name in blocks else 0, 0, 0)  # norms take no bits either, and are no matrices
            for name, leaf in handle.module.named_modules()
            if name.startswith(gone) and next(leaf.parameters(recurse=False), None) is not None
        ]
        return StepReport(self.describe(), sum(map(count, blocks.values())), tuple(changes))


@per_token
def nothing(value: Tensor) -> Tensor:
    """Return what can be added to anything without changing it."""
    return torch.full_like(value, -0.0)
