"""What all probes share: the contract of scikit-learn, a source that they are held to, and links to probabilities.

    sigmoid    p(second class) = 1 / (1 + exp(-s)); with several classes one s for each against the rest
    softmax    p = softmax(s)
    identity   s orders the classes and is no log-odds (ridge): there is no probability

Constructors store, `fit` checks and returns the probe, what is learned ends in `_`. Linear probes keep `coef_` and
`intercept_` in raw units, with the standardisation folded in, so that a direction can be compared and edited.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted

from probes.rows import check_groups, check_labels, check_rows
from probes.source import Source

LINKS = ("sigmoid", "softmax", "identity")
P = TypeVar("P", bound="BaseProbe")  # typing.Self is no annotation that the run-time check of the tests reads


class BaseProbe(ClassifierMixin, BaseEstimator):
    """A probe of rows with one label each; what a kind of probe does is in `_learn` and `_scores`."""

    two_classes = False
    """Whether it can tell only two classes apart."""

    source: Source | None
    classes_: NDArray
    n_features_in_: int
    link_: str

    def fit(self: P, X: Any, y: Any, groups: Any = None) -> P:
        """Fit and return the probe.

        Args:
            X: activations [row, d_in].
            y: a label for each row: text, whole numbers or truth values.
            groups: what each row belongs to; the folds that choose a penalty keep groups whole.

        Raises:
            ValueError: rows that are not finite or not equally long, one class only, more classes than it can tell,
                or too few rows for the folds.
        """
        x = check_rows(X, "X")
        classes, codes = check_labels(y, len(x))
        if self.two_classes and len(classes) > 2:
            raise ValueError(
                f"{type(self).__name__} tells two classes apart, got {len(classes)}. Make y say whether a row is of "
                "one class, or take LogisticProbe or LDA."
            )
        self.classes_, self.n_features_in_ = classes, x.shape[1]
        self.link_ = "sigmoid" if len(classes) == 2 else "softmax"
        self._learn(x, codes, check_groups(groups, len(x)))
        return self

    def _learn(
        self, x: Float[np.ndarray, "row d_in"], codes: Int[np.ndarray, " row"], groups: Int[np.ndarray, " row"], /
    ) -> None:
        raise NotImplementedError

    def _scores(self, x: Float[np.ndarray, "row d_in"]) -> Float[np.ndarray, "row output"]:
        raise NotImplementedError

    def fresh(self: P) -> P:
        """Return an unfitted probe with the same arguments."""
        return cast("P", clone(self))

    def check_source(self: P, source: Source, *, same_weights: bool = True) -> P:
        """Return the probe, if activations of `source` are what it was fitted on.

        Raises:
            ValueError: they are not, or the probe does not know what it was fitted on.
        """
        if self.source is None:
            raise ValueError(
                f"This {type(self).__name__} does not know what it was fitted on; make it with "
                "source=Source.of(handle, site)."
            )
        self.source.check(source, same_weights=same_weights)
        return self

    def decision_function(self, X: Any) -> Float[np.ndarray, " row"] | Float[np.ndarray, "row output"]:
        """Return the scores s: [row], above 0 for the second class, or [row, class] with more than two.

        Raises:
            ValueError: rows of another width, or that are not finite.
        """
        check_is_fitted(self)
        scores = self._scores(check_rows(X, "X", self.n_features_in_))
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> NDArray:
        """Return the likeliest class of each row, [row]."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "row class"]:
        """Return the probability of each class.

        Raises:
            ValueError: the probe's scores are no log-odds.
        """
        return self.probabilities(self.decision_function(X))

    def probabilities(
        self, scores: Float[np.ndarray, " row"] | Float[np.ndarray, "row output"]
    ) -> Float[np.ndarray, "row class"]:
        """Return the probability of each class from scores that `decision_function` gave.

        Raises:
            ValueError: the probe's scores are no log-odds.
        """
        if self.link_ == "identity":
            raise ValueError(
                f"The scores of {type(self).__name__} are no log-odds; use decision_function, or take LogisticProbe."
            )
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], 1)
        if self.link_ == "softmax":
            return softmax(scores, axis=1)
        each = expit(scores)
        return each / np.maximum(each.sum(1, keepdims=True), np.finfo(float).tiny)


class LinearProbe(BaseProbe):
    """A probe whose scores are x coef_^T + intercept_, in raw units."""

    coef_: Float[np.ndarray, "output d_in"]
    intercept_: Float[np.ndarray, " output"]

    def _set(
        self,
        w: Float[np.ndarray, "output d_in"],
        b: Float[np.ndarray, " output"],
        mean: Float[np.ndarray, " d_in"],
        scale: Float[np.ndarray, " d_in"],
    ) -> None:
        """Keep a solution for standardised rows (x - mean) / scale, in raw units."""
        self.mean_, self.scale_ = mean, scale
        self.coef_ = w / scale
        self.intercept_ = b - self.coef_ @ mean

    def _scores(self, x: Float[np.ndarray, "row d_in"]) -> Float[np.ndarray, "row output"]:
        return x @ self.coef_.T + self.intercept_
