"""Statistics of activations, latent by latent, from the sparse code alone.

With a the activation of one latent, sums run over the n tokens on which it is active (a != 0), T is all kept tokens:

    density = n/T    mean = sum a / n    second moment = sum a^2 / T
    skew = m3 / m2^1.5    kurtosis = m4 / m2^2    with m_p = sum a^p / n

Skew and kurtosis use moments about zero, not about the mean: a latent has a natural zero, and that is where it is
silent. A constant positive activation has skew and kurtosis 1. Of a latent with both signs the negative part is also
counted by itself; the positive part is the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS_PER_OCTAVE = 4
"""Histogram bins between a and 2a."""
OCTAVES = 24
"""Range of a histogram below the largest |activation|; what is smaller still is counted in its first bin."""


@dataclass
class Moments:
    """Sums over the tokens seen so far, one entry per latent; two of them over different tokens can be merged."""

    tokens: int
    """Kept tokens."""
    count: NDArray[np.int64]
    """Tokens on which the latent is active."""
    sums: NDArray[np.float64]
    """Sums of a, a^2, a^3, a^4: [4 d_sae]."""
    largest: NDArray[np.float32]
    """Largest activation, -inf where there is none."""
    smallest: NDArray[np.float32]
    """Smallest activation, inf where there is none."""
    below: NDArray[np.int64]
    """Tokens on which the latent is negative."""
    below_sum: NDArray[np.float64]
    """Sum of its negative activations."""

    @classmethod
    def empty(cls, d_sae: int) -> Moments:
        """Return the statistics of no token."""
        infinite = np.full(d_sae, np.inf, np.float32)
        none = np.zeros(d_sae, np.int64)
        return cls(0, none, np.zeros((4, d_sae)), -infinite, infinite, none.copy(), np.zeros(d_sae))

    def add(self, latents: NDArray[np.int64], values: NDArray[np.float32], tokens: int) -> None:
        """Count the active slots (values != 0) of `tokens` more tokens."""
        d_sae = len(self.count)
        self.tokens += tokens
        self.count += np.bincount(latents, minlength=d_sae)
        wide = values.astype(np.float64)
        power = np.ones_like(wide)
        for total in self.sums:
            power *= wide
            total += np.bincount(latents, power, d_sae)
        np.maximum.at(self.largest, latents, values)
        np.minimum.at(self.smallest, latents, values)
        negative = wide < 0
        if negative.any():
            self.below += np.bincount(latents[negative], minlength=d_sae)
            self.below_sum += np.bincount(latents[negative], wide[negative], d_sae)

    def merge(self, other: Moments) -> Moments:
        """Return the statistics of both sets of tokens."""
        return Moments(
            self.tokens + other.tokens,
            self.count + other.count,
            self.sums + other.sums,
            np.maximum(self.largest, other.largest),
            np.minimum(self.smallest, other.smallest),
            self.below + other.below,
            self.below_sum + other.below_sum,
        )

    @property
    def density(self) -> NDArray[np.float64]:
        """Share of the kept tokens on which each latent is active."""
        return self.count / max(self.tokens, 1)

    @property
    def dead(self) -> int:
        """Latents that were never active."""
        return int((self.count == 0).sum())

    @property
    def l0(self) -> float:
        """Active latents per kept token."""
        return int(self.count.sum()) / max(self.tokens, 1)

    @property
    def signed(self) -> bool:
        """Whether any activation was negative."""
        return bool(self.below.any())

    def columns(self) -> dict[str, NDArray]:
        """Return the columns count ... min of latents.parquet; NaN where a latent was never active.

        If any activation was negative there are also `count_negative`, `density_negative` and `mean_negative`.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            first, second, third, fourth = self.sums / self.count
            skew, kurtosis = third / second**1.5, fourth / second**2
        alive = self.count > 0
        columns = {
            "count": self.count,
            "density": self.density,
            "mean": first,
            "second_moment": self.sums[1] / max(self.tokens, 1),
            "skew": skew,
            "kurtosis": kurtosis,
            "max": np.where(alive, self.largest, np.nan).astype(np.float32),
            "min": np.where(alive, self.smallest, np.nan).astype(np.float32),
        }
        return columns | self._below() if self.signed else columns

    def _below(self) -> dict[str, NDArray]:
        """Return the columns that only signed codes have."""
        mean = np.divide(self.below_sum, self.below, out=np.full(len(self.below), np.nan), where=self.below > 0)
        return {
            "count_negative": self.below,
            "density_negative": self.below / max(self.tokens, 1),
            "mean_negative": mean,
        }


def histogram_edges(smallest: float, largest: float) -> NDArray[np.float32]:
    """Return edges 2^(j / BINS_PER_OCTAVE) around the |activations| from `smallest` to `largest`.

    The grid is the same for every dictionary, so histograms of two of them have edges in common.
    """
    if not 0 < smallest <= largest < math.inf:
        smallest = largest = 1.0
    last = math.floor(math.log2(largest) * BINS_PER_OCTAVE) + 1
    first = max(math.floor(math.log2(smallest) * BINS_PER_OCTAVE), last - OCTAVES * BINS_PER_OCTAVE)
    return np.exp2(np.arange(first, last + 1) / BINS_PER_OCTAVE).astype(np.float32)


def histogram(
    latents: NDArray[np.int64], values: NDArray[np.float32], edges: NDArray[np.float32], d_sae: int
) -> NDArray[np.int64]:
    """Return how many |values| of each latent lie in [edge, next edge): [d_sae bins], the outer bins open."""
    bins = len(edges) - 1
    places = np.clip(np.searchsorted(edges, np.abs(values), side="right") - 1, 0, bins - 1)
    return np.bincount(latents * bins + places, minlength=d_sae * bins).reshape(d_sae, bins)


def entropy(latents: NDArray[np.int64], tokens: NDArray[np.int64], d_sae: int, d_vocab: int) -> NDArray[np.float64]:
    """Return the entropy in nats of each latent's token ids, NaN for a latent without any: 0 is one token only."""
    pairs, counts = np.unique(latents * d_vocab + tokens, return_counts=True)
    owners = pairs // d_vocab
    total = np.bincount(latents, minlength=d_sae)
    share = counts / total[owners]
    found = np.bincount(owners, -share * np.log(share), d_sae)
    return np.where(total > 0, np.abs(found), np.nan)
