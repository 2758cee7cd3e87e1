"""Lens: how the predictions of both models form from layer to layer (`interp.layers.lens`).

    kl_ab        KL(lens_a || lens_b) at one layer        kl_final_a   KL(final_a || lens_a): how far a still has to go
    top1_*       share of positions with the same likeliest token; loss and entropy of each lens, in nats
    depth        blocks after which the final likeliest token is first the likeliest, averaged; between 1 and the layers

The unembedding of every layer is the largest cost of a comparison, so an even sample of `positions` positions that
predict a token is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.compression.panel import Pair, PanelResult, Spread, predicting_positions
from interp.layers.lens import Prediction, lens_logits, row_chunk
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

COLUMNS = (
    "kl_ab",
    "kl_final_a",
    "kl_final_b",
    "top1_agreement",
    "top1_final_a",
    "top1_final_b",
    "loss_a",
    "loss_b",
    "entropy_a",
    "entropy_b",
)


class Lens:
    """Logit lens trajectories of both models."""

    name = "lens"

    def __init__(self, positions: int | None = 16_384) -> None:
        """Look at `positions` positions at most; None takes all."""
        if positions is not None and positions < 1:
            raise ValueError(f"positions must be 1 or more, got {positions}.")
        self.positions = positions

    def sites(self, a: ModelHandle) -> tuple[Site, ...]:
        """Return the residual stream after every block."""
        return tuple(Site(layer, "resid_post") for layer in range(a.n_layers))

    def begin(self, a: ModelHandle, b: ModelHandle, blocks: Blocks) -> None:
        """Begin."""
        self._models, self._sites = (a, b), self.sites(a)
        self._spread = Spread(predicting_positions(blocks), self.positions)
        self._sums = torch.zeros(len(self._sites), len(COLUMNS), dtype=torch.float64)
        self._depths = torch.zeros(2, dtype=torch.float64)
        self._count = 0

    def update(self, pair: Pair) -> None:
        """Add one batch."""
        usable = pair.predicts
        places = usable.flatten().nonzero()[:, 0]
        places = places[self._spread.next(len(places)).to(places.device)]
        finals = [logits.flatten(0, 1) for logits in (pair.logits_a, pair.logits_b)]
        streams = [[acts[site].flatten(0, 1) for site in self._sites] for acts in (pair.acts_a, pair.acts_b)]
        targets = pair.targets.flatten()
        for some in places.split(row_chunk(finals[0].shape[1], places.device)):
            final = [Prediction(logits[some]) for logits in finals]
            finite = torch.isfinite(final[0].log_p).any(-1) & torch.isfinite(final[1].log_p).any(-1)
            if not finite.all():
                some = some[finite]
                final = [Prediction(logits[some]) for logits in finals]
            self._add(final, [[rows[some] for rows in stream] for stream in streams], targets[some])

    def _add(self, final: list[Prediction], streams: list[list[Tensor]], targets: Tensor) -> None:
        """Add some positions."""
        depth = [torch.full_like(targets, len(self._sites)) for _ in final]
        for layer in reversed(range(len(self._sites))):
            lens = final  # after the last block the lens is the model's output
            if layer < len(self._sites) - 1:
                lens = [
                    Prediction(lens_logits(model, stream[layer]))
                    for model, stream in zip(self._models, streams, strict=True)
                ]
            a, b = lens
            right = [one.top == last.top for one, last in zip(lens, final, strict=True)]
            measured = (
                a.kl_to(b),
                *(last.kl_to(one) for one, last in zip(lens, final, strict=True)),
                a.top == b.top,
                *right,
                *(one.loss(targets) for one in lens),
                *(one.entropy() for one in lens),
            )
            self._sums[layer] += torch.stack([value.double().sum() for value in measured]).cpu()
            depth = [torch.where(hit, layer + 1, at) for hit, at in zip(right, depth, strict=True)]
        self._depths += torch.stack([at.double().sum() for at in depth]).cpu()
        self._count += len(targets)

    def finish(self) -> PanelResult:
        """Return the depths, and the table `layers`."""
        import pyarrow as pa

        means, depths = self._sums / max(self._count, 1), (self._depths / max(self._count, 1)).tolist()
        rows = [
            {"site": str(site), "layer": site.layer, **dict(zip(COLUMNS, values.tolist(), strict=True))}
            for site, values in zip(self._sites, means, strict=True)
        ]
        summary = {
            "depth_a": depths[0],
            "depth_b": depths[1],
            "depth_delta": depths[1] - depths[0],
            "positions": self._count,
        }
        return PanelResult(summary, {"layers": pa.Table.from_pylist(rows)})
