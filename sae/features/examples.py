"""Which tokens to show for each latent, and what stands around them.

    top        largest activation above 0, at most PER_BLOCK from one block
    quantile   the activations sorted by size and cut into equally filled bins; some of each bin, drawn uniformly
    random     drawn uniformly from all tokens on which the latent is active
    near_miss  see `sae.features.near_miss`
    bottom     as top, but the most negative ones; only latents with negative values have any

A latent with both signs is a line with two ends, and each end is shown. All activations of a latent are at hand
(`sae.features.spool`), so quantiles are exact. Draws go by a hash of (seed, latent, token): the same tokens are chosen
whatever the batches were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae.features.config import FeaturesConfig
from sae.features.groups import HASH_BITS, draw, first_of_each, order_by, ragged, ranks
from sae.features.spool import Chunk
from sae.features.tables import GROUPS

PER_BLOCK = 2
"""Examples of one end of a latent from one block, at most."""

_FLOAT_BITS = 31
_LARGEST = np.int64(2**_FLOAT_BITS - 1)


class Examples(NamedTuple):
    """Chosen tokens, by latent, group and rank."""

    latents: NDArray
    """Latent, counted from the chunk's first."""
    groups: NDArray
    """Index into GROUPS."""
    ranks: NDArray
    """Place within the group, largest |activation| (or pre-activation) first."""
    quantiles: NDArray
    """Bin, 0 the weakest; -1 outside of the group `quantile`."""
    tokens: NDArray
    """block * context + position."""
    values: NDArray
    """Activation, of a near miss the pre-activation."""

    def take(self, index: NDArray) -> Examples:
        """Return the examples at `index` (numbers or a mask)."""
        return Examples(*(column[index] for column in self))

    @classmethod
    def concatenate(cls, parts: Sequence[Examples]) -> Examples:
        """Return all examples, by latent, group and rank."""
        whole = cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        return whole.take(np.lexsort((whole.ranks, whole.groups, whole.latents)))


def choose(
    chunk: Chunk,
    context: int,
    config: FeaturesConfig,
    near_values: NDArray[np.float32],
    near_tokens: NDArray[np.int64],
) -> Examples:
    """Return the examples of a chunk's latents; `near_*` are [latents n], -inf where there is none."""
    latents = chunk.latents
    magnitude = np.abs(chunk.values).view(np.int32).astype(np.int64)  # of positive floats the bits are in order
    descending = order_by(latents, _LARGEST - magnitude, _FLOAT_BITS)
    parts = [
        _end(chunk, latents, magnitude, descending, context, config.n_top, "top"),
        _quantiles(chunk, latents, magnitude, descending, config),
        _random(chunk, latents, magnitude, config),
        _near(near_values, near_tokens),
        _end(chunk, latents, magnitude, descending, context, config.n_top, "bottom"),
    ]
    return Examples.concatenate(parts)


def _end(
    chunk: Chunk,
    latents: NDArray,
    magnitude: NDArray,
    descending: NDArray,
    context: int,
    count: int,
    group: str,
) -> Examples:
    """Return the strongest activations of one sign: the group `top` or `bottom`."""
    own = np.where((chunk.values > 0) == (group == "top"), magnitude, 0)
    allowed = descending[_strongest_of_block(latents, chunk.tokens // context, own)[descending]]
    places = ranks(latents[allowed])
    chosen = places < count
    return _active(chunk, latents, allowed[chosen], group, places[chosen])


def _strongest_of_block(latents: NDArray, blocks: NDArray, magnitude: NDArray) -> NDArray[np.bool_]:
    """Return which slots are among the PER_BLOCK strongest of their latent in their block (of equal ones the first)."""
    chosen = np.zeros(len(latents), bool)
    if not len(latents):
        return chosen
    owners = np.concatenate([[0], np.cumsum((np.diff(latents) != 0) | (np.diff(blocks) != 0))])
    begins = np.flatnonzero(np.diff(owners, prepend=-1))
    left = magnitude.copy()
    for _ in range(PER_BLOCK):
        best = np.flatnonzero((left == np.maximum.reduceat(left, begins)[owners]) & (left > 0))
        best = best[np.diff(owners[best], prepend=-1) != 0]
        chosen[best] = True
        left[best] = 0
    return chosen


def _quantiles(
    chunk: Chunk, latents: NDArray, magnitude: NDArray, descending: NDArray, config: FeaturesConfig
) -> Examples:
    count = np.diff(chunk.offsets)[latents]
    ascending = np.empty(len(latents), np.int64)
    ascending[descending] = count[descending] - 1 - ranks(latents[descending])
    bins = ascending * config.n_quantiles // np.maximum(count, 1)
    drawn = draw(config.seed, GROUPS.index("quantile"), latents + chunk.first, chunk.tokens)
    owners = latents * max(config.n_quantiles, 1) + bins
    chosen = first_of_each(owners, drawn, HASH_BITS, config.per_quantile if config.n_quantiles else 0)
    chosen = chosen[order_by(latents[chosen], _LARGEST - magnitude[chosen], _FLOAT_BITS)]
    return _active(chunk, latents, chosen, "quantile", ranks(latents[chosen]), bins[chosen])


def _random(chunk: Chunk, latents: NDArray, magnitude: NDArray, config: FeaturesConfig) -> Examples:
    drawn = draw(config.seed, GROUPS.index("random"), latents + chunk.first, chunk.tokens)
    chosen = first_of_each(latents, drawn, HASH_BITS, config.n_random)
    chosen = chosen[order_by(latents[chosen], _LARGEST - magnitude[chosen], _FLOAT_BITS)]
    return _active(chunk, latents, chosen, "random", ranks(latents[chosen]))


def _near(values: NDArray[np.float32], tokens: NDArray[np.int64]) -> Examples:
    latents, places = np.nonzero(np.isfinite(values))
    group = np.full(len(latents), GROUPS.index("near_miss"))
    return Examples(latents, group, places, np.full(len(latents), -1), tokens[latents, places], values[latents, places])


def _active(
    chunk: Chunk, latents: NDArray, chosen: NDArray, group: str, places: NDArray, bins: NDArray | None = None
) -> Examples:
    groups = np.full(len(chosen), GROUPS.index(group))
    bins = np.full(len(chosen), -1) if bins is None else bins
    return Examples(latents[chosen], groups, places, bins, chunk.tokens[chosen], chunk.values[chosen])


class Windows(NamedTuple):
    """The tokens around examples, one after the other."""

    starts: NDArray[np.int64]
    """First token shown, as a position in its block."""
    offsets: NDArray[np.int32]
    """Where each example's tokens begin: [examples + 1]."""
    token_ids: NDArray[np.int32]
    """Ids of the tokens shown."""
    values: NDArray[np.float32]
    """Activation of the example's latent at each of them; 0 where it is silent or the token is not kept."""


def windows(
    examples: Examples, chunk: Chunk, token_ids: NDArray[np.int32], lengths: NDArray[np.int64], window: int
) -> Windows:
    """Return up to `window` tokens on either side of each example, within its block and without padding.

    Args:
        examples: of the latents of `chunk`.
        chunk: their codes.
        token_ids: of all blocks, [block pos].
        lengths: tokens of each block that are not padding.
        window: tokens on either side.
    """
    context = token_ids.shape[1]
    blocks, positions = np.divmod(examples.tokens, context)
    starts = np.maximum(positions - window, 0)
    ends = np.minimum(positions + window + 1, lengths[blocks])
    begins, sizes = blocks * context + starts, ends - starts
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    values = np.zeros(offsets[-1], np.float32)
    span = token_ids.size
    codes = chunk.latents * span + chunk.tokens
    first = np.searchsorted(codes, examples.latents * span + begins)
    found = np.searchsorted(codes, examples.latents * span + begins + sizes) - first
    slots = ragged(first, found)
    values[np.repeat(offsets[:-1] - begins, found) + chunk.tokens[slots]] = chunk.values[slots]
    return Windows(starts, offsets.astype(np.int32), token_ids.ravel()[ragged(begins, sizes)], values)
