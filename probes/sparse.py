"""Sparse probes: how few neurons or latents tell a label?

    KSparse    rank the columns on the rows fitted on, keep k, fit a logistic regression on these
    L1         logistic regression with |w|_1: how many columns stay is decided by C

Gurnee et al. 2023, "Finding Neurons in a Haystack", arXiv 2305.01610. Rankings: `raw_difference` of the class means, as
published; `mean_difference`, the same divided by the column's standard deviation, so that the unit of a column is no
matter; `f` (analysis of variance); `mutual_information` (of the label and the column); `l1` (|w| of a regression with
C = 0.1). The columns are chosen among many: a k-sparse accuracy on the rows that chose is too good, and raw neurons are
the baseline of latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.feature_selection import f_classif, mutual_info_classif
from sklearn.linear_model import LogisticRegression

from interp.names import unknown
from probes.base import LinearProbe
from probes.folds import choose, folds
from probes.logistic import log_likelihood
from probes.rows import check_labels, check_rows, standardiser
from probes.source import Source

RANKINGS = ("mean_difference", "raw_difference", "f", "mutual_information", "l1")
RANKING_C = 0.1
"""C of the regression that ranks by `l1`."""
GRID = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Values of C that `L1` tries, on standardised columns."""


def ranking(
    x: Float[np.ndarray, "row column"], codes: Int[np.ndarray, " row"], how: str = "mean_difference", seed: int = 0
) -> Int[np.ndarray, " column"]:
    """Return the columns, strongest first; of equals the first comes first.

    With several classes a column counts by the class that it sets apart most. Constant columns come last.

    Raises:
        ValueError: an unknown ranking.
    """
    if how not in RANKINGS:
        raise ValueError(unknown("ranking", how, RANKINGS))
    mean, scale = standardiser(x)
    z = (x - mean) / scale
    classes = range(1, 2) if codes.max() == 1 else range(int(codes.max()) + 1)
    if how in ("mean_difference", "raw_difference"):
        rows = z if how == "mean_difference" else x
        each = [np.abs(rows[codes == c].mean(0) - rows[codes != c].mean(0)) for c in classes]
        strength = np.max(each, 0)
    elif how == "f":
        varied = z.std(0) > 0
        strength = np.zeros(x.shape[1])
        with np.errstate(divide="ignore"):  # a column that tells the classes exactly has F = infinity
            strength[varied] = f_classif(z[:, varied], codes)[0]
    elif how == "mutual_information":
        strength = mutual_info_classif(z, codes, random_state=seed)
    else:
        strength = np.abs(np.stack([_l1(z, codes == c, RANKING_C)[0] for c in classes])).max(0)
    return np.argsort(-strength, kind="stable")


def _l1(z: np.ndarray, y: np.ndarray, C: float) -> tuple[np.ndarray, float]:
    """Return (w, b). The bias is a column of 100s, so that the penalty on it is next to nothing."""
    model = LogisticRegression(C=C, l1_ratio=1.0, solver="liblinear", intercept_scaling=100, max_iter=1000)
    fitted = model.fit(z, y)
    return fitted.coef_[0], float(fitted.intercept_[0])


def _each(
    x: np.ndarray, codes: np.ndarray, outputs: Sequence[int], C: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (w, b, mean, scale): each of `outputs` against the rest, on standardised rows."""
    mean, scale = standardiser(x)
    solved = [_l1((x - mean) / scale, codes == c, C) for c in outputs]
    return np.stack([one[0] for one in solved]), np.array([one[1] for one in solved]), mean, scale


class KSparse(LinearProbe):
    """A logistic probe on the k strongest columns.

    Args:
        k: number of columns.
        how: a ranking, one of `RANKINGS`.
        C: inverse strength of the L2 penalty.
        balanced: weigh classes as if they were equally common.
        seed: of the ranking by mutual information.
        source: what the rows are.

    Attributes:
        chosen_: the columns, strongest first, [k].
        coef_, intercept_: [output, d_in] (0 at other columns) and [output], in raw units.
    """

    def __init__(
        self,
        k: int = 1,
        *,
        how: str = "mean_difference",
        C: float = 1.0,
        balanced: bool = True,
        seed: int = 0,
        source: Source | None = None,
    ) -> None:
        self.k = k
        self.how = how
        self.C = C
        self.balanced = balanced
        self.seed = seed
        self.source = source

    def _learn(
        self, x: Float[np.ndarray, "row d_in"], codes: Int[np.ndarray, " row"], _groups: Int[np.ndarray, " row"], /
    ) -> None:
        self._check_k(x.shape[1])
        self._refit(x, codes, ranking(x, codes, self.how, self.seed))

    def _check_k(self, width: int) -> None:
        if not 1 <= self.k <= width:
            raise ValueError(f"k must lie in 1..d_in={width}, got {self.k}.")

    def _refit(self, x: np.ndarray, codes: np.ndarray, order: np.ndarray) -> None:
        self.chosen_ = order[: self.k].astype(np.int64)
        mean, scale = standardiser(x)
        z = (x[:, self.chosen_] - mean[self.chosen_]) / scale[self.chosen_]
        weight: Any = "balanced" if self.balanced else None
        fitted = LogisticRegression(C=self.C, class_weight=weight, max_iter=1000).fit(z, codes)
        w = np.zeros((len(fitted.coef_), x.shape[1]))
        w[:, self.chosen_] = fitted.coef_
        self._set(w, fitted.intercept_, mean, scale)


def k_sparse_curve(X: Any, y: Any, ks: Sequence[int], probe: KSparse | None = None) -> list[KSparse]:
    """Return a fitted `KSparse` for each k; the columns are ranked once for all.

    Args:
        X: activations or codes [row, column].
        y: label of each row.
        ks: numbers of columns.
        probe: what the others are copies of, apart from k.

    Raises:
        ValueError: as of `KSparse.fit`.
    """
    x = check_rows(X, "X")
    classes, codes = check_labels(y, len(x))
    settings: dict[str, Any] = (probe or KSparse()).get_params(deep=False)
    order, found = ranking(x, codes, settings["how"], settings["seed"]), []
    for k in ks:
        settings["k"] = k
        one = KSparse(**settings)
        one._check_k(x.shape[1])
        one.classes_, one.n_features_in_ = classes, x.shape[1]
        one.link_ = "sigmoid" if len(classes) == 2 else "softmax"
        one._refit(x, codes, order)
        found.append(one)
    return found


class L1(LinearProbe):
    """A logistic probe with |w|_1; with more than two classes each is told from all others.

    Args:
        C: inverse strength of the penalty on standardised columns; None chooses it from `grid`.
        grid: values of C to choose from.
        folds: number of folds to choose by.
        seed: of the folds.
        source: what the rows are.

    Attributes:
        chosen_: the columns whose weight is not 0, strongest first.
        coef_, intercept_: [output, d_in] and [output], in raw units.
        C_: what was taken for C.
        cv_scores_: mean held-out log-likelihood (nats per row and output) of each value of `grid`.
    """

    def __init__(
        self,
        C: float | None = None,
        *,
        grid: Sequence[float] = GRID,
        folds: int = 5,
        seed: int = 0,
        source: Source | None = None,
    ) -> None:
        self.C = C
        self.grid = grid
        self.folds = folds
        self.seed = seed
        self.source = source

    def _learn(
        self, x: Float[np.ndarray, "row d_in"], codes: Int[np.ndarray, " row"], groups: Int[np.ndarray, " row"], /
    ) -> None:
        if self.C is not None and not self.C > 0:
            raise ValueError(f"C must be above 0, got {self.C}.")
        self.link_ = "sigmoid"
        outputs = [1] if codes.max() == 1 else list(range(int(codes.max()) + 1))

        def fit(train: np.ndarray, C: float) -> Callable[[np.ndarray], float]:
            w, b, mean, scale = _each(x[train], codes[train], outputs, C)

            def score(test: np.ndarray) -> float:
                s = (x[test] - mean) / scale @ w.T + b
                each = [log_likelihood(s[:, [i]], (codes[test] == c).astype(int)) for i, c in enumerate(outputs)]
                return float(np.mean(each))

            return score

        self.C_, self.cv_scores_ = self.C, np.zeros(0)
        if self.C_ is None:
            self.C_, self.cv_scores_ = choose(self.grid, fit, folds(codes, groups, self.folds, self.seed))
        w, b, mean, scale = _each(x, codes, outputs, self.C_)
        self._set(w, b, mean, scale)
        strength = np.abs(w).max(0)
        order = np.argsort(-strength, kind="stable")
        self.chosen_ = order[: int((strength > 0).sum())].astype(np.int64)
