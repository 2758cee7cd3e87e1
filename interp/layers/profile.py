"""The profile of a model: every family of measures by layer, from one pass over the text.

    found = profile(load_model("tiny"), blocks=blocks)
    found.results["stream"].layers                       # layer, measure, part, value, low, high
    found.beside(profile(other, blocks=blocks)).figure() # small multiples on one axis of layers

The activations that any family wants are captured once in each forward, and blocks go through in batches of bounded
size. A family that cannot be measured on a model is left out with its reason, unless it was asked for by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.hooks import capture
from interp.layers.families import build_families
from interp.layers.family import Batch, Family
from interp.layers.result import Part, Profile
from interp.layers.sampling import kept_positions
from interp.models.handle import ModelHandle
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks

BATCH_FLOATS = 1 << 24
"""Activations and logits of a batch, in floats (64 MiB in float32)."""

MOST_BLOCKS = 16
"""Blocks in a batch."""

Progress = Callable[[int, int, str], object]
"""Hears (done, total, unit): of the blocks that were read, then of the families that are finished."""


def profile(
    handle: ModelHandle,
    families: Sequence[str | Family] | None = None,
    *,
    blocks: Blocks,
    lenient: bool | None = None,
    on_progress: Progress = lambda *_: None,
    on_part: Callable[[str, Part], object] = lambda *_: None,
    skip: Sequence[str] = (),
) -> Profile:
    """Return what `families` measure of a model that reads `blocks`.

    Args:
        handle: the model.
        families: names and `Family` objects; None takes the default ones.
        blocks: the text.
        lenient: leave out a family that the model does not allow, with its reason; None does so unless families are
            named.
        on_progress: hears (done, total, unit) of the blocks that were read, then of the families that are finished.
        on_part: hears (name, part) of each family as soon as it is finished, to keep it.
        skip: families that are known already, such as those that a broken run holds.

    Raises:
        ValueError: a text that is too long for the model, or what a family refuses that may not be left out.
    """
    chosen = [one for one in build_families(families) if one.name not in skip]
    if blocks.context > handle.n_ctx:
        raise ValueError(f"{handle.spec.name} reads n_ctx={handle.n_ctx} tokens at most, got {blocks.context}.")
    work = _Work(handle, chosen, lenient=families is None if lenient is None else lenient)
    work.begin(blocks)
    size = batch_blocks(handle, blocks.context, work.sites)
    kept = kept_positions(blocks)
    shared = 0.0
    for numbers in torch.arange(len(blocks)).split(size) if work.open else ():
        started = time.perf_counter()
        batch = read_batch(handle, blocks, kept, numbers, work.sites)
        shared += time.perf_counter() - started
        work.update(batch)
        on_progress(int(numbers[-1]) + 1, len(blocks), "blocks")
    work.finish(lambda done, total: on_progress(done, total, "families"), on_part)
    about = {"blocks": len(blocks), "context": blocks.context, "tokens": blocks.n_tokens, "seconds": round(shared, 3)}
    return Profile(handle.spec.label, handle.n_layers, work.parts, work.refused, about)


def batch_blocks(handle: ModelHandle, context: int, sites: Sequence[Site]) -> int:
    """Return how many blocks of `context` tokens go into a batch, so that logits and activations are bounded."""
    floats = context * (handle.d_vocab + sum(handle.width(site) for site in sites))
    return max(1, min(MOST_BLOCKS, BATCH_FLOATS // floats))


def read_batch(
    handle: ModelHandle,
    blocks: Blocks,
    kept: Bool[Tensor, "all_blocks pos"],
    numbers: Int[Tensor, " block"],
    sites: Sequence[Site],
) -> Batch:
    """Return the blocks `numbers` as the model reads them, with activations at `sites`."""
    part = blocks.select(numbers)
    with capture(handle, sites) if sites else nullcontext({}) as taken:
        logits = handle.logits(part.tokens)
    device = logits.device
    return Batch(
        tokens=part.tokens.long().to(device),
        real=part.keep.to(device),
        keep=kept[numbers].to(device),
        logits=logits,
        acts={site: taken[site].flatten(2) for site in sites},
    )


class _Work:
    """Families on their way: what each has found so far, what it took, and which were refused."""

    def __init__(self, handle: ModelHandle, families: Sequence[Family], *, lenient: bool) -> None:
        self.handle, self.open, self.lenient = handle, list(families), lenient
        self.parts: dict[str, Part] = {}
        self.refused: dict[str, str] = {}
        self.seconds = {one.name: 0.0 for one in families}
        self.sites: list[Site] = []

    def begin(self, blocks: Blocks) -> None:
        """Begin every family; find the sites that they want."""
        wanted: set[Site] = set()
        for one in list(self.open):
            with self._watched(one):
                one.begin(self.handle, blocks)
                wanted |= {self.handle.check_site(site) for site in one.sites(self.handle)}
        self.sites = sorted(wanted)

    def update(self, batch: Batch) -> None:
        """Give every family a batch."""
        for one in list(self.open):
            with self._watched(one):
                one.update(batch)

    def finish(self, tell: Callable[[int, int], object], on_part: Callable[[str, Part], object]) -> None:
        """Finish every family, telling after each."""
        waiting = list(self.open)
        for done, one in enumerate(waiting, 1):
            result = None
            with self._watched(one):
                result = one.finish()
            if result is not None:
                part = Part(result, tuple(one.measures), round(self.seconds[one.name], 3))
                self.parts[one.name] = part
                on_part(one.name, part)
            tell(done, len(waiting))

    @contextmanager
    def _watched(self, one: Family) -> Iterator[None]:
        """Time a piece of a family's work; one that may be left out and refuses is closed, with its reason."""
        started = time.perf_counter()
        try:
            yield
        except ValueError as error:
            if not self.lenient:
                raise ValueError(f"The family {one.name}: {error}") from error
            self.refused[one.name] = str(error)
            self.open.remove(one)
        finally:
            self.seconds[one.name] += time.perf_counter() - started
