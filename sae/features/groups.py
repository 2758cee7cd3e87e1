"""Vectorised arithmetic on sorted groups: the sorts, ranks and ragged ranges that choosing examples is made of."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_FINALISER = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
HASH_BITS = 40
"""Bits of `draw`; the rest of an int64 is left for a group's number."""


def order_by(group: NDArray[np.int64], key: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Return what sorts by group, then key (below 2^bits), then place; torch's radix sort beats numpy's by three."""
    return torch.from_numpy((group << bits) | key).sort(stable=True).indices.numpy()


def ranks(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each entry within its group; equal groups stand together."""
    if not len(group):
        return np.zeros(0, np.int64)
    begins = np.flatnonzero(np.diff(group, prepend=group[0] - 1))
    lengths = np.diff(begins, append=len(group))
    return np.arange(len(group)) - np.repeat(begins, lengths)


def first_of_each(group: NDArray[np.int64], key: NDArray[np.int64], bits: int, count: int) -> NDArray[np.int64]:
    """Return where the `count` smallest keys of each group stand, groups ascending, keys ascending within them."""
    order = order_by(group, key, bits)
    return order[ranks(group[order]) < count]


def ragged(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranges [start, start + length) one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def draw(seed: int, salt: int, latent: NDArray[np.int64], token: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a pseudo-random number below 2^HASH_BITS for each (latent, token).

    A hash (the finaliser of splitmix64, twice), not a stream of draws: what is chosen by the smallest numbers does
    not depend on the order in which tokens were seen.
    """
    state = np.full(1, (seed * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03) % 2**64, np.uint64)
    mixed = _mix(_mix(state) ^ _mix(latent.astype(np.uint64)) ^ (token.astype(np.uint64) << np.uint64(1)))
    return (mixed >> np.uint64(64 - HASH_BITS)).astype(np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _FINALISER[0]
    x = (x ^ (x >> np.uint64(27))) * _FINALISER[1]
    return x ^ (x >> np.uint64(31))
