"""Neurons decoded by the unembedding, and whether that is sharper than chance.

The logits that a neuron's output direction writes are compared, over the vocabulary, with those of random directions:

    kurtosis = mean z^4,   top = max z        z = (logit - mean) / standard deviation
    p = (1 + random directions that are at least as sharp) / (1 + random directions)

Decoding neurons by the head is due to Geva et al. (2022) and Davies (2025); the null is a random rotation of all
neurons: a rotated direction is uniform on a sphere, and neither measure depends on its length, so one set of random
directions is the null of every neuron of a model.

Traps. Some token always has the largest logit: a top token alone says nothing. An unembedding with heavy-tailed rows
makes every direction look sharp, which the null takes into account; a few directions in which it is much larger than in
others make neurons differ from rotated ones in the other direction too (blunter than random).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.layers.norms import block_norm
from interp.layers.vocabulary import Vocabulary
from interp.layers.weights import layer_matrices
from interp.models.handle import ModelHandle
from interp.names import unknown

SIDES = {"out": "mlp_out", "in": "mlp_in", "gate": "mlp_gate"}
"""What a neuron writes, what it reads, and what its gate reads (Llama): the matrix it is a row or column of."""


@dataclass(frozen=True, eq=False)
class Sharpness:
    """How sharply directions decode to tokens."""

    kurtosis: Float[Tensor, " n"]
    """Mean fourth power of standardised logits: 3 for Gaussian ones."""
    top: Float[Tensor, " n"]
    """Largest standardised logit."""
    best: Int[Tensor, "n k"]
    """Tokens with the largest logits."""


def neuron_directions(handle: ModelHandle, layer: int, side: str = "out") -> Float[Tensor, "d_mlp d_model"]:
    """Return the direction in the stream that each neuron of a block writes or reads (with its norm's gain), float64.

    Raises:
        ValueError: an unknown side, or a gate where there is none.
    """
    if side not in SIDES:
        raise ValueError(unknown("side of a neuron", side, SIDES))
    matrices = layer_matrices(handle, layer)
    if SIDES[side] not in matrices:
        raise ValueError("The MLP of this model has no gate; take side 'in' or 'out'.")
    matrix = matrices[SIDES[side]].double()
    return matrix.T if side == "out" else block_norm(handle, layer, "mlp").pull_back(matrix)


def sharpness(vocabulary: Vocabulary, directions: Float[Tensor, "n d_model"], k: int = 5) -> Sharpness:
    """Return how sharply each direction decodes; NaN for one that writes nothing."""
    kurtosis, top, best = [], [], []
    for logits in vocabulary.chunks(directions):
        z = logits - logits.mean(1, keepdim=True)
        squares = z.square()
        variance = squares.mean(1)
        ends = logits.topk(min(k, logits.shape[1]))
        kurtosis.append(squares.square_().mean(1) / variance.square())
        top.append((ends.values[:, 0] - logits.mean(1)) / variance.sqrt())
        best.append(ends.indices)
    return Sharpness(torch.cat(kurtosis).cpu(), torch.cat(top).cpu(), torch.cat(best).cpu())


class RotationNull:
    """Sharpness of random directions: what a rotated neuron would show."""

    def __init__(self, vocabulary: Vocabulary, draws: int = 1000, seed: int = 0) -> None:
        """Draw directions.

        Raises:
            ValueError: no draw.
        """
        if draws < 1:
            raise ValueError(f"draws must be 1 or more, got {draws}.")
        # NumPy's stream: torch's, at the seed that a model was initialised with, would draw its embeddings again.
        drawn = np.random.default_rng(seed).standard_normal((draws, vocabulary.handle.d_model))
        found = sharpness(vocabulary, torch.from_numpy(drawn), 1)
        self._sorted = {"kurtosis": found.kurtosis.sort().values, "top": found.top.sort().values}

    def p_values(self, found: Sharpness, measure: str = "kurtosis") -> Float[Tensor, " n"]:
        """Return the share of random directions that are at least as sharp; small is sharper than random. NaN stays.

        Raises:
            ValueError: an unknown measure.
        """
        if measure not in self._sorted:
            raise ValueError(unknown("measure of sharpness", measure, self._sorted))
        values, null = getattr(found, measure), self._sorted[measure]
        above = len(null) - torch.searchsorted(null, values.contiguous())
        return torch.where(values.isnan(), torch.nan, (1 + above.double()) / (1 + len(null)))
