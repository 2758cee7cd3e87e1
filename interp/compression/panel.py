"""Panels: what is measured between two models that read the same tokens, and what a panel is given.

    class Norms:                       # a panel of one's own
        name = "norms"
        def sites(self, a): return (Site(0, "resid_post"),)
        def begin(self, a, b, blocks): self.total = 0.0
        def update(self, pair): ...    # pair.acts_a[site], pair.acts_b[site], pair.keep, pair.logits_a, ...
        def finish(self): return PanelResult({"norm": self.total}, {})

    compare("tiny", spec, ["behaviour", Norms()], blocks=blocks)

All panels share one pass of both models. Statistics leave out padding, BOS, and position 0 of each block, whose norm is
often hundreds of times that of others; a panel that wants position 0 finds it in `Pair.first`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.layers.sampling import Spread as Spread
from interp.layers.sampling import kept_positions as kept_positions
from interp.layers.sampling import predicting_positions as predicting_positions
from interp.metrics import finite_rows
from interp.sites import Site

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.data import Blocks
    from interp.models import ModelHandle

T = TypeVar("T")


@dataclass(frozen=True)
class PanelResult:
    """What a panel found."""

    summary: dict[str, int | float | str | None]
    """Headline numbers by name."""
    tables: dict[str, pa.Table]
    """Tables by name."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One batch of blocks as both models read it. Nothing in it may be changed in place."""

    tokens: Int[Tensor, "block pos"]
    """Token ids."""
    real: Bool[Tensor, "block pos"]
    """Tokens that are not padding."""
    keep: Bool[Tensor, "block pos"]
    """Positions whose activations count: neither padding nor BOS nor position 0."""
    first: Bool[Tensor, "block pos"]
    """Position 0 of each block."""
    numbers: Int[Tensor, " block"]
    """Number of each block in the text."""
    logits_a: Float[Tensor, "block pos d_vocab"]
    """Logits of model a."""
    logits_b: Float[Tensor, "block pos d_vocab"]
    """Logits of model b."""
    acts_a: dict[Site, Tensor]
    """Activations of model a at the sites that the panels wanted, heads flattened: [block pos d]."""
    acts_b: dict[Site, Tensor]
    """The same of model b."""
    _memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def predicts(self) -> Bool[Tensor, "block pos"]:
        """Positions that predict a real token: real ones followed by a real one, BOS included."""
        follows = torch.zeros_like(self.real)
        follows[:, :-1] = self.real[:, :-1] & self.real[:, 1:]
        return follows

    @cached_property
    def targets(self) -> Int[Tensor, "block pos"]:
        """The token after each position (0 after the last, which predicts nothing)."""
        return torch.cat([self.tokens[:, 1:], torch.zeros_like(self.tokens[:, :1])], dim=1)

    def rows(self, site: Site, which: Bool[Tensor, "block pos"] | None = None) -> tuple[Tensor, Tensor]:
        """Return the activations (a, b) at `site`, [rows d_a] and [rows d_b], where both are finite.

        Args:
            site: one of those that the panel asked for.
            which: positions; None takes `keep`.
        """
        x, y = self.acts_a[site], self.acts_b[site]
        chosen = (self.keep if which is None else which) & finite_rows(x) & finite_rows(y)
        return x[chosen], y[chosen]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returned when it was first called under `key`: what several panels need is made once."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]


@runtime_checkable
class Panel(Protocol):
    """Something that is measured between two models; it may be used again after `finish`."""

    @property
    def name(self) -> str:
        """What its results are called."""
        ...

    def sites(self, a: ModelHandle) -> tuple[Site, ...]:
        """Return the sites of model `a` whose activations it wants of both models."""
        ...

    def begin(self, a: ModelHandle, b: ModelHandle, blocks: Blocks) -> None:
        """Forget what was measured before; `blocks` is the text that will come.

        Raises:
            ValueError: it cannot be measured between these models.
        """
        ...

    def update(self, pair: Pair) -> None:
        """Measure one batch."""
        ...

    def finish(self) -> PanelResult:
        """Return what was found."""
        ...
