"""The ridge probe: least squares on +1 and -1, in closed form.

    minimise  sum_i |y_i - (w z_i + b)|^2 + alpha |w|^2,     y = +1 in the column of the row's class, else -1

On standardised rows, with alpha n chosen by folds that keep groups whole. Its accuracy lies close to that of logistic
regression at a fraction of the time; its scores are no log-odds, so that it gives no probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import RidgeClassifier

from probes.base import LinearProbe
from probes.folds import choose, folds
from probes.rows import standardiser
from probes.source import Source

GRID = tuple(10.0**power for power in range(-5, 3))
"""Penalties that are tried, for each row."""


class RidgeProbe(LinearProbe):
    """A linear probe by ridge regression on signs.

    Args:
        alpha: penalty for each row on standardised columns; None chooses it from `grid`.
        grid: penalties to choose from.
        folds: number of folds to choose by.
        seed: of the folds.
        source: what the rows are.

    Attributes:
        coef_, intercept_: [output, d_in] and [output], in raw units.
        alpha_: what was taken for alpha.
        cv_scores_: minus the mean squared error left out, for each value of `grid`.
    """

    def __init__(
        self,
        alpha: float | None = None,
        *,
        grid: Sequence[float] = GRID,
        folds: int = 5,
        seed: int = 0,
        source: Source | None = None,
    ) -> None:
        self.alpha = alpha
        self.grid = grid
        self.folds = folds
        self.seed = seed
        self.source = source

    def _learn(
        self, x: Float[np.ndarray, "row d_in"], codes: Int[np.ndarray, " row"], groups: Int[np.ndarray, " row"], /
    ) -> None:
        if self.alpha is not None and not self.alpha >= 0:
            raise ValueError(f"alpha must be 0 or more, got {self.alpha}.")
        self.link_ = "identity"
        self.alpha_, self.cv_scores_ = self.alpha, np.zeros(0)
        if self.alpha_ is None:
            parts = folds(codes, groups, self.folds, self.seed)
            self.alpha_, self.cv_scores_ = choose(self.grid, _fold(x, codes), parts)
        self._set(*_solve(x, codes, self.alpha_))


def _solve(x: np.ndarray, codes: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (w, b, mean, scale) for standardised rows."""
    mean, scale = standardiser(x)
    fitted = RidgeClassifier(alpha=alpha * len(x)).fit((x - mean) / scale, codes)
    return np.atleast_2d(fitted.coef_), np.atleast_1d(fitted.intercept_), mean, scale


def _fold(x: np.ndarray, codes: np.ndarray) -> Callable[[np.ndarray, float], Callable[[np.ndarray], float]]:
    classes = int(codes.max()) + 1
    signs = np.where(codes[:, None] == (np.array([1]) if classes == 2 else np.arange(classes)), 1.0, -1.0)

    def fit(train: np.ndarray, alpha: float) -> Callable[[np.ndarray], float]:
        w, b, mean, scale = _solve(x[train], codes[train], alpha)

        def score(test: np.ndarray) -> float:
            return -float(np.square((x[test] - mean) / scale @ w.T + b - signs[test]).mean())

        return score

    return fit
