"""Singular values and vectors of what a head reads and writes, from factors of d_head rows.

    OV = W_O W_V        moves x to W_O W_V x            (Elhage et al. 2021)
    QK = W_Q^T W_K / sqrt(d_head)                       x_q^T QK x_k is a score before the softmax

both with the gain of the block's norm folded in, so that x is a normalised stream (`interp.layers.head_weights`). A
singular triple of OV says: what lies along v is read, and s times u is written; each decoded to tokens (Millidge and
Black 2022).

Traps. The sign of a pair of vectors is arbitrary: here the written side's largest logit is positive. With rotary
positions QK holds at distance 0 only, and biases of q and k are left out. Early heads read embeddings; later ones read
what others wrote, which token names describe less well.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from interp.layers.head_weights import CIRCUITS, head_weights
from interp.layers.vocabulary import Vocabulary
from interp.models.handle import ModelHandle


def head_rows(handle: ModelHandle, layer: int) -> list[dict[str, float]]:
    """Return a row for each head of a block.

    `ov_rank`, `qk_rank`: effective rank; `ov_size`, `qk_size`: largest singular value; `ov_top`, `qk_top`: its share of
    the squared ones.
    """
    weights, rows = head_weights(handle, layer), []
    for head in range(handle.n_heads):
        row: dict[str, float] = {"layer": layer, "head": head}
        for which in CIRCUITS:
            one = weights.circuit(head, which)
            size = one.frobenius
            row |= {f"{which}_rank": one.effective_rank, f"{which}_size": one.spectral}
            row[f"{which}_top"] = (one.spectral / size) ** 2 if size > 0 else math.nan
        rows.append(row)
    return rows


def singular_tokens(
    vocabulary: Vocabulary, layer: int, head: int, which: str = "ov", *, n: int = 3, k: int = 6
) -> list[dict[str, Any]]:
    """Return a row for each of the first n singular triples of a head, decoded to k tokens.

    `value`; of `ov` `writes` (by the unembedding) and `reads` (by the embedding); of `qk` `query` and `key` (both by
    the embedding).

    Raises:
        ValueError: there is no such head or circuit.
    """
    u, s, vh = head_weights(vocabulary.handle, layer).circuit(head, which).svd()
    left, right = u.T[:n], vh[:n]
    table = vocabulary.written if which == "ov" else vocabulary.embedded
    seen = left.float().to(table.device) @ table.T
    peak = seen.gather(1, seen.abs().argmax(1, keepdim=True)).sign().to(left)
    sign = torch.where(peak == 0, 1.0, peak)
    names = ("writes", "reads") if which == "ov" else ("query", "key")
    sides = zip(
        vocabulary.words(left * sign, k, reads=which == "qk"),
        vocabulary.words(right * sign, k, reads=True),
        strict=True,
    )
    return [
        {"layer": layer, "head": head, "rank": i, "value": float(s[i]), names[0]: one, names[1]: other}
        for i, (one, other) in enumerate(sides)
    ]
