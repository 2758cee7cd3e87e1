"""Behaviour: what the outputs of two models say.

    loss_delta = mean over tokens of (loss_b - loss_a), with a 95 % interval by bootstrap over blocks: blocks are drawn
                 with replacement, both losses of a block together, because a paired difference varies far less than
                 either loss
    kl         = KL(p_a || p_b) of the next-token distributions, in nats
    top1_agreement: share of positions where both models find the same token likeliest

Positions that predict a real token count, the one at BOS included; those where a loss is not finite are left out and
counted as `unpredicted`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interp.compression.panel import Pair, PanelResult
from interp.layers.lens import Prediction, row_chunk
from interp.layers.sampling import bootstrap as bootstrap
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

QUANTILES = (*(i / 100 for i in range(101)), 0.995, 0.999)
"""Of the KL, in the table."""


class Behaviour:
    """Paired loss difference, KL and top-1 agreement."""

    name = "behaviour"

    def __init__(self, resamples: int = 2000, seed: int = 0) -> None:
        """Draw the blocks `resamples` times for the interval, from `seed`."""
        if resamples < 1:
            raise ValueError(f"resamples must be 1 or more, got {resamples}.")
        self.resamples, self.seed = resamples, seed

    def sites(self, a: ModelHandle) -> tuple[Site, ...]:  # noqa: ARG002
        """Return no site: outputs only."""
        return ()

    def begin(self, a: ModelHandle, b: ModelHandle, blocks: Blocks) -> None:  # noqa: ARG002
        """Begin."""
        self._blocks: list[np.ndarray] = []  # block, tokens, sums of loss_a, loss_b, kl
        self._kl: list[np.ndarray] = []
        self._agree = self._unpredicted = 0

    def update(self, pair: Pair) -> None:
        """Add one batch."""
        loss_a, loss_b, kl, agree = _differences(pair)
        counted = pair.predicts & torch.isfinite(loss_a) & torch.isfinite(loss_b) & torch.isfinite(kl)
        self._unpredicted += int((pair.predicts & ~counted).sum())
        self._agree += int((agree & counted).sum())
        sums = [counted.sum(1), *(torch.where(counted, v, 0).double().sum(1) for v in (loss_a, loss_b, kl))]
        columns = [pair.numbers, *sums]
        self._blocks.append(torch.stack([column.double().cpu() for column in columns], dim=1).numpy())
        self._kl.append(kl[counted].cpu().numpy())

    def finish(self) -> PanelResult:
        """Return the summary and the tables `blocks` and `quantiles`."""
        import pyarrow as pa

        blocks, kl = np.concatenate(self._blocks), np.concatenate(self._kl)
        tokens = int(blocks[:, 1].sum())
        if tokens == 0:
            raise ValueError(f"None of the {self._unpredicted} next tokens has a finite loss in both models.")
        loss_a, loss_b, mean_kl = blocks[:, 2:].sum(0) / tokens
        low, high = bootstrap(blocks[:, 3] - blocks[:, 2], blocks[:, 1], self.resamples, self.seed)
        cut = np.quantile(kl, QUANTILES)
        at = dict(zip(QUANTILES, cut.tolist(), strict=True))
        summary = {
            "tokens": tokens,
            "loss_a": float(loss_a),
            "loss_b": float(loss_b),
            "loss_delta": float(loss_b - loss_a),
            "loss_delta_low": low,
            "loss_delta_high": high,
            "kl_mean": float(mean_kl),
            "kl_median": at[0.5],
            "kl_q95": at[0.95],
            "kl_q99": at[0.99],
            "kl_max": at[1.0],
            "top1_agreement": self._agree / tokens,
            "unpredicted": self._unpredicted,
        }
        whole = np.maximum(blocks[:, 1], 1)
        rows = {
            "block": blocks[:, 0].astype(np.int32),
            "tokens": blocks[:, 1].astype(np.int32),
            "loss_a": blocks[:, 2] / whole,
            "loss_b": blocks[:, 3] / whole,
            "kl": blocks[:, 4] / whole,
        }
        order = np.argsort(QUANTILES)
        quantiles = {"quantile": np.asarray(QUANTILES)[order], "kl": cut[order]}
        return PanelResult(summary, {"blocks": pa.table(rows), "quantiles": pa.table(quantiles)})


def _differences(pair: Pair) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (loss a, loss b, KL(a || b), same top-1) of every position, each [block pos]."""
    shape = pair.tokens.shape
    logits = [pair.logits_a.flatten(0, 1), pair.logits_b.flatten(0, 1)]
    size = row_chunk(logits[0].shape[1], logits[0].device)
    parts = []
    for rows_a, rows_b, targets in zip(*(v.split(size) for v in (*logits, pair.targets.flatten())), strict=True):
        a, b = Prediction(rows_a), Prediction(rows_b)
        parts.append((a.loss(targets), b.loss(targets), a.kl_to(b), a.top == b.top))
    loss_a, loss_b, kl, agree = (torch.cat(column).view(shape) for column in zip(*parts, strict=True))
    return loss_a, loss_b, kl.clamp_min(0), agree
