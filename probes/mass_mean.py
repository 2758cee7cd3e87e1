"""Mass-mean probes: the difference between the means of two classes, plain or whitened.

    plain       w = mu1 - mu0
    whitened    w = Sigma^+ (mu1 - mu0),   Sigma the pooled covariance within the classes, divided by n
    b = -<w, (mu0 + mu1) / 2>  (+ log n1 / n0 when whitened)

Marks and Tegmark 2023, "The Geometry of Truth", arXiv 2310.06824. The whitened w is the direction of linear
discriminant analysis, and its scores are log-odds where the classes are Gaussian with one covariance. The plain one
says nothing about probabilities; it is the direction to steer along. Both use the rows that are fitted on only: the
released code centres each data set by its own mean, the test set's included.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import pinvh

from probes.base import LinearProbe
from probes.rows import standardiser
from probes.source import Source


class MassMean(LinearProbe):
    """A linear probe along the difference in means, for two classes.

    Args:
        whiten: take Sigma^+ (mu1 - mu0), the direction of linear discriminant analysis.
        rtol: directions of standardised rows whose variance is below this share of the largest are left out.
        source: what the rows are.

    Attributes:
        coef_, intercept_: [1, d_in] and [1]; the threshold lies in the middle between the means.
        means_: [2, d_in], of each class.
    """

    two_classes = True

    def __init__(self, whiten: bool = False, *, rtol: float = 1e-10, source: Source | None = None) -> None:
        self.whiten = whiten
        self.rtol = rtol
        self.source = source

    def _learn(
        self, x: Float[np.ndarray, "row d_in"], codes: Int[np.ndarray, " row"], _groups: Int[np.ndarray, " row"], /
    ) -> None:
        self.means_ = np.stack([x[codes == code].mean(0) for code in (0, 1)])
        w, prior = self.means_[1] - self.means_[0], 0.0
        if self.whiten:
            scale = standardiser(x)[1]  # so that `rtol` does not depend on the unit of a column
            rest = (x - self.means_[codes]) / scale
            w = np.asarray(pinvh(rest.T @ rest / len(x), rtol=self.rtol)) @ (w / scale) / scale
            prior = float(np.log((codes == 1).sum() / (codes == 0).sum()))
        self.link_ = "sigmoid" if self.whiten else "identity"
        self.coef_ = w[None]
        self.intercept_ = np.array([prior - w @ self.means_.mean(0)])
