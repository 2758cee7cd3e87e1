"""The one pass over the text: capture what the dictionary reads, encode, keep what the description needs.

Only the sparse code leaves a batch: into the moments, and into the spool. The one dense thing is the pre-activations
of a batch, which the encoder computes anyway: at most max(PIECE_FLOATS, context * d_sae) floats. BOS, padding, outlier
and non-finite positions are not kept: they belong to no statistic and are no example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.activations.outliers import near, norms, typical_norm
from interp.activations.rows import blocks_per_forward
from interp.data import Blocks
from interp.metrics import finite_rows
from interp.models import ModelHandle
from sae.features.near_miss import NearMisses, Watched, silence
from sae.features.spool import Spool
from sae.features.statistics import Moments
from sae.model import PIECE_FLOATS, Sae
from sae.placement import Found, Placement
from sae.rules import Context

PIECE_SLOTS = 1 << 20
"""Active slots that are sorted and spooled together, at least."""
TYPICAL_BLOCKS = 64
"""Blocks, evenly spread, whose median norm an outlier is measured by."""


@dataclass
class Counts:
    """What became of the positions."""

    positions: int = 0
    """Positions seen that are not padding."""
    kept: int = 0
    """Positions that statistics and examples are taken from."""
    nonfinite: int = 0
    """Positions with NaN or infinity."""


class Collector:
    """Takes batch after batch: moments, near misses and the spool of the codes."""

    def __init__(self, sae: Sae, spool: Spool, n_near_miss: int) -> None:
        """Start without any token; the caller closes `spool`."""
        self.sae, self.spool = Watched.of(sae), spool
        self.moments = Moments.empty(sae.d_sae)
        self.near = NearMisses(sae.d_sae, n_near_miss, sae.W_enc.device)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._slots = self._kept = 0

    @torch.no_grad()
    def add(self, x: Float[Tensor, "block pos d_in"], kept: Bool[Tensor, "block pos"], first_block: int) -> None:
        """Encode whole blocks, the first of them number `first_block`."""
        sae, (blocks, context) = self.sae, kept.shape
        flat = kept.flatten().to(sae.W_enc.device)
        rows = x.flatten(0, 1).to(sae.W_enc.device, sae.W_enc.dtype)
        # Zeros instead of NaN: such rows are left out below, and must not spread through the products.
        rows, _ = sae.normaliser.into(torch.where(flat[:, None], rows, 0.0))
        code = sae.rule.encode(rows, sae, Context())
        active = (code.values.flatten() != 0) & flat[code.rows]
        tokens = first_block * context + code.rows[active]
        self._wait(code.indices.flatten()[active], tokens, code.values.flatten()[active], int(flat.sum()))
        if self.near.n:
            pre = silence(sae.preactivations(rows), code, flat)
            self.near.add(pre.view(blocks, context, -1), first_block * context)

    def finish(self) -> None:
        """Spool what still waits."""
        if self._kept:
            latents, tokens, values = (torch.cat(parts).cpu().numpy() for parts in zip(*self._waiting, strict=True))
            values = values.astype(np.float32, copy=False)
            self.moments.add(latents, values, self._kept)
            self.spool.add(latents, tokens, values)
        self._waiting, self._slots, self._kept = [], 0, 0

    def _wait(self, latents: Tensor, tokens: Tensor, values: Tensor, kept: int) -> None:
        self._waiting.append((latents, tokens, values.float()))
        self._slots += len(latents)
        self._kept += kept
        if self._slots >= PIECE_SLOTS:
            self.finish()


def collect(
    place: Placement,
    collector: Collector,
    blocks: Blocks,
    *,
    outlier_norm: float | None = None,
    batch_blocks: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Counts:
    """Run the model over `blocks` as far as the dictionary reads and give `collector` every row.

    Args:
        place: what is read; a model's lock is held one forward at a time.
        collector: takes the activations.
        blocks: the text.
        outlier_norm: leave out what is longer than this multiple of the median norm, at any site.
        batch_blocks: blocks in one forward; None takes what fits. It changes no result but the last bits of sums.
        on_progress: hears the positions done.
    """
    usable = blocks.keep & ~blocks.bos()
    typical = [] if outlier_norm is None else _typical_norms(place, blocks, usable)
    step = batch_blocks or _blocks_in_batch(place.models[0], blocks.context, collector.sae.d_sae)
    counts = Counts()
    for first in range(0, len(blocks), step):
        part = slice(first, first + step)
        found = place.activations(blocks.tokens[part].long(), place.reads)
        x = place.rows(found)
        finite = finite_rows(x)
        kept = usable[part].to(x.device) & finite
        for length, one in zip(typical, _everywhere(found), strict=False):
            kept &= near(norms(one), outlier_norm, length).to(kept.device)
        counts.positions += int(blocks.keep[part].sum())
        counts.kept += int(kept.sum())
        counts.nonfinite += int((blocks.keep[part].to(x.device) & ~finite).sum())
        collector.add(x, kept, first)
        on_progress(min(first + step, len(blocks)) * blocks.context)
    collector.finish()
    if counts.kept == 0:
        raise ValueError(
            f"None of the {counts.positions} positions can be described: {counts.nonfinite} are NaN or infinite, "
            "the rest BOS, padding or outliers. Take more text, or check the model with `mechscope models verify`."
        )
    return counts


def _everywhere(found: Found) -> list[Float[Tensor, "block pos _"]]:
    """Return the activations of every model and site."""
    return [x for taken in found for x in taken.values()]


def _blocks_in_batch(handle: ModelHandle, context: int, d_sae: int) -> int:
    return max(1, min(blocks_per_forward(handle, context), PIECE_FLOATS // (context * d_sae)))


def _typical_norms(place: Placement, blocks: Blocks, usable: Bool[Tensor, "block pos"]) -> list[float]:
    """Return the median norm, at every site that is read, of the usable positions of some evenly spread blocks."""
    lengths: list[list[Tensor]] = []
    for index in range(0, len(blocks), max(1, len(blocks) // TYPICAL_BLOCKS)):
        part = slice(index, index + 1)
        found = place.activations(blocks.tokens[part].long(), place.reads)
        kept = usable[part].to(place.models[0].device) & finite_rows(place.rows(found))
        lengths.append([norms(x[kept]) for x in _everywhere(found)])
    return [typical_norm(torch.cat(parts)) for parts in zip(*lengths, strict=True)]
