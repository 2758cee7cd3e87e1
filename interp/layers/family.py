"""Families of measures by layer: what a family is given, and what it returns. All families share one pass of the text.

    class Norms:                       # a family of one's own
        name = "norms"
        measures = (Measure("norm", "norm of the stream", "length"),)
        def sites(self, handle): return tuple(Site(layer, "resid_post") for layer in range(handle.n_layers))
        def begin(self, handle, blocks): self.sums = {}
        def update(self, batch): ...   # batch.acts[site], batch.keep, batch.tokens, batch.logits
        def finish(self): return FamilyResult({}, layer_table([(0, "norm", "", 1.0)]))

Layer l is block l, counted from 0; what is measured of the residual stream at layer l is the stream after that block
unless a measure says otherwise, and the embeddings are layer -1.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.layers.result import COLUMNS, FamilyResult, Measure, layer_table
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

T = TypeVar("T")

__all__ = ["COLUMNS", "Batch", "Family", "FamilyResult", "Measure", "layer_table"]


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of blocks as the model read it. Nothing in it may be changed in place."""

    tokens: Int[Tensor, "block pos"]
    """Token ids."""
    real: Bool[Tensor, "block pos"]
    """Tokens that are not padding."""
    keep: Bool[Tensor, "block pos"]
    """Positions whose activations count: neither padding nor BOS nor position 0."""
    logits: Float[Tensor, "block pos d_vocab"]
    """The model's output."""
    acts: dict[Site, Tensor]
    """Activations at the sites that the families wanted, heads flattened: [block pos d]."""
    _memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def predicts(self) -> Bool[Tensor, "block pos"]:
        """Positions that predict a real token: real ones followed by a real one, BOS included."""
        follows = torch.zeros_like(self.real)
        follows[:, :-1] = self.real[:, :-1] & self.real[:, 1:]
        return follows

    @cached_property
    def with_first(self) -> Bool[Tensor, "block pos"]:
        """`keep` and position 0 of each block: for measures that report position 0 apart."""
        found = self.keep.clone()
        found[:, 0] = self.real[:, 0]
        return found

    @cached_property
    def targets(self) -> Int[Tensor, "block pos"]:
        """The token after each position (0 after the last, which predicts nothing)."""
        return torch.cat([self.tokens[:, 1:], torch.zeros_like(self.tokens[:, :1])], dim=1)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returned when it was first called under `key`: what several families need is made once."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]


@runtime_checkable
class Family(Protocol):
    """Measures of each layer that belong together; it may be used again after `finish`."""

    @property
    def name(self) -> str:
        """What its results are called."""
        ...

    @property
    def measures(self) -> Sequence[Measure]:
        """What its table by layer holds, in the order of figures."""
        ...

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:
        """Return the sites whose activations it wants; none for what is read from weights."""
        ...

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:
        """Forget what was measured before; `blocks` is the text that will come.

        Raises:
            ValueError: it cannot be measured on this model.
        """
        ...

    def update(self, batch: Batch) -> None:
        """Measure one batch; it may run the model again."""
        ...

    def finish(self) -> FamilyResult:
        """Return what was found; it may run the model again."""
        ...
