"""What a training reads: the activations of a step and, where a rule or a target asks for it, what goes with them.

A source gives `batch(step)`; what more it can give is a method of its own, of the same rows in the same order:

    gradient(step)   [batch d_out]   of the model's loss, summed over all next tokens of a row's block, at the site
    target(step)     [batch d_out]   what is to be reconstructed, where that is not the input
    model(step)                      what the model makes of reconstructed rows (`ModelLoss`)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.sites import Site

if TYPE_CHECKING:
    from interp.activations import ActivationStore

NEEDS = {
    "gradient": (
        "gradient",
        "the gradient of the model's loss, which a source gives that runs the model: ActivationStore(..., "
        "gradient=True), on the command line any source but --store",
    ),
    "y": (
        "target",
        "the activations that are to be reconstructed, which sae.batches.Pairs joins to those that are read",
    ),
    "model": ("model", "the model itself, run on whole texts: sae.end_to_end.TextBatches"),
}
"""Field of `Batch` -> (method of the source, what it is and where to get it)."""


@runtime_checkable
class Batches(Protocol):
    """Where activations come from: a store, or anything that gives the batch of a step."""

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        ...

    def batch(self, step: int) -> Float[Tensor, "batch d_in"]:
        """Return the activations of `step`, always the same for the same step."""
        ...


ModelLoss = Callable[[Float[Tensor, "batch d_out"]], dict[str, Float[Tensor, ""]]]
"""From reconstructed rows, in raw units, to named losses of the model that runs with them, with gradients."""


@dataclass(frozen=True)
class Batch:
    """The rows of one step, raw."""

    x: Float[Tensor, "batch d_in"]
    """What the encoder reads."""
    y: Float[Tensor, "batch d_out"] | None = None
    """What is to be reconstructed (None: x)."""
    gradient: Float[Tensor, "batch d_out"] | None = None
    """Gradient of the model's loss where the reconstruction goes."""
    model: ModelLoss | None = None
    """What the model makes of reconstructed rows."""


def check_source(batches: Batches, needs: Collection[str], who: str) -> None:
    """Refuse a source that lacks what `who` needs.

    Raises:
        ValueError: the source has no such method, or says by `gives` that it does not give it.
    """
    for need in sorted(needs):
        method, what = NEEDS[need]
        if not hasattr(batches, method) or need not in getattr(batches, "gives", NEEDS):
            raise ValueError(f"{who} needs {what}; {type(batches).__name__} does not give it.")


def read_batch(batches: Batches, step: int, needs: Collection[str] = ()) -> Batch:
    """Return the batch of `step` with the fields that `needs` names."""
    more: dict[str, Any] = {need: getattr(batches, NEEDS[need][0])(step) for need in sorted(needs)}
    return Batch(batches.batch(step), **more)


class AtSite:
    """One site of a store that captures several in one pass."""

    def __init__(self, store: ActivationStore, site: Site | str) -> None:
        """Read `site` of `store`."""
        self.store, self.site = store, Site.parse(site)
        self.d_in: int = store.widths[self.site]
        self.gives = store.gives

    @property
    def report(self) -> dict[str, int]:
        """Positions by what became of them."""
        return self.store.report

    def batch(self, step: int) -> Float[Tensor, "batch d_in"]:
        """Return the activations of `step` at the site."""
        return self.store.batch(step, self.site)

    def gradient(self, step: int) -> Float[Tensor, "batch d_in"]:
        """Return the gradient of the model's loss at the site."""
        return self.store.gradient(step, self.site)

    def origin(self, step: int) -> dict[str, Int[Tensor, " batch"]]:
        """Return where the rows are from."""
        return self.store.origin(step)


class Pairs:
    """For a transcoder: rows of one source, and the rows of another that are to be written for them."""

    def __init__(self, x: Batches, y: Batches) -> None:
        """Join two sources whose rows are of the same tokens, step by step."""
        self.x, self.y, self.d_in, self.d_out = x, y, x.d_in, y.d_in
        self.gives = ("y", *(need for need in getattr(y, "gives", ()) if need == "gradient"))

    @property
    def report(self) -> dict[str, int]:
        """Positions by what became of them."""
        return dict(getattr(self.x, "report", {}))

    def batch(self, step: int) -> Float[Tensor, "batch d_in"]:
        """Return what is read at `step`."""
        _check_aligned([self.x, self.y], step)
        return self.x.batch(step)

    def target(self, step: int) -> Float[Tensor, "batch d_out"]:
        """Return what is to be written at `step`."""
        return self.y.batch(step)

    def gradient(self, step: int) -> Float[Tensor, "batch d_out"]:
        """Return the gradient of the model's loss where the reconstruction goes."""
        return self.y.gradient(step)  # type: ignore[attr-defined]


class SideBySide:
    """For a crosscoder: the rows of several sources of the same tokens, side by side."""

    gives = ()

    def __init__(self, sources: Sequence[Batches]) -> None:
        """Join the sources, of one model or of two, in the order of the blocks."""
        self.sources = list(sources)
        self.blocks = tuple(source.d_in for source in self.sources)
        self.d_in = sum(self.blocks)

    @property
    def report(self) -> dict[str, int]:
        """Positions by what became of them."""
        return dict(getattr(self.sources[0], "report", {}))

    def batch(self, step: int) -> Float[Tensor, "batch d_in"]:
        """Return the concatenated rows of `step`."""
        _check_aligned(self.sources, step)
        first = self.sources[0].batch(step)
        return torch.cat([first, *(source.batch(step).to(first) for source in self.sources[1:])], dim=1)


def _check_aligned(sources: Sequence[Batches], step: int) -> None:
    """Refuse sources whose rows at `step` are of different tokens, where they say of which.

    Raises:
        ValueError: a row was left out of one source and not of the other.
    """
    found = [source.origin(step) for source in sources if isinstance(source, _Placed)]
    for other in found[1:]:
        wrong = (found[0]["block"] != other["block"]) | (found[0]["position"] != other["position"])
        if wrong.any():
            raise ValueError(
                f"{int(wrong.sum())} rows of step {step} are of different tokens in the sources that are joined: one "
                "leaves out rows (outliers, not finite) that the other keeps. Leave no outliers out there."
            )


@runtime_checkable
class _Placed(Protocol):
    """A source that knows where its rows are from."""

    def origin(self, step: int) -> dict[str, Tensor]: ...
