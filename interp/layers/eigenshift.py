"""EigenShift: directions of the unembedding that one kind of text uses more are scaled down (arXiv 2509.16660).

With W = U S V^T the unembedding and h the normalised last hidden state of a token, c = V^T h,

    delta_i = mean of c_i over the unwanted tokens - mean over the others,   S'_i = alpha S_i for the largest |delta_i|

and W' = U S' V^T = W + (alpha - 1) sum over those i of (W v_i) v_i^T: no U is needed. Nothing is trained.

Traps. The sign of v_i is arbitrary and that of delta_i with it, so the size decides here; the paper leaves this open.
Where the embedding is tied to the unembedding, W' would change what is read too: `apply_shift` unties them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.models.handle import ModelHandle


@dataclass(frozen=True, eq=False)
class Shift:
    """What two kinds of tokens differ in, direction by direction."""

    vectors: Float[Tensor, "d_model n"]
    """The right singular vectors v_i of the unembedding, by descending singular value."""
    values: Float[Tensor, " n"]
    """Its singular values."""
    delta: Float[Tensor, " n"]
    """Difference of the mean coordinates."""

    def chosen(self, percentile: float = 99.0) -> Int[Tensor, " k"]:
        """Return the directions whose |delta| is at or above the percentile: at least one, largest first.

        Raises:
            ValueError: no percentile.
        """
        if not 0 <= percentile <= 100:
            raise ValueError(f"percentile must lie in 0..100, got {percentile}.")
        keep = max(1, round(len(self.delta) * (1 - percentile / 100)))
        return self.delta.abs().argsort(descending=True)[:keep]


def fit_shift(
    unembed: Float[Tensor, "d_vocab d_model"],
    unwanted: Float[Tensor, "row d_model"],
    others: Float[Tensor, "rows d_model"],
) -> Shift:
    """Return the difference of two sets of hidden states (after the final norm) along the unembedding's directions.

    Raises:
        ValueError: a set is empty.
    """
    if not len(unwanted) or not len(others):
        raise ValueError(f"Both sets of hidden states need rows, got {len(unwanted)} and {len(others)}.")
    w = unembed.detach().double()
    squares, vectors = torch.linalg.eigh(w.T @ w)
    vectors, values = vectors.flip(1), squares.flip(0).clamp_min(0).sqrt()
    delta = (unwanted.double().mean(0) - others.double().mean(0)).to(vectors.device) @ vectors
    return Shift(vectors, values, delta)


def shifted(
    unembed: Float[Tensor, "d_vocab d_model"], shift: Shift, alpha: float, percentile: float = 99.0
) -> Float[Tensor, "d_vocab d_model"]:
    """Return the unembedding with the chosen singular values multiplied by `alpha`, in its own format."""
    v = shift.vectors[:, shift.chosen(percentile)]
    w = unembed.detach().double()
    return (w + (alpha - 1) * (w @ v) @ v.T).to(unembed.dtype)


def apply_shift(handle: ModelHandle, shift: Shift, alpha: float, percentile: float = 99.0) -> Any:
    """Return a copy of the Hugging Face module with the shifted unembedding, untied from the embedding."""
    import copy

    module = copy.deepcopy(handle.module)
    head = module.get_output_embeddings()
    head.weight = nn.Parameter(shifted(handle.unembed(), shift, alpha, percentile), requires_grad=False)
    module.config.tie_word_embeddings = False
    return module
