"""The shape of the cloud of activations at a site: dimensions in use, a shared direction, single huge entries.

    participation_ratio   (sum l)^2 / sum l^2                          l: eigenvalues of the covariance
    effective_rank        exp(H(s / sum s)), s = sqrt(l)               (Roy and Vetterli 2007)
    anisotropy            mean cosine of two different tokens          (Ethayarajh 2019)
    massive               per token, largest |x| / median |x|          (Sun et al. 2024)

The first two are about centred rows and lie between 1 and the width; they cannot exceed the number of rows less one.
The participation ratio sees variances, the effective rank their roots, so that the latter is the larger. Anisotropy is
about rows as they are: a mean that all tokens share makes it large whatever the covariance.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.activations.outliers import norms
from interp.layers.moments import Moments
from interp.layers.tokens import TokenValues, later_rows

MASSIVE = 1000.0
"""Times the median entry of its token from which an entry is called massive (Sun et al. 2024)."""


class Geometry:
    """Sums over tokens of one site from which its geometry follows."""

    def __init__(self) -> None:
        """Begin without tokens."""
        self._moments = Moments()
        self._unit_sum: Tensor | None = None
        self._units = 0
        self._massive = TokenValues()
        self._dims: Counter[int] = Counter()
        self._peak = (0.0, -1)

    def update(self, x: Float[Tensor, "batch pos d"], keep: Bool[Tensor, "batch pos"] | None = None) -> None:
        """Add a batch of activations, and which tokens count (None: all)."""
        rows = later_rows(x, keep)
        self._moments.update(rows, rows)
        sizes = norms(rows).to(rows.device)
        units = rows[sizes > 0] / sizes[sizes > 0, None]
        total = units.sum(0)
        self._unit_sum = total if self._unit_sum is None else self._unit_sum + total
        self._units += len(units)
        self._massive.update(massive_ratio(x), keep)
        if len(rows):
            peak = rows.abs().max(1)
            self._dims.update(peak.indices.tolist())
            best = int(peak.values.argmax())
            if float(peak.values[best]) > self._peak[0]:
                self._peak = float(peak.values[best]), int(peak.indices[best])

    def finish(self) -> dict[str, float]:
        """Return the measures of the module's docstring, and more about huge entries.

        `massive_share`: tokens with an entry `MASSIVE` times the median; `peak`: the largest |x|; `peak_dim`: where it
        was; `peak_dim_share`: tokens whose largest entry is there. NaN where there were too few tokens.
        """
        massive, tokens = self._massive.values, self._moments.rows
        found: dict[str, float] = {"tokens": tokens}
        values = eigenvalues(self._moments.covariance) if tokens > 1 else torch.zeros(0, dtype=torch.float64)
        found["participation_ratio"] = participation_ratio(values)
        found["effective_rank"] = effective_rank(values.sqrt())
        found["anisotropy"] = self._anisotropy()
        found |= self._massive.finish("massive")
        found["massive_share"] = float((massive >= MASSIVE).double().mean()) if len(massive) else math.nan
        found["peak"], found["peak_dim"] = self._peak
        found["peak_dim_share"] = self._dims[self._peak[1]] / tokens if tokens else math.nan
        return found

    def _anisotropy(self) -> float:
        n = self._units
        if self._unit_sum is None or n < 2:
            return math.nan
        return (float(self._unit_sum.square().sum()) - n) / (n * (n - 1))


def eigenvalues(covariance: Float[Tensor, "d d"]) -> Float[Tensor, " d"]:
    """Return the eigenvalues in ascending order; those that rounding alone explains are 0."""
    found = torch.linalg.eigvalsh(covariance)
    least = found[-1] * len(found) * torch.finfo(found.dtype).eps
    return torch.where(found > least, found, 0.0)


def participation_ratio(values: Float[Tensor, " n"]) -> float:
    """Return (sum l)^2 / sum l^2 of eigenvalues, 1 to n; NaN where all are 0."""
    squares = float(values.square().sum())
    return float(values.sum()) ** 2 / squares if squares > 0 else math.nan


def effective_rank(values: Float[Tensor, " n"]) -> float:
    """Return exp(entropy) of singular values divided by their sum, 1 to n; NaN where all are 0."""
    total = float(values.sum())
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else math.nan


def massive_ratio(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """Return largest |x| / median |x| of each token in float64; NaN where the median is 0.

    The median of an even number of entries is the lower of the two in the middle.
    """
    sizes = x.detach().double().abs()
    middle = sizes.median(-1).values
    return torch.where(middle > 0, sizes.amax(-1) / middle, torch.nan)
