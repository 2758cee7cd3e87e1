"""Blocks: token sequences of one length, ready for a model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Blocks:
    """Token blocks of one length and what is known about them."""

    tokens: Int[Tensor, "block pos"]
    """Token ids, int32."""
    keep: Bool[Tensor, "block pos"]
    """False where a token is only padding; padding is always at the end of a block."""
    documents: int
    """Documents that the text gave (a split keeps the number of the whole)."""
    across_documents: bool
    """True: a block may hold several documents, and attention crosses their boundaries."""
    bos_id: int | None
    """The token that starts every block, None for a model without one."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def context(self) -> int:
        """Length of a block, BOS included."""
        return self.tokens.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens that are not padding, BOS included."""
        return int(self.keep.sum())

    def bos(self) -> Bool[Tensor, "block pos"]:
        """Return where BOS stands: at the start, and wherever a model that uses one token for both ends ends a text."""
        return self.keep & (self.tokens == self.bos_id) if self.bos_id is not None else torch.zeros_like(self.keep)

    def select(self, indices: Int[Tensor, " chosen"]) -> Blocks:
        """Return the blocks `indices`, in that order."""
        return replace(self, tokens=self.tokens[indices], keep=self.keep[indices])

    def first(self, tokens: int) -> Blocks:
        """Return the first blocks, as many as hold `tokens` tokens at most, but at least one."""
        held = int((self.keep.sum(1).cumsum(0) <= tokens).sum())
        return self.select(torch.arange(max(held, 1)))

    def split(self, heldout_share: float, seed: int = 0) -> tuple[Blocks, Blocks]:
        """Return (train, held-out): disjoint, at least one block each, the same for the same seed.

        Whole blocks are dealt out, so with `across_documents` a document that runs over a block's end can have its
        beginning on one side and its end on the other.

        Raises:
            ValueError: a share outside (0, 1), or fewer than two blocks.
        """
        if not 0 < heldout_share < 1:
            raise ValueError(f"heldout_share must lie between 0 and 1, got {heldout_share}.")
        if len(self) < 2:
            raise ValueError(
                f"A split needs at least 2 blocks, and the text gave {len(self)}. Use more text, a shorter context, or "
                "heldout 0, which uses the whole text for both parts."
            )
        count = min(max(round(heldout_share * len(self)), 1), len(self) - 1)
        order = torch.from_numpy(np.random.default_rng([seed, len(self)]).permutation(len(self)))
        return self.select(order[count:].sort().values), self.select(order[:count].sort().values)

    def digest(self) -> str:
        """Return the sha256 of the tokens, the padding and the shape."""
        whole = hashlib.sha256(f"{tuple(self.tokens.shape)} {self.bos_id} {self.across_documents}".encode())
        whole.update(cast(Any, self.tokens.to(torch.int32).contiguous().numpy()))  # an array is a buffer
        whole.update(cast(Any, self.keep.contiguous().numpy()))
        return whole.hexdigest()

    def describe(self) -> str:
        """Return a sentence or two for people: sizes, and what shares a block."""
        sizes = (
            f"{len(self):,} blocks of {self.context} tokens ({self.n_tokens:,} tokens, {self.documents:,} documents)"
        )
        start = (
            "Every block starts with BOS."
            if self.bos_id is not None
            else "The model has no BOS: blocks start with text."
        )
        if self.across_documents:
            return f"{sizes}; documents are joined and cut, and attention crosses document boundaries. {start}"
        padding = 1 - self.n_tokens / self.tokens.numel()
        return f"{sizes}; every block holds one document, {padding:.1%} of the positions are padding. {start}"
