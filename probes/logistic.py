"""The logistic probe: regression on standardised rows, its penalty chosen by folds that keep groups whole.

    minimise  sum_i -log p(y_i | x_i) + |w|^2 / (2 C),     p = softmax(w z + b) (sigmoid for two classes)
    z = (x - mean) / std, both of the rows that are fitted on

Without standardisation C means something else at every layer, because the norm of the residual stream grows; part of
a curve over layers is then the penalty and not the model (the released Concept Depth code fits raw rows with C = 1 and
100 iterations, which do not converge). scikit-learn's L-BFGS does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_expit, log_softmax
from sklearn.linear_model import LogisticRegression

from probes.base import LinearProbe
from probes.folds import choose, folds
from probes.rows import standardiser
from probes.source import Source

GRID = tuple(10.0**power for power in range(-5, 3))
"""Values of C that are tried."""


def log_likelihood(scores: Float[np.ndarray, "row output"], codes: Int[np.ndarray, " row"]) -> float:
    """Return the mean log-probability of each row's class, in nats; one column of scores is a sigmoid's."""
    if scores.shape[1] == 1:
        return float(log_expit(np.where(codes == 1, scores[:, 0], -scores[:, 0])).mean())
    return float(log_softmax(scores, 1)[np.arange(len(codes)), codes].mean())


class LogisticProbe(LinearProbe):
    """A linear probe by logistic regression.

    Args:
        C: inverse strength of the penalty on standardised columns; None chooses it from `grid`.
        grid: values of C to choose from.
        folds: number of folds to choose by.
        balanced: weigh classes as if they were equally common.
        max_iter: most iterations of the solver.
        seed: of the folds.
        source: what the rows are.

    Attributes:
        coef_, intercept_: [output, d_in] and [output], in raw units.
        mean_, scale_: the standardisation, of the rows fitted on.
        C_: what was taken for C.
        cv_scores_: mean held-out log-likelihood (nats per row) of each value of `grid`, empty for a given C.
    """

    def __init__(
        self,
        C: float | None = None,
        *,
        grid: Sequence[float] = GRID,
        folds: int = 5,
        balanced: bool = False,
        max_iter: int = 1000,
        seed: int = 0,
        source: Source | None = None,
    ) -> None:
        self.C = C
        self.grid = grid
        self.folds = folds
        self.balanced = balanced
        self.max_iter = max_iter
        self.seed = seed
        self.source = source

    def _model(self, C: float) -> Any:
        weight: Literal["balanced"] | None = "balanced" if self.balanced else None
        return LogisticRegression(C=C, max_iter=self.max_iter, class_weight=weight)

    def _learn(
        self, x: Float[np.ndarray, "row d_in"], codes: Int[np.ndarray, " row"], groups: Int[np.ndarray, " row"], /
    ) -> None:
        if self.C is not None and not self.C > 0:
            raise ValueError(f"C must be above 0, got {self.C}.")
        self.C_, self.cv_scores_ = self.C, np.zeros(0)
        if self.C_ is None:
            parts = folds(codes, groups, self.folds, self.seed)
            self.C_, self.cv_scores_ = choose(self.grid, self._fold(x, codes), parts)
        mean, scale = standardiser(x)
        fitted = self._model(self.C_).fit((x - mean) / scale, codes)
        self._set(fitted.coef_, fitted.intercept_, mean, scale)

    def _fold(
        self, x: Float[np.ndarray, "row d_in"], codes: Int[np.ndarray, " row"]
    ) -> Callable[[Int[np.ndarray, " train"], float], Callable[[Int[np.ndarray, " test"]], float]]:
        """Return what fits on some rows, standardised by these alone, and scores others."""

        def fit(train: np.ndarray, C: float) -> Callable[[np.ndarray], float]:
            mean, scale = standardiser(x[train])
            model = self._model(C).fit((x[train] - mean) / scale, codes[train])

            def score(test: np.ndarray) -> float:
                return log_likelihood((x[test] - mean) / scale @ model.coef_.T + model.intercept_, codes[test])

            return score

        return fit
