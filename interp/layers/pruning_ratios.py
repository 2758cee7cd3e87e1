"""Pruning ratios from spectra (AlphaPruning, Lu et al. 2024): blocks with a lighter tail are pruned more.

    r_b = c · (1 - spread + 2 spread (a_b - min a) / (max a - min a))

with a_b the mean alpha of the matrices of block b, and c such that the mean of r, weighted by size, is the target.
A ratio above `most` is set to it and the others are raised so that the mean stays the target; the published code lets
the mean fall there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

MOST = 0.998
"""Largest share of a block that is pruned."""


def block_alphas(
    rows: Iterable[Mapping[str, float | str]], column: str = "alpha"
) -> tuple[Float[Tensor, " block"], Float[Tensor, " block"]]:
    """Return (mean alpha, number of weights) of each block, from the rows of `interp.layers.spectra.spectra_rows`.

    Args:
        rows: rows with `layer`, `numbers` and `column`.
        column: `alpha`, or `alpha_windows`, which does not depend on the matrices' aspect ratios.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        found.setdefault(int(row["layer"]), []).append((float(row[column]), float(row["numbers"])))
    table = [torch.tensor(found[layer], dtype=torch.float64) for layer in sorted(found)]
    return torch.stack([one[:, 0].mean() for one in table]), torch.stack([one[:, 1].sum() for one in table])


def alpha_ratios(
    alphas: Float[Tensor, " block"],
    target: float,
    *,
    sizes: Float[Tensor, " block"] | None = None,
    spread: float = 0.3,
    most: float = MOST,
) -> Float[Tensor, " block"]:
    """Return the share of each block to prune, in float64; their mean, weighted by `sizes`, is the target.

    Args:
        alphas: heavy-tail exponent of each block.
        target: share of all weights to prune, 0 to `most`.
        sizes: weights of each block; None: all alike.
        spread: how far ratios lie apart before they are scaled, 0 (all alike) to 1.
        most: largest ratio.

    Raises:
        ValueError: an alpha is not finite, or an argument is out of range.
    """
    alphas = alphas.double()
    sizes = torch.ones_like(alphas) if sizes is None else sizes.double()
    if alphas.ndim != 1 or len(alphas) == 0 or not torch.isfinite(alphas).all():
        raise ValueError(f"alphas must be one finite number for each block, got {alphas.tolist()!s:.80}.")
    if sizes.shape != alphas.shape or not bool((sizes > 0).all()):
        raise ValueError(
            f"sizes must be one number above 0 for each of {len(alphas)} blocks, got {sizes.tolist()!s:.80}."
        )
    if not 0 <= target <= most <= 1:
        raise ValueError(f"target must lie in 0..most={most:g} (itself at most 1), got {target:g}.")
    if not 0 <= spread <= 1:
        raise ValueError(f"spread must lie in 0..1, got {spread:g}.")
    span = alphas.max() - alphas.min()
    place = (alphas - alphas.min()) / span if span > 0 else torch.full_like(alphas, 0.5)
    return _scaled(1 - spread + 2 * spread * place, sizes, target, most)


def _scaled(shares: Tensor, sizes: Tensor, target: float, most: float) -> Tensor:
    """Return shares times a constant, none above `most`, with the target as weighted mean."""
    full = torch.zeros_like(shares, dtype=torch.bool)
    ratios = shares
    for _ in range(len(shares) + 1):
        left = target * sizes.sum() - most * sizes[full].sum()
        weight = (sizes * shares)[~full].sum()
        ratios = torch.where(full, most, shares * (left / weight if weight > 0 else 0.0))
        over = (ratios > most) & ~full
        if not bool(over.any()):
            break
        full = full | over
    return ratios
