"""A code: which latents are on for each row, and how strongly.

Sparse first. With a fixed number k of slots per row (the fast case) `indices` and `values` are `[batch k]`; with
variable support they are `[nnz]` and `pointers` `[batch+1]` says where each row begins (CSR). Indices are unique
within a row. A slot whose value is 0 is silent, and values may be negative, so "active" is `!= 0` everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class ByLatent(NamedTuple):
    """A code's slots sorted by latent: what every sum over the tokens of one latent needs."""

    order: Int[Tensor, " nnz"]
    """Positions into the flattened slots, grouped by latent."""
    rows: Int[Tensor, " nnz"]
    """The row of each slot, in that order."""
    offsets: Int[Tensor, " d_sae"]
    """Where each latent's group begins."""


@dataclass(frozen=True)
class Code:
    """The latents that are on for each of `len(code)` rows."""

    indices: Int[Tensor, "*slots"]
    """Latent of each slot."""
    values: Float[Tensor, "*slots"]
    """Value of each slot; 0 is silent."""
    d_sae: int
    """Number of latents."""
    pointers: Int[Tensor, " batch_plus_1"] | None = None
    """None for `[batch k]` slots, else the row pointers of `[nnz]` slots."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.indices.shape[0] if self.pointers is None else self.pointers.shape[0] - 1

    @property
    def rows(self) -> Int[Tensor, " nnz"]:
        """The row of each slot, flattened."""
        batch = torch.arange(len(self), device=self.indices.device)
        repeats = self.indices.shape[1] if self.pointers is None else self.pointers.diff()
        return batch.repeat_interleave(repeats)

    @property
    def offsets(self) -> Int[Tensor, " batch"]:
        """Where each row's slots begin in the flattened slots."""
        if self.pointers is not None:
            return self.pointers[:-1]
        k = self.indices.shape[1]
        return torch.arange(0, k * len(self), max(k, 1), device=self.indices.device)[: len(self)]

    @cached_property
    def by_latent(self) -> ByLatent:
        """The slots sorted by latent (computed once; forward statistics and both gradients share it)."""
        flat = self.indices.flatten()
        order = flat.argsort()
        counts = torch.bincount(flat, minlength=self.d_sae)
        rows = order // self.indices.shape[1] if self.pointers is None else self.rows[order]
        return ByLatent(order, rows, counts.cumsum(0) - counts)

    def with_values(self, values: Float[Tensor, "*slots"]) -> Code:
        """Return the same slots with other values."""
        other = Code(self.indices, values, self.d_sae, self.pointers)
        if "by_latent" in self.__dict__:
            other.__dict__["by_latent"] = self.by_latent
        return other

    def detach(self) -> Code:
        """Return the code cut off from the graph."""
        return self.with_values(self.values.detach())

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """Return the code as a dense matrix, 0 where a latent is silent."""
        out = self.values.new_zeros(len(self), self.d_sae)
        return out.index_put((self.rows, self.indices.flatten()), self.values.flatten())

    def l0(self) -> Int[Tensor, " batch"]:
        """Return the number of active latents in each row."""
        active = self.values != 0
        if self.pointers is None:
            return active.sum(-1)
        return torch.zeros(len(self), dtype=torch.long, device=active.device).index_add(0, self.rows, active.long())

    def counts(self) -> Int[Tensor, " d_sae"]:
        """Return in how many rows each latent is active."""
        return torch.bincount(self.indices[self.values != 0], minlength=self.d_sae)

    def fired(self) -> Bool[Tensor, " d_sae"]:
        """Return which latents are active in at least one row."""
        # Silent slots write into one place too many: cheaper than picking the active ones out.
        latents = torch.where(self.values != 0, self.indices, self.d_sae).flatten()
        return torch.zeros(self.d_sae + 1, dtype=torch.bool, device=latents.device).scatter_(0, latents, True)[:-1]

    def sparse(self) -> Code:
        """Return the code without silent slots, in CSR form, latents ascending within a row."""
        active = self.values.flatten() != 0
        rows, latents = self.rows[active], self.indices.flatten()[active]
        order = (rows * self.d_sae + latents).argsort()
        counts = torch.bincount(rows, minlength=len(self))
        pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Code(latents[order], self.values.flatten()[active][order], self.d_sae, pointers)

    @classmethod
    def concatenate(cls, codes: Sequence[Code]) -> Code:
        """Return the codes one below the other; all have the same form and d_sae."""
        first = codes[0]
        indices, values = (torch.cat([getattr(c, name) for c in codes]) for name in ("indices", "values"))
        if first.pointers is None:
            return cls(indices, values, first.d_sae)
        starts = [c.pointers.diff() for c in codes if c.pointers is not None]
        pointers = torch.cat([first.pointers[:1], torch.cat(starts).cumsum(0)])
        return cls(indices, values, first.d_sae, pointers)

    @classmethod
    def at(cls, dense: Float[Tensor, "batch d_sae"], places: Int[Tensor, " nnz"]) -> Code:
        """Return the CSR code of the entries of `dense` at `places`, ascending positions in the flattened matrix."""
        batch, d_sae = dense.shape
        starts = torch.arange(0, (batch + 1) * d_sae, d_sae, device=places.device)
        return cls(places % d_sae, dense.flatten()[places], d_sae, torch.searchsorted(places, starts))

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "batch d_sae"]) -> Code:
        """Return the CSR code of a dense matrix."""
        return cls.at(dense, dense.flatten().nonzero().squeeze(1))
