"""The best linear map from one representation to another, in closed form from streamed moments.

    W = (C_xx + lambda I)^-1 C_xy,   lambda = penalty · tr(C_xx) / d_x,   y_hat = mean_y + W^T (x - mean_x)
    error = sum |y - y_hat|^2 / sum |y - mean_y|^2

It is where the map of Csordas, Manning and Potts (2025), trained there by gradient descent, ends up. The error is the
FVU of the map and follows from moments too, on the rows of the fit or on others. On the rows of the fit it falls to 0
once there are as many dimensions as rows, whatever y is: read the error on other rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.activations.outliers import norms
from interp.layers.moments import Moments

PENALTY = 1e-6
"""Ridge penalty, as a multiple of the mean variance of a dimension of x."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """An affine map from x to y."""

    weight: Float[Tensor, "d_x d_y"]
    """W."""
    mean_x: Float[Tensor, " d_x"]
    """Mean of x over the rows of the fit."""
    mean_y: Float[Tensor, " d_y"]
    """Mean of y over the rows of the fit."""

    def __call__(self, x: Float[Tensor, "*batch d_x"]) -> Float[Tensor, "*batch d_y"]:
        """Return the prediction of y, in float64."""
        return self.mean_y + (x.double() - self.mean_x) @ self.weight

    def error(self, xy: Moments, xx: Moments, yy: Moments) -> float:
        """Return the FVU on the rows of these moments: 0 is exact, 1 is their mean, above 1 worse than that.

        NaN where y does not vary.
        """
        weight, cross = self.weight, xy.covariance
        off = xy.means[1] - self.mean_y - (xy.means[0] - self.mean_x) @ weight
        rest = yy.covariance.trace() - 2 * (weight * cross).sum() + (weight * (xx.covariance @ weight)).sum()
        total = float(yy.covariance.trace())
        return max(0.0, float(rest + off.square().sum())) / total if total > 0 else math.nan


def fit_map(xy: Moments, xx: Moments, penalty: float = PENALTY) -> LinearMap:
    """Return the ridge map from x to y.

    Raises:
        ValueError: the penalty is not above 0, or x does not vary.
    """
    if not penalty > 0:
        raise ValueError(f"penalty must be above 0: x may have dimensions that never vary, got {penalty}.")
    covariance = xx.covariance
    scale = float(covariance.trace()) / len(covariance)
    if not scale > 0:
        raise ValueError(f"A map needs an x that varies, got one value in all {xx.rows} rows.")
    ridge = penalty * scale * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    weight = torch.linalg.solve(covariance + ridge, xy.covariance)
    return LinearMap(weight, *xy.means)


def relative_errors(predicted: Float[Tensor, "rows d"], y: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
    """Return |y_hat - y| / |y| of each row, the published figure; NaN where y is 0.

    Its denominator holds the mean of y, so that it is small where all rows share a large mean.
    """
    y = y.double()
    sizes = norms(y)
    return torch.where(sizes > 0, norms(predicted.double() - y) / sizes, torch.nan)
