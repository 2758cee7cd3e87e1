"""How predictions form from layer to layer: what lenses read off each stream, beside what the model says in the end.

    kl            KL(final || lens), the loss that the tuned lens learns by
    kl_reverse    KL(lens || final), as Csordas, Manning and Potts (2025) draw it
    rank_final    rank of the final likeliest token in the lens, 1 is first; geometric mean
    rank_true     rank of the token that really comes next; geometric mean
    entropy       of the lens, in nats
    loss          cross-entropy of the lens on the next token, in nats
    overlap       share of the k likeliest tokens that lens and final have in common
    agreement     share of positions with the same likeliest token
    depth_first   blocks passed when the final likeliest token is the likeliest for the first time
    depth_settled blocks passed from which on it stays the likeliest

Layer l is the stream after block l, -1 the embeddings; after the last block every lens is the model itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.layers.lens import Prediction, TrainedLens, lens_logits, row_chunk, stream_site
from interp.layers.sampling import bootstrap
from interp.models.handle import ModelHandle
from interp.sites import Site

MEASURES = ("kl", "kl_reverse", "rank_final", "rank_true", "entropy", "loss", "overlap", "agreement")
"""Numbers per position, layer and lens."""
RANKS = ("rank_final", "rank_true")
"""Measures that are kept as logarithms, so that their means are geometric."""
LOGIT = "logit"
"""Name of the lens without a map."""


@dataclass(frozen=True)
class Mean:
    """A mean over positions, with a 95 % interval by bootstrap over blocks (NaN for one block)."""

    value: float
    """The mean; geometric for ranks."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


class Trajectory:
    """What lenses say at some positions, position by position; each is a few numbers."""

    def __init__(self, handle: ModelHandle, lenses: Sequence[TrainedLens] = (), k: int = 5) -> None:
        """Begin without positions, with the logit lens and `lenses`.

        Raises:
            ValueError: k is not in 1..d_vocab, or two lenses have one name.
        """
        if not 1 <= k <= handle.d_vocab:
            raise ValueError(f"k must lie in 1..d_vocab={handle.d_vocab}, got {k}.")
        self.handle, self.k = handle, k
        self.lenses: dict[str, TrainedLens | None] = {LOGIT: None, **{lens.name: lens for lens in lenses}}
        if len(self.lenses) != len(lenses) + 1:
            raise ValueError(f"Lenses must have different names, got {LOGIT} and {[one.name for one in lenses]}.")
        self.layers = range(-1, handle.n_layers)
        self._values: dict[str, list[Tensor]] = {name: [] for name in self.lenses}
        self._groups: list[Tensor] = []

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites whose activations `update` reads."""
        return tuple(stream_site(layer) for layer in self.layers)

    @property
    def positions(self) -> int:
        """Positions that were looked at."""
        return sum(map(len, self._groups))

    @torch.no_grad()
    def update(
        self,
        streams: Mapping[Site, Float[Tensor, "rows d_model"]],
        logits: Float[Tensor, "rows d_vocab"],
        targets: Int[Tensor, " rows"],
        groups: Int[Tensor, " rows"],
    ) -> None:
        """Add positions; one where a stream is not finite is left out.

        Args:
            streams: the residual stream at each of `sites`.
            logits: the model's output there.
            targets: the token that comes next.
            groups: which block each position is of, for the interval.
        """
        for rows in torch.arange(len(logits), device=logits.device).split(row_chunk(logits.shape[1], logits.device)):
            final = Prediction(logits[rows])
            usable = torch.isfinite(final.log_p).any(-1)  # what overflowed would make every mean infinite
            for site in self.sites:
                usable = usable & torch.isfinite(streams[site][rows]).all(-1)
            if not usable.all():
                rows = rows[usable]
                final = Prediction(logits[rows])
            parts = [streams[site][rows] for site in self.sites]
            for name, lens in self.lenses.items():
                self._values[name].append(self._measured(lens, parts, final, targets[rows]))
            self._groups.append(groups[rows.to(groups.device)].cpu())

    def _measured(
        self, lens: TrainedLens | None, streams: Sequence[Tensor], final: Prediction, targets: Tensor
    ) -> Float[Tensor, "measure layer rows"]:
        """Return the numbers of one lens."""
        found = []
        for layer, stream in zip(self.layers, streams, strict=True):
            seen = final
            if layer < self.layers[-1]:
                moved = stream if lens is None else lens.translate(layer, stream)
                seen = Prediction(lens_logits(self.handle, moved))
            numbers = (
                final.kl_to(seen),
                seen.kl_to(final),
                seen.rank(final.top).float().log(),
                seen.rank(targets).float().log(),
                seen.entropy(),
                seen.loss(targets),
                seen.overlap(final, self.k),
                (seen.top == final.top).float(),
            )
            found.append(torch.stack([number.float() for number in numbers]))
        return torch.stack(found, 1).cpu()

    def values(self, lens: str = LOGIT) -> Float[Tensor, "measure layer position"]:
        """Return every number of a lens; ranks as natural logarithms.

        Raises:
            ValueError: nothing was added.
        """
        if not self.positions:
            raise ValueError("No position was looked at; give a text with tokens after the first that are followed.")
        return torch.cat(self._values[lens], -1)

    def depths(self, lens: str = LOGIT) -> dict[str, Float[Tensor, " position"]]:
        """Return {"depth_first", "depth_settled"} of each position, in blocks passed: 0 is the embeddings."""
        same = self.values(lens)[MEASURES.index("agreement")] > 0
        stays = same.flip(0).int().cumprod(0).flip(0)  # 1 from the layer on from which it never changes again
        return {"depth_first": same.int().argmax(0).float(), "depth_settled": (len(same) - stays.sum(0)).float()}

    def mean(self, values: Float[Tensor, " position"], *, logs: bool = False, resamples: int = 500) -> Mean:
        """Return the mean of one number per position, of `logs` the geometric one."""
        groups = torch.cat(self._groups).numpy()
        _, index = np.unique(groups, return_inverse=True)
        sums, counts = np.bincount(index, values.double().numpy()), np.bincount(index)
        ends = (float(sums.sum() / counts.sum()), *bootstrap(sums, counts, resamples, 0))
        return Mean(*(math.exp(end) if logs else end for end in ends))

    def finish(self) -> dict[str, dict[str, list[Mean]]]:
        """Return {lens: {measure: means by layer}}, embeddings first."""
        return {
            name: {
                measure: [self.mean(row, logs=measure in RANKS) for row in rows]
                for measure, rows in zip(MEASURES, self.values(name), strict=True)
            }
            for name in self.lenses
        }
