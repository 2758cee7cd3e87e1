"""What a probe is fitted on, checked: rows of activations, a label for each, and what they belong to.

Arrays, tensors and lists are taken. Classical estimators compute in float64: activations have columns whose sizes
differ by orders of magnitude.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from interp.names import shorten


def array(values: Any, name: str) -> NDArray:
    """Return `values` as an array; `name` is what messages call them.

    Raises:
        ValueError: rows of different lengths.
    """
    if hasattr(values, "detach"):  # a torch tensor
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return values.numpy()
    try:
        found = np.asarray(values)
    except ValueError as error:
        lengths = [np.size(row) for row in values]
        odd = next((i for i, length in enumerate(lengths) if length != lengths[0]), 0)
        raise ValueError(
            f"All rows of {name} must be equally long: row 0 has {lengths[0]} numbers, row {odd} has {lengths[odd]}. "
            "Take one position of each text, or their mean."
        ) from error
    return found


def check_rows(x: Any, name: str = "x", width: int | None = None) -> Float[np.ndarray, "row d_in"]:
    """Return `x` as float64 rows.

    Args:
        x: activations [row, d_in].
        name: what messages call them.
        width: what d_in has to be.

    Raises:
        ValueError: another shape or width, no rows, or a row with NaN or infinity (the message names it).
    """
    found = array(x, name)
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(f"{name} must be rows of activations [row, d_in], got shape {list(found.shape)}.")
    if found.dtype == object or not np.can_cast(found.dtype, np.float64, "same_kind"):
        raise ValueError(f"{name} must hold numbers, got {found.dtype}.")
    if width is not None and found.shape[1] != width:
        raise ValueError(
            f"The probe reads rows of d_in={width} numbers, {name} has {found.shape[1]}: it was fitted at another "
            "site or model. Fit one here, or give it the activations it was made for."
        )
    found = found.astype(np.float64, copy=False)
    check_finite(found, name)
    return found


def check_finite(x: NDArray, name: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueError: with the first such row and how many there are.
    """
    wrong = ~np.isfinite(x).reshape(len(x), -1).all(1)
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(
            f"Row {first} of {name} holds NaN or infinity ({int(wrong.sum())} of {len(x)} rows do). Leave these rows "
            "out (interp.metrics.finite_rows finds them), and look why the model makes them."
        )


def check_labels(y: Any, n: int) -> tuple[NDArray, Int[np.ndarray, " row"]]:
    """Return (classes, sorted; number of each row's class).

    Raises:
        ValueError: not one label for each of `n` rows, a label that is NaN, or a single class.
    """
    found = array(y, "y")
    if found.ndim != 1 or len(found) != n:
        raise ValueError(f"y must hold one label for each of the {n} rows, got shape {list(found.shape)}.")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise ValueError(f"Row {int((~np.isfinite(found)).argmax())} of y has no label (NaN); leave the row out.")
    classes, codes = np.unique(found, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"A probe needs rows of two classes or more, got only {shorten(classes[0].item())} in {n} rows."
        )
    return classes, codes


def check_groups(groups: Any, n: int) -> Int[np.ndarray, " row"]:
    """Return the number of each row's group; None makes each row a group of its own.

    Raises:
        ValueError: not one for each of `n` rows.
    """
    if groups is None:
        return np.arange(n)
    found = array(groups, "groups")
    if found.ndim != 1 or len(found) != n:
        raise ValueError(f"groups must name one group for each of the {n} rows, got shape {list(found.shape)}.")
    return np.unique(found, return_inverse=True)[1]


def standardiser(x: Float[np.ndarray, "row d_in"]) -> tuple[Float[np.ndarray, " d_in"], Float[np.ndarray, " d_in"]]:
    """Return (mean, standard deviation) of each column; 1 in the place of the deviation of a constant column."""
    mean, spread = x.mean(0), x.std(0)
    # A constant column has a deviation of rounding; dividing by it would make a feature out of rounding errors.
    varied = spread > 1e-12 * np.maximum(1.0, np.abs(mean))
    return np.where(varied, mean, x[0]), np.where(varied, spread, 1.0)
