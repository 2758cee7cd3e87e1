"""One number for each token, added up batch by batch: mean, 95th percentile and largest, position 0 always apart.

Position 0 is an attention sink in most models and its norm is often hundreds of times that of the other tokens, so one
such token decides a mean. Values that are no number (a cosine with a zero vector, an activation that overflowed) are
left out and counted.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

HIGH = 0.95
"""Quantile that is reported between mean and largest."""


class TokenValues:
    """Values of tokens; each is kept as one float64, a small part of the activation that it came from."""

    def __init__(self) -> None:
        """Begin without tokens."""
        self._later: list[Tensor] = []
        self._first = [0.0, 0]
        self.left_out = 0

    def update(self, values: Float[Tensor, "batch pos"], keep: Bool[Tensor, "batch pos"] | None = None) -> None:
        """Add the values of the tokens that `keep` (default: all) names."""
        values = values.detach().cpu().double()
        wanted = torch.ones_like(values, dtype=torch.bool) if keep is None else keep.cpu()
        usable = wanted & torch.isfinite(values)
        self.left_out += int((wanted & ~usable).sum())
        first = values[:, 0][usable[:, 0]]
        self._first = [self._first[0] + float(first.sum()), self._first[1] + len(first)]
        self._later.append(values[:, 1:][usable[:, 1:]])

    @property
    def values(self) -> Float[Tensor, " tokens"]:
        """The values of all tokens but those at position 0."""
        return torch.cat(self._later) if self._later else torch.zeros(0, dtype=torch.float64)

    def finish(self, name: str) -> dict[str, float]:
        """Return `NAME_mean`, `NAME_p95` and `NAME_max` over tokens after position 0, and `NAME_first`, its mean there.

        NaN where there was no such token.
        """
        values = self.values
        some = len(values) > 0
        return {
            f"{name}_mean": float(values.mean()) if some else math.nan,
            f"{name}_p95": upper(values) if some else math.nan,
            f"{name}_max": float(values.max()) if some else math.nan,
            f"{name}_first": self._first[0] / self._first[1] if self._first[1] else math.nan,
        }


def upper(values: Float[Tensor, " n"]) -> float:
    """Return the 95th percentile: the smallest value that at least 95 % of the values do not exceed."""
    return float(values.kthvalue(max(1, math.ceil(HIGH * len(values)))).values)


def later_rows(
    x: Float[Tensor, "batch pos d"], keep: Bool[Tensor, "batch pos"] | None = None
) -> Float[Tensor, "rows d"]:
    """Return in float64 the rows after position 0 that `keep` (default: all) names and that are finite."""
    usable = torch.isfinite(x).all(-1)
    if keep is not None:
        usable = usable & keep.to(x.device)
    usable[:, 0] = False
    return x[usable].double()
