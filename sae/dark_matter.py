"""Dark matter: what a dictionary leaves, and how much of that a linear map of the activation predicts.

    e = x - x_hat,   e ~ A x + a  (least squares)         linear error A x + a, nonlinear error the rest

Engels, Riggs and Tegmark 2024, arXiv 2410.14670: about half of the error and most of its squared norm are linear in x.
Shrinkage alone passes that test: x_hat = s x leaves (1 - s) x, which is linear, and nothing is missing. So x_hat is
first replaced by its own best affine map, and the FVU is split into three parts that add up to it:

    shrinkage    FVU - FVU(B x_hat + b)                    what rescaling and turning x_hat would repair
    linear       FVU(B x_hat + b) - nonlinear              what is left and linear in x
    nonlinear    FVU of what A' x + a' leaves of that

Maps are fitted on one part of the rows and everything is measured on the others. Affine, where the paper has no bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.synthetic.truth import stream

LEAST_ROWS = 4
"""Rows to fit on, at least, for each coordinate."""


@dataclass(frozen=True)
class DarkMatter:
    """The error of a dictionary, in shares of the variance of x unless it says otherwise."""

    fvu: float
    """All of it."""
    shrinkage: float
    """What the best affine map of x_hat repairs."""
    linear: float
    """What a linear map of x predicts of the rest."""
    nonlinear: float
    """What is left after both."""
    raw_linear_share: float
    """1 - FVU(x_hat + A x + a) / FVU: the paper's share, without the control; 1 for mere shrinkage."""
    error_r2: float
    """R^2 of the error from x, mean over the coordinates that err, without the control (the paper's number)."""
    norm_r2: float
    """R^2 of ||e||^2 from x, without the control."""
    norm_r2_controlled: float
    """R^2 of the squared norm of the error after the control."""
    rows: int
    """Rows that it was measured on."""


def dark_matter(
    x: Float[Tensor, "rows d_in"], x_hat: Float[Tensor, "rows d_in"], *, fit: float = 0.5, seed: int = 0
) -> DarkMatter:
    """Return how the error of a dictionary divides.

    Args:
        x: activations.
        x_hat: their reconstructions.
        fit: share of the rows, drawn at random, that the maps are fitted on; the others are measured.
        seed: of the draw.

    Raises:
        ValueError: there are too few rows to fit on, or `fit` is no share.
    """
    rows, first = len(x), _fitted(x, fit)
    order = torch.randperm(rows, generator=stream(seed, "dark matter"))
    x, x_hat = x.double().cpu()[order], x_hat.double().cpu()[order]
    test = slice(first, rows)
    error = x - x_hat
    refit = x - _predict(x_hat, x, first)
    total = (x[test] - x[test].mean(0)).square().sum()

    def share(rest: Tensor) -> float:
        return float(rest[test].square().sum() / total)

    left = error - _predict(x, error, first)
    nonlinear = share(refit - _predict(x, refit, first))
    norm, refit_norm = (e.square().sum(1, keepdim=True) for e in (error, refit))
    spread = (error[test] - error[test].mean(0)).square().sum(0)
    errs = spread > 1e-12 * total  # elsewhere there is nothing to predict
    return DarkMatter(
        fvu=share(error),
        shrinkage=share(error) - share(refit),
        linear=share(refit) - nonlinear,
        nonlinear=nonlinear,
        raw_linear_share=1 - share(left) / max(share(error), 1e-300),
        error_r2=float((1 - (left[test].square().sum(0) / spread)[errs]).mean()),
        norm_r2=_r2(norm[test], _predict(x, norm, first)[test]),
        norm_r2_controlled=_r2(refit_norm[test], _predict(x, refit_norm, first)[test]),
        rows=rows - first,
    )


def _fitted(x: Float[Tensor, "rows d_in"], fit: float) -> int:
    """Return the number of rows to fit on, or refuse too few."""
    rows, d_in = x.shape
    if not 0 < fit < 1:
        raise ValueError(f"fit is a share of the rows and must lie between 0 and 1, got {fit}.")
    first = round(fit * rows)
    if first < LEAST_ROWS * d_in or rows - first < 2:
        raise ValueError(
            f"Maps of width {d_in} are fitted on at least {LEAST_ROWS * d_in} rows, got {first} of {rows}; give more."
        )
    return first


def _predict(
    inputs: Float[Tensor, "rows d_in"], wanted: Float[Tensor, "rows outputs"], first: int
) -> Float[Tensor, "rows outputs"]:
    """Return what the affine map that is best on the `first` rows says of all rows."""
    design = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
    design = design / design[:first].square().mean(0).sqrt().clamp_min(1e-30)
    return design @ torch.linalg.lstsq(design[:first], wanted[:first], rcond=1e-9, driver="gelsd").solution


def _r2(wanted: Float[Tensor, "rows 1"], found: Float[Tensor, "rows 1"]) -> float:
    """Return 1 - squared error / squared deviation; NaN where nothing varies."""
    total = (wanted - wanted.mean()).square().sum()
    return float(1 - (wanted - found).square().sum() / total) if total > 0 else float("nan")
