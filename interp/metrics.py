"""Metrics of reconstruction and behaviour, as pure functions and mergeable sums.

FVU is pooled: all squared error over all squared distance from the overall mean, in float64. Averages of ratios over
tokens or batches are other numbers and are not reported under this name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos_minus_1"]:
    """Return the cross-entropy, in nats, of each token after the first."""
    flat = cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    return flat.view(tokens.shape[0], -1)


def kl_divergence(
    clean: Float[Tensor, "*batch d_vocab"], other: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch"]:
    """Return KL(clean || other) of the next-token distributions, in nats."""
    clean, other = clean.float().log_softmax(-1), other.float().log_softmax(-1)
    return (clean.exp() * (clean - other)).sum(-1)


def ce_recovered(clean: float, spliced: float, ablated: float) -> float:
    """Return (CE_ablated - CE_spliced) / (CE_ablated - CE_clean): 1 is the clean model, 0 the ablated one.

    NaN where ablation does not hurt: there is nothing to recover.
    """
    return (ablated - spliced) / (ablated - clean) if ablated > clean else float("nan")


@dataclass
class Reconstruction:
    """Sums over rows from which FVU and the reconstruction bias follow."""

    rows: int = 0
    """Rows added."""
    error: float = 0.0
    """Sum of ||x - x_hat||^2."""
    square: float = 0.0
    """Sum of ||x - centre||^2."""
    inner: float = 0.0
    """Sum of <x, x_hat>."""
    estimate: float = 0.0
    """Sum of ||x_hat||^2."""
    shift: Tensor | None = None
    """Sum of x - centre, [d_in] float64."""

    def add(
        self, x: Float[Tensor, "rows d_in"], estimate: Float[Tensor, "rows d_in"], centre: Float[Tensor, " d_in"]
    ) -> None:
        """Add rows; `centre` is any fixed point near the mean, which keeps the sums from cancelling."""
        x, estimate = x.double(), estimate.double()
        moved = x - centre.double()
        self.rows += len(x)
        self.error += float((x - estimate).square().sum())
        self.square += float(moved.square().sum())
        self.inner += float((x * estimate).sum())
        self.estimate += float(estimate.square().sum())
        self.shift = moved.sum(0) if self.shift is None else self.shift + moved.sum(0)

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained: 0 is exact, 1 is the mean."""
        if self.shift is None:
            return float("nan")
        total = self.square - float(self.shift.square().sum()) / self.rows
        return self.error / total if total > 0 else float("nan")

    @property
    def bias(self) -> float:
        """E||x_hat||^2 / E<x, x_hat> (Rajamanoharan et al. 2024, eq. 10): 1 is unbiased, below 1 shrinks."""
        return self.estimate / self.inner if self.inner else float("nan")


def finite_rows(x: Float[Tensor, "*batch d_in"]) -> Tensor:
    """Return which rows hold no NaN and no infinity, bool [*batch]."""
    return torch.isfinite(x).all(-1)
