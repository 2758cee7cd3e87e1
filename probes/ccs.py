"""Contrast-consistent search: a direction on which a statement and its negation disagree, found without labels.

    p = sigmoid(w z + b);   loss = mean( (p+ - (1 - p-))^2 + min(p+, p-)^2 )

Burns et al. 2022, "Discovering Latent Knowledge", arXiv 2212.03827. x+ and x- are standardised apart, else the word
"true" or "false" at their end is what is found. The sign is not determined: labels, where given, choose it and nothing
else. Of several starts the one with the smallest loss is taken; all are trained at once. A small loss is no proof: any
feature that contrast pairs disagree on gives one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator

from probes.rows import array, check_finite, check_labels, standardiser
from probes.source import Source


class CCS(BaseEstimator):
    """A probe of contrast pairs.

    Args:
        starts: random starts.
        steps: steps of AdamW on all pairs.
        lr: its rate.
        weight_decay: its decay.
        seed: of the starts.
        source: what the rows are.

    Attributes:
        coef_, intercept_: [d_in] and a number, for standardised rows.
        mean_, scale_: the standardisation of x+ and of x-, [2, d_in].
        losses_: final loss of each start.
        classes_: (false, true) labels, where y was given; else 0 and 1, and which is which is unknown.
    """

    def __init__(
        self,
        *,
        starts: int = 10,
        steps: int = 1000,
        lr: float = 1e-2,
        weight_decay: float = 1e-2,
        seed: int = 0,
        source: Source | None = None,
    ) -> None:
        self.starts = starts
        self.steps = steps
        self.lr = lr
        self.weight_decay = weight_decay
        self.seed = seed
        self.source = source

    def fit(self, X: Any, y: Any = None) -> CCS:
        """Fit and return the probe.

        Args:
            X: [pair, 2, d_in], the statement said to be true and said to be false.
            y: which pairs are of true statements; chooses the sign only.

        Raises:
            ValueError: another shape, NaN, or labels that are not of two classes.
        """
        x = self._check(X)
        self.n_features_in_ = x.shape[2]
        self.mean_, self.scale_ = map(np.stack, zip(*(standardiser(x[:, side]) for side in (0, 1)), strict=True))
        z = torch.from_numpy((x - self.mean_) / self.scale_)
        generator = torch.Generator().manual_seed(self.seed)
        w = torch.randn(self.starts, x.shape[2], generator=generator, dtype=torch.float64) / x.shape[2] ** 0.5
        b = torch.zeros(self.starts, dtype=torch.float64)
        parameters = [w.requires_grad_(), b.requires_grad_()]
        optimiser = torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)
        for _ in range(self.steps):
            optimiser.zero_grad()
            ccs_loss(z, w, b).sum().backward()
            optimiser.step()
        with torch.no_grad():
            self.losses_ = ccs_loss(z, w, b).numpy()
        best = int(self.losses_.argmin())
        self.coef_, self.intercept_ = w.detach()[best].numpy(), float(b.detach()[best])
        self.classes_ = np.array([0, 1])
        if y is not None:
            classes, codes = check_labels(y, len(x))
            if len(classes) > 2:
                raise ValueError(f"CCS tells true from false, got {len(classes)} classes.")
            self.classes_ = classes
            if ((self.predict_proba(X)[:, 1] > 0.5) == codes).mean() < 0.5:
                self.coef_, self.intercept_ = -self.coef_, -self.intercept_
        return self

    def _check(self, X: Any) -> Float[np.ndarray, "pair 2 d_in"]:
        x = array(X, "X")
        if x.ndim != 3 or x.shape[1] != 2 or 0 in x.shape:
            raise ValueError(f"X must be contrast pairs [pair, 2, d_in], got shape {list(x.shape)}.")
        check_finite(x, "X")
        return x.astype(np.float64)

    def predict_proba(self, X: Any) -> Float[np.ndarray, "pair 2"]:
        """Return the probability that each pair's statement is false, and true: (p+ + 1 - p-) / 2 is the second."""
        if not hasattr(self, "coef_"):
            raise ValueError("This CCS is not fitted; call fit(X) first.")
        x = self._check(X)
        if x.shape[2] != self.n_features_in_:
            raise ValueError(f"The probe reads rows of d_in={self.n_features_in_} numbers, X has {x.shape[2]}.")
        p = expit((x - self.mean_) / self.scale_ @ self.coef_ + self.intercept_)
        true = (p[:, 0] + 1 - p[:, 1]) / 2
        return np.stack([1 - true, true], 1)

    def predict(self, X: Any) -> NDArray:
        """Return the likelier class of each pair."""
        likelier = self.predict_proba(X).argmax(1)
        return self.classes_[likelier]


def ccs_loss(
    z: Float[torch.Tensor, "pair 2 d_in"], w: Float[torch.Tensor, "start d_in"], b: Float[torch.Tensor, " start"]
) -> Float[torch.Tensor, " start"]:
    """Return the loss of each start."""
    p = torch.sigmoid(z @ w.T + b)
    consistent = (p[:, 0] - (1 - p[:, 1])).square()
    return (consistent + p.amin(1).square()).mean(0)
