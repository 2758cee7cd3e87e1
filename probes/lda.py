"""Linear discriminant analysis: Gaussian classes that share one covariance, for any number of classes.

    s_c(x) = <Sigma^-1 mu_c, x> - <mu_c, Sigma^-1 mu_c> / 2 + log pi_c

Fisher 1936; scikit-learn does the work. With fewer rows than columns Sigma is singular and its inverse is noise:
`shrinkage` (Ledoit and Wolf 2004 by default) pulls it towards a multiple of the identity.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from probes.base import LinearProbe
from probes.rows import standardiser
from probes.source import Source


class LDA(LinearProbe):
    """A linear probe by discriminant analysis of standardised rows.

    Args:
        shrinkage: `auto` (Ledoit-Wolf), a share from 0 to 1, or None for the covariance as it is.
        source: what the rows are.

    Attributes:
        coef_, intercept_: [output, d_in] and [output], in raw units; log-odds for two classes.
    """

    def __init__(self, shrinkage: Literal["auto"] | float | None = "auto", *, source: Source | None = None) -> None:
        self.shrinkage = shrinkage
        self.source = source

    def _learn(
        self, x: Float[np.ndarray, "row d_in"], codes: Int[np.ndarray, " row"], _groups: Int[np.ndarray, " row"], /
    ) -> None:
        if len(x) <= codes.max() + 1:
            raise ValueError(f"LDA needs more rows than classes, got {len(x)} rows of {codes.max() + 1} classes.")
        mean, scale = standardiser(x)
        fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=self.shrinkage).fit((x - mean) / scale, codes)
        self._set(fitted.coef_, fitted.intercept_, mean, scale)
