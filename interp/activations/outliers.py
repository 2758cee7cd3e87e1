"""Outliers: positions whose norm is many times the usual one, such as attention sinks.

    outlier   ||x_n|| > outlier_norm · median of ||x|| over finite rows

One rule for capture, training, evaluation and feature pages, so that what one of them leaves out the others do too.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def norms(rows: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
    """Return the norms in float64 on the CPU; NaN and infinity show in them.

    Squares that overflow float32 are summed again in float64.
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    found = torch.linalg.vector_norm(rows, dim=-1, dtype=wide).cpu().double()
    vast = ~torch.isfinite(found)
    if vast.any():
        found[vast] = torch.linalg.vector_norm(rows[vast.to(rows.device)].cpu().double(), dim=-1)
    return found


def typical_norm(norms: Float[Tensor, "*batch"]) -> float:
    """Return the median of the finite norms, 0 where there is none."""
    finite = norms[torch.isfinite(norms)]
    return float(finite.median()) if finite.numel() else 0.0


def near(norms: Float[Tensor, "*batch"], outlier_norm: float | None, typical: float) -> Bool[Tensor, "*batch"]:
    """Return which norms are at most `outlier_norm` times the `typical` one (None: all of them).

    A norm that is NaN is not called an outlier: whether rows are finite is a question of its own.
    """
    return torch.ones_like(norms, dtype=torch.bool) if outlier_norm is None else ~(norms > outlier_norm * typical)
