"""Matrices given as a product of two thin ones, A = L^T R: their singular values and inner products without A.

With L [t out] and R [t in], and the QR decompositions L^T = Q1 T1, R^T = Q2 T2,

    A = Q1 (T1 T2^T) Q2^T,   svd(A) = Q1 svd(T1 T2^T) Q2^T,   <A, B> = sum over t, s of (L_A L_B^T)_ts (R_A R_B^T)_ts

so that t columns decide the cost, not the size of A. A gradient of a weight is of this form (t tokens), and so is a
head's OV or QK matrix (t = d_head).
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from interp.layers.geometry import effective_rank


class Factored:
    """A matrix A = left^T right, in float64."""

    def __init__(self, left: Float[Tensor, "t out"], right: Float[Tensor, "rows in"]) -> None:
        """Hold the two factors.

        Raises:
            ValueError: they do not have equally many rows.
        """
        if left.shape[0] != right.shape[0]:
            raise ValueError(f"Both factors need the same number of rows, got {left.shape[0]} and {right.shape[0]}.")
        self.left, self.right = left.detach().double(), right.detach().double()

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of A."""
        return self.left.shape[1], self.right.shape[1]

    @property
    def thin(self) -> bool:
        """Whether the factors have fewer rows than A has rows and columns; otherwise A itself is no larger."""
        return self.left.shape[0] < min(self.shape)

    @cached_property
    def dense(self) -> Float[Tensor, "out in"]:
        """A itself."""
        return self.left.T @ self.right

    @cached_property
    def _core(self) -> Float[Tensor, "a b"]:
        if not self.thin:
            return self.dense
        return torch.linalg.qr(self.left.T, mode="r").R @ torch.linalg.qr(self.right.T, mode="r").R.T

    @cached_property
    def values(self) -> Float[Tensor, " n"]:
        """The singular values that can be above 0, descending; those that rounding alone explains are 0."""
        found = torch.linalg.svdvals(self._core)
        least = found[0] * max(self.shape) * torch.finfo(found.dtype).eps
        return torch.where(found > least, found, 0.0)

    def svd(self) -> tuple[Float[Tensor, "out n"], Float[Tensor, " n"], Float[Tensor, "n in"]]:
        """Return U, s, V^T with A = U diag(s) V^T."""
        if not self.thin:
            return torch.linalg.svd(self.dense, full_matrices=False)
        q1, t1 = torch.linalg.qr(self.left.T)
        q2, t2 = torch.linalg.qr(self.right.T)
        u, s, vh = torch.linalg.svd(t1 @ t2.T)
        return q1 @ u, s, vh @ q2.T

    def inner(self, other: Factored) -> float:
        """Return <A, B>, the sum of products of entries.

        Raises:
            ValueError: B has another shape.
        """
        if self.shape != other.shape:
            raise ValueError(f"Inner products need matrices of one shape, got {self.shape} and {other.shape}.")
        if not (self.thin and other.thin):
            return float((self.dense * other.dense).sum())
        return float(((self.left @ other.left.T) * (self.right @ other.right.T)).sum())

    def cosine(self, other: Factored) -> float:
        """Return <A, B> / (||A|| ||B||); NaN where one of them is 0."""
        sizes = self.frobenius * other.frobenius
        return self.inner(other) / sizes if sizes > 0 else math.nan

    @property
    def nuclear(self) -> float:
        """Sum of the singular values."""
        return float(self.values.sum())

    @cached_property
    def frobenius(self) -> float:
        """Root of the sum of their squares."""
        return float(self.values.norm())

    @property
    def spectral(self) -> float:
        """The largest."""
        return float(self.values[0])

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of the singular values divided by their sum; NaN for 0."""
        return effective_rank(self.values)
