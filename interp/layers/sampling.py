"""Which positions of a text count, an even sample of what comes one after the other, an interval by blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

if TYPE_CHECKING:
    from interp.data import Blocks

_DRAWN = 1 << 20  # entries of one matrix of drawn blocks


class Spread:
    """Chooses about `limit` of `total` items that come one after the other, evenly spread."""

    def __init__(self, total: int, limit: int | None) -> None:
        """Choose all where `limit` is None or not below `total`."""
        self.total, self.limit = max(total, 1), total if limit is None else min(limit, total)
        self._seen = 0

    def next(self, count: int) -> Int[Tensor, " chosen"]:
        """Return which of the next `count` items are chosen, ascending, counted from the first of them."""
        places = torch.arange(self._seen, self._seen + count)
        self._seen += count
        before = places * self.limit // self.total
        return torch.nonzero((places + 1) * self.limit // self.total > before)[:, 0]


def kept_positions(blocks: Blocks) -> Bool[Tensor, "block pos"]:
    """Return the positions whose activations count: neither padding nor BOS nor position 0."""
    kept = blocks.keep & ~blocks.bos()
    kept[:, 0] = False
    return kept


def check_text(blocks: Blocks) -> None:
    """Refuse a text of which no position counts.

    Raises:
        ValueError: each block is BOS, padding and a first token.
    """
    if not kept_positions(blocks).any():
        raise ValueError(
            f"Every block of this text is a first token and padding (context {blocks.context}); give more."
        )


def predicting_positions(blocks: Blocks) -> int:
    """Return how many positions predict a real token."""
    return int((blocks.keep[:, :-1] & blocks.keep[:, 1:]).sum())


def bootstrap(sums: np.ndarray, tokens: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles of sum(sums) / sum(tokens) over blocks drawn with replacement.

    (NaN, NaN) for a single block, which says nothing about how blocks differ, and where a sum is not finite.
    """
    n = len(sums)
    if n < 2 or not np.isfinite(sums).all():
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    found = []
    for begin in range(0, resamples, max(1, _DRAWN // n)):
        count = min(max(1, _DRAWN // n), resamples - begin)
        drawn = rng.integers(0, n, (count, n))
        found.append(sums[drawn].sum(1) / np.maximum(tokens[drawn].sum(1), 1))
    low, high = np.quantile(np.concatenate(found), (0.025, 0.975))
    return float(low), float(high)
