"""Directions of the residual stream in terms of tokens: what one writes to the logits, what one reads of embeddings.

    written(c) = W_U centre(gain * ..) c,   less its mean over tokens        (gain and mean of the final norm)
    read(c)    = W_E c,                     less its mean over tokens

The final norm's scale, one positive factor for each token of a text, is left out, and so is what later layers do.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from interp.layers.norms import final_norm
from interp.models.handle import ModelHandle

CHUNK_FLOATS = 1 << 23
"""Largest block of logits worked on at once, in floats (32 MiB in float32)."""


ROWS = 8192
"""Tokens that are folded at once."""


class Vocabulary:
    """The tokens' directions of a model, in float32."""

    def __init__(self, handle: ModelHandle) -> None:
        """Fold the final norm into the unembedding.

        Raises:
            ValueError: the norm cannot be taken apart.
        """
        self.handle = handle
        norm = final_norm(handle)  # in parts: in float64 a large unembedding would take gigabytes more
        write = torch.cat([norm.pull_back(rows).float() for rows in handle.unembed().detach().split(ROWS)])
        read = handle.module.get_input_embeddings().weight.detach().float()
        self.written: Float[Tensor, "d_vocab d"] = write - write.mean(0)
        self.embedded: Float[Tensor, "d_vocab d"] = read - read.mean(0)

    def chunks(self, directions: Float[Tensor, "n d"]) -> Iterator[Float[Tensor, "some d_vocab"]]:
        """Yield what directions write to the logits, a bounded number at a time."""
        for part in directions.detach().float().split(max(1, CHUNK_FLOATS // len(self.written))):
            yield part.to(self.written.device) @ self.written.T

    def words(self, directions: Float[Tensor, "n d"], k: int = 5, *, reads: bool = False) -> list[list[str]]:
        """Return the k tokens that each direction writes most, or whose embeddings it reads most (see `names`)."""
        table = self.embedded if reads else self.written
        k = min(k, len(table))
        found = [
            (part.to(table.device) @ table.T).topk(k).indices
            for part in directions.detach().float().split(max(1, CHUNK_FLOATS // len(table)))
        ]
        return [self.names(row) for rows in found for row in rows.tolist()]

    def names(self, ids: list[int]) -> list[str]:
        """Return the text of each id, or the id itself as text where the model has no tokenizer."""
        return [str(i) for i in ids] if self.handle.tokenizer is None else self.handle.token_strings(ids)


def token_rows(handle: ModelHandle, weights: dict[int, float]) -> Float[Tensor, " d_vocab"]:
    """Return the functional on logits that weights each token's logit: {7: 1, 9: -1} is a difference of two.

    Raises:
        ValueError: no token, or one that is not in the vocabulary.
    """
    if not weights:
        raise ValueError("A functional on logits needs at least one token, got none.")
    n = torch.zeros(handle.d_vocab, dtype=torch.float64)
    for token, weight in weights.items():
        if not 0 <= token < handle.d_vocab:
            raise ValueError(f"Token ids must lie in 0..d_vocab-1={handle.d_vocab - 1}, got {token}.")
        n[token] = weight
    return n
