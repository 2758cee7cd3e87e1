"""Examples of a latent in two models: where it is largest in either, and its activation in both around there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.data import Blocks

SIDES = ("a", "b")


class Spool:
    """The codes of both models on the first tokens, as many as `limit` active latents for each model allow."""

    def __init__(self, limit: int) -> None:
        """Begin without tokens."""
        self.limit, self.blocks = limit, 0
        self._full = limit == 0
        self._slots = [0, 0]
        self._parts: list[list[tuple[NDArray, NDArray, NDArray]]] = [[], []]

    def add(self, sides: Sequence[tuple[Tensor, Tensor, Tensor]], blocks: int) -> None:
        """Add (latents, tokens, values) of both models, up to block number `blocks`; nothing once the limit is met."""
        grown = [held + len(side[0]) for held, side in zip(self._slots, sides, strict=True)]
        self._full = self._full or max(grown) > self.limit
        if self._full:
            return
        self._slots, self.blocks = grown, blocks
        for parts, (latents, tokens, values) in zip(self._parts, sides, strict=True):
            parts.append(
                (
                    latents.cpu().numpy().astype(np.int32),
                    tokens.cpu().numpy().astype(np.int32),
                    values.float().cpu().numpy(),
                )
            )

    def take(self, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return (latents, tokens, values) of one model."""
        columns = [np.concatenate(c) for c in zip(*self._parts[side], strict=True)] or [np.empty(0)] * 3
        return columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2].astype(np.float32)


class _Lookup:
    """Activations of one model by (latent, token)."""

    def __init__(self, spool: Spool, side: int, chosen: NDArray[np.bool_], span: int) -> None:
        latents, tokens, values = spool.take(side)
        ours = chosen[np.minimum(latents, len(chosen) - 1)]
        self.latents, self.tokens, self.values, self.span = latents[ours], tokens[ours], values[ours], span
        keys = self.latents * span + self.tokens
        order = np.argsort(keys)
        self._keys, self._sorted = keys[order], self.values[order]

    def at(self, latents: NDArray, tokens: NDArray) -> NDArray[np.float32]:
        """Return the activation of each latent at each token, 0 where it is silent."""
        if len(self._keys) == 0:
            return np.zeros(len(tokens), np.float32)
        asked = latents * self.span + tokens
        places = np.minimum(np.searchsorted(self._keys, asked), len(self._keys) - 1)
        return np.where(self._keys[places] == asked, self._sorted[places], np.float32(0))

    def largest(self, count: int, context: int) -> tuple[NDArray, NDArray, NDArray]:
        """Return (latents, ranks, tokens) of the `count` largest |activations| of each latent, one from a block."""
        bits = np.abs(self.values).view(np.int32).astype(np.int64)  # of positive floats the bits are in order
        order = np.argsort(self.latents << 32 | (np.iinfo(np.int32).max - bits), kind="stable")
        latents, tokens = self.latents[order], self.tokens[order]
        # Descending within each latent: the first slot of a block is its strongest.
        _, first = np.unique(latents * (self.span // context) + tokens // context, return_index=True)
        first.sort()
        latents, tokens = latents[first], tokens[first]
        begins = np.flatnonzero(np.diff(latents, prepend=-1))
        ranks = np.arange(len(latents)) - np.repeat(begins, np.diff(begins, append=len(latents)))
        near = ranks < count
        return latents[near], ranks[near], tokens[near]


def examples_table(spool: Spool, latents: NDArray[np.int64], blocks: Blocks, count: int, window: int) -> pa.Table:
    """Return the examples of `latents`, by latent, side and rank.

    Args:
        spool: codes of both models.
        latents: which latents.
        blocks: the text.
        count: examples of a latent and side.
        window: tokens shown on either side, within the block and without padding.

    Returns:
        Columns latent, side (whose largest activations), rank, block, position, start, token_ids, values_a, values_b.
    """
    import pyarrow as pa

    context = blocks.context
    chosen = np.zeros(int(max(latents, default=-1)) + 2, bool)  # the last place stands for all higher latents
    chosen[latents] = True
    lookups = [_Lookup(spool, side, chosen, max(len(blocks) * context, 1)) for side in (0, 1)]
    parts = [
        (np.full(len(found[0]), side), *found) for side in (0, 1) for found in [lookups[side].largest(count, context)]
    ]
    sides, owners, ranks, tokens = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((ranks, sides, owners))
    sides, owners, ranks, tokens = sides[order], owners[order], ranks[order], tokens[order]
    numbers, positions = np.divmod(tokens, context)
    starts = np.maximum(positions - window, 0)
    lengths = blocks.keep.sum(1).numpy()
    sizes = np.minimum(positions + window + 1, lengths[numbers]) - starts
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    shown = np.arange(offsets[-1]) + np.repeat(numbers * context + starts - offsets[:-1], sizes)
    whose = np.repeat(owners, sizes)
    cuts = pa.array(offsets, pa.int32())
    columns: dict[str, Any] = {
        "latent": pa.array(owners, pa.int32()),
        "side": pa.array(SIDES).take(pa.array(sides, pa.int32())),
        "rank": pa.array(ranks, pa.int16()),
        "block": pa.array(numbers, pa.int32()),
        "position": pa.array(positions, pa.int32()),
        "start": pa.array(starts, pa.int32()),
        "token_ids": pa.ListArray.from_arrays(cuts, pa.array(blocks.tokens.numpy().ravel()[shown], pa.int32())),
    }
    for name, lookup in zip(SIDES, lookups, strict=True):
        columns[f"values_{name}"] = pa.ListArray.from_arrays(cuts, pa.array(lookup.at(whose, shown), pa.float32()))
    return pa.table(columns)
