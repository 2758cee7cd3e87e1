"""Which latents fire together: exact counts of pairs and their normalised pointwise mutual information.

    npmi(i, j) = log(p_ij / (p_i p_j)) / -log p_ij        (Bouma 2009)

1: never one without the other; 0: independent; below 0: they avoid each other. p are shares of the kept tokens, and
p_ij is counted by the sparse product Z^T Z of the codes' patterns, PAIRS of its entries at a time, each of which
reads all codes once (65,536 latents: 64 readings; up to 8,192 latents: one). Pairs that met on fewer than MINIMUM
tokens are left out, since one chance meeting of two rare latents has an NPMI near 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from sae.features.spool import Spool

PAIRS = 1 << 26
"""Pairs that are counted at a time (256 MiB of int32)."""
SCORES = 1 << 22
"""Pairs that are scored at a time (16 MiB of float32)."""
MINIMUM = 5
"""Tokens on which two latents must have met."""


def npmi(
    together: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64], tokens: int
) -> NDArray[np.float64]:
    """Return the NPMI of pairs that met on `together` of `tokens` tokens; each fired on `left` and `right` of them.

    Two latents that are always on tell nothing about each other: 0.
    """
    surprise = np.log(tokens) - np.log(together)
    pmi = surprise + np.log(together / left) + np.log(together / right)
    return np.divide(pmi, surprise, out=np.zeros_like(pmi), where=surprise > 0)


def coactive(
    spool: Spool,
    tokens: int,
    n: int,
    *,
    minimum: int = MINIMUM,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return (NPMI, latents) [d_sae n] of the n latents that fire most together with each; -inf where there are fewer.

    Args:
        spool: the codes.
        tokens: kept tokens.
        n: latents to return for each.
        minimum: tokens on which two latents must have met.
        on_progress: hears the latents done.
    """
    n = min(n, spool.d_sae - 1)
    values = np.full((spool.d_sae, n), -np.inf, np.float32)
    others = np.zeros((spool.d_sae, n), np.int64)
    step = max(1, PAIRS // spool.d_sae)
    for first in range(0, spool.d_sae if n else 0, step):
        last = min(first + step, spool.d_sae)
        counts = pair_counts(spool, first, last)
        counts[np.arange(last - first), np.arange(first, last)] = 0
        for begin in range(0, last - first, max(1, SCORES // spool.d_sae)):
            part = slice(begin, min(begin + max(1, SCORES // spool.d_sae), last - first))
            place = slice(first + part.start, first + part.stop)
            values[place], others[place] = _best(counts[part], spool.counts, first + begin, tokens, n, minimum)
        on_progress(last)
    return values, others


def pair_counts(spool: Spool, first: int, last: int) -> NDArray[np.int32]:
    """Return on how many tokens the latents first..last-1 were active together with each latent: [rows d_sae]."""
    counts = np.zeros((last - first, spool.d_sae), np.int32)
    flat = counts.reshape(-1)
    for piece in spool.pieces():
        if not len(piece.tokens):
            continue
        base = int(piece.tokens.min())
        shape = (int(piece.tokens.max()) - base + 1, spool.d_sae)
        pattern = sparse.csc_matrix((np.ones(len(piece.tokens), np.int32), piece.tokens - base, piece.offsets), shape)
        product = (pattern[:, first:last].T @ pattern.tocsr()).tocsr()
        rows = np.repeat(np.arange(last - first), np.diff(product.indptr))
        flat[rows * spool.d_sae + product.indices] += product.data  # each pair once: no index comes twice
    return counts


def _best(
    counts: NDArray[np.int32], fired: NDArray[np.int64], first: int, tokens: int, n: int, minimum: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the n highest NPMI of some rows of the pair counts; of equal ones the lower latent first."""
    rows, columns = np.nonzero(counts >= minimum)
    scores = np.full(counts.shape, -np.inf, np.float32)
    scores[rows, columns] = npmi(counts[rows, columns].astype(np.int64), fired[first + rows], fired[columns], tokens)
    values, indices = torch.from_numpy(scores).topk(n, dim=1)
    return values.numpy(), indices.numpy()
