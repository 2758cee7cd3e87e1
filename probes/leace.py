"""LEACE: the smallest change of activations after which no linear probe tells a concept.

    x' = x - W^+ U U^T W (x - mu),   W = Sigma_xx^{-1/2},  U the left singular vectors of W Sigma_xz

Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form", arXiv 2306.03819. Cov(x', z) is 0, so that
no affine predictor beats a constant on the rows that were fitted on, under any convex loss; of all affine maps with
this property it changes x least. An MLP may still tell the concept. All sums are float64, by Welford's update.

The published implementation drops singular values of W Sigma_xz below 0.01, in absolute terms: a rare concept has none
above and stays, without a word. Here the threshold is relative to the largest, and `residual_` says what is left.
Shrinking Sigma_xx changes which erasure is taken, never whether it is one. The published mix that keeps the trace down
is left out: in exact arithmetic the trace never rises, and the mix does not erase.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin

from interp.names import unknown
from probes.rows import array, check_finite, check_rows
from probes.source import Source

METHODS = ("leace", "orthogonal")
TOLERANCE = 1e-8
"""Largest covariance with the concept that may be left, relative to the deviations of both sides."""


class Leace(TransformerMixin, BaseEstimator):
    """Erases a concept from activations.

    Args:
        method: `leace`, or `orthogonal`: projects Sigma_xz out without whitening, which erases as well and changes
            more.
        affine: keep the mean; else x' = x - P x, which moves it.
        shrinkage: share of the multiple of the identity mixed into Sigma_xx, 0..1; for fewer rows than columns.
        tol: singular values of W Sigma_xz below this share of the largest are taken for rounding.
        source: what the rows are.

    Attributes:
        mean_: [d_in].
        left_, right_: [d_in, rank] and [rank, d_in]; P = left_ right_ is what is taken away.
        rank_: directions taken away, k - 1 for k classes.
        residual_: largest |Cov(x', z)| / (std x std z) that is left on the rows fitted on.
    """

    def __init__(
        self,
        method: str = "leace",
        *,
        affine: bool = True,
        shrinkage: float = 0.0,
        tol: float = 1e-8,
        source: Source | None = None,
    ) -> None:
        self.method = method
        self.affine = affine
        self.shrinkage = shrinkage
        self.tol = tol
        self.source = source

    def fit(self, X: Any, y: Any) -> Leace:
        """Fit and return the eraser.

        Args:
            X: activations [row, d_in].
            y: label of each row, or the concept as numbers [row, part] (floats, used as they are).

        Raises:
            ValueError: rows that are not finite, one class only, or an erasure that leaves something.
        """
        for name in ("n_", "classes_"):
            if hasattr(self, name):
                delattr(self, name)
        found = array(y, "y")
        if found.ndim == 1:
            self.classes_ = np.unique(found)
            if len(self.classes_) < 2:
                raise ValueError(f"A concept needs two classes or more, got only {self.classes_[0].item()!r}.")
        return self.partial_fit(X, found).solve()

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Leace:
        """Add rows to the moments and return the eraser; `solve` makes it usable.

        Args:
            X: activations [row, d_in].
            y: labels [row], or the concept as numbers [row, part].
            classes: all labels that will come; needed with labels at the first call.

        Raises:
            ValueError: rows of another width, or labels that were not announced.
        """
        if classes is not None:
            self.classes_ = np.unique(array(classes, "classes"))
        z = self._concept(array(y, "y"))
        first = not hasattr(self, "n_")
        x = check_rows(X, "X", None if first else self.n_features_in_)
        if len(z) != len(x):
            raise ValueError(f"y must hold one label for each of the {len(x)} rows, got {len(z)}.")
        if first:
            self.n_, self.n_features_in_ = 0, x.shape[1]
            self.mean_, self.concept_mean_ = np.zeros(x.shape[1]), np.zeros(z.shape[1])
            self._xx, self._xz = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], z.shape[1]))
            self._zz = np.zeros(z.shape[1])
        self.n_ += len(x)
        before, after = x - self.mean_, z - self.concept_mean_
        self.mean_ = self.mean_ + before.sum(0) / self.n_
        self.concept_mean_ = self.concept_mean_ + after.sum(0) / self.n_
        # Welford: one side by its mean before these rows, the other by its mean after them.
        rest = z - self.concept_mean_
        self._xx += before.T @ (x - self.mean_)
        self._xz += before.T @ rest
        self._zz += (after * rest).sum(0)
        return self

    def _concept(self, y: np.ndarray) -> Float[np.ndarray, "row part"]:
        if y.ndim == 2 and y.dtype.kind == "f":
            check_finite(y, "y")
            return y.astype(np.float64)
        if y.ndim != 1:
            raise ValueError(f"y must be labels [row] or numbers [row, part], got {y.dtype} {list(y.shape)}.")
        if not hasattr(self, "classes_"):
            raise ValueError("The first partial_fit with labels needs classes=[...], all that will come.")
        strange = sorted(set(y.tolist()) - set(self.classes_.tolist()))
        if strange:
            raise ValueError(f"The label {strange[0]!r} is none of the classes {self.classes_.tolist()}.")
        # A class id is no quantity: classes become columns of 0 and 1.
        return (y[:, None] == self.classes_).astype(np.float64)

    def solve(self) -> Leace:
        """Compute the erasure from the moments so far, and return the eraser.

        Raises:
            ValueError: no rows, options out of range, or an erasure that leaves something.
        """
        if self.method not in METHODS:
            raise ValueError(unknown("method", str(self.method), METHODS))
        if not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage must lie in 0..1, got {self.shrinkage}.")
        if not hasattr(self, "n_"):
            raise ValueError("No rows were added; call partial_fit(X, y, classes) first.")
        xx, xz = (self._xx + self._xx.T) / 2 / self.n_, self._xz / self.n_
        spread = np.sqrt(np.maximum(np.diag(xx), 0))[:, None] * np.sqrt(self._zz / self.n_)
        width = self.n_features_in_
        mixed = (1 - self.shrinkage) * xx + self.shrinkage * np.trace(xx) / width * np.eye(width)
        root, back = _roots(mixed) if self.method == "leace" else (np.eye(width), np.eye(width))
        # The columns of classes add up to 1; without the last the others span the same, and no rounding is left.
        columns = xz[:, :-1] if hasattr(self, "classes_") else xz
        left, sizes, _ = np.linalg.svd(root @ columns, full_matrices=False)
        basis = left[:, sizes > self.tol * sizes[0]] if sizes[0] > 0 else left[:, :0]
        self.left_, self.right_, self.rank_ = back @ basis, basis.T @ root, basis.shape[1]
        rest = np.abs(xz - self.left_ @ (self.right_ @ xz))
        self.residual_ = float((rest[spread > 0] / spread[spread > 0]).max(initial=0.0))
        if self.residual_ > TOLERANCE:
            raise ValueError(
                f"The erasure leaves a correlation of {self.residual_:.1e} with the concept. Lower tol "
                f"({self.tol:g}), or add shrinkage: Sigma_xx is singular."
            )
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "row d_in"]:
        """Return the rows without the concept.

        Raises:
            ValueError: not fitted, rows of another width, or that are not finite.
        """
        if not hasattr(self, "left_"):
            raise ValueError("This Leace is not fitted; call fit(X, y), or solve() after partial_fit.")
        x = check_rows(X, "X", self.n_features_in_)
        return x - (x - self.mean_ if self.affine else x) @ self.right_.T @ self.left_.T


def _roots(
    covariance: Float[np.ndarray, "d_in d_in"],
) -> tuple[Float[np.ndarray, "d_in d_in"], Float[np.ndarray, "d_in d_in"]]:
    """Return (S^{-1/2}, S^{1/2}) on the directions in which S is not 0."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values.max() * len(values) * np.finfo(float).eps
    roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
    return vectors / roots @ vectors.T, vectors * roots @ vectors.T
