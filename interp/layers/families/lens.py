"""Family `lens`: how predictions form from layer to layer (`interp.layers.trajectory`), by the logit lens and others.

    LensFamily(lenses=[load_lens(run, handle)])     # beside the logit lens a tuned or a Jacobian one

The unembedding of every layer is the largest cost of a profile, so an even sample of `positions` positions that predict
a token is taken. Position 0 and BOS are left out; their KL is a curve of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.lens import TrainedLens
from interp.layers.lens_runs import check_lens
from interp.layers.sampling import Spread, check_text, kept_positions
from interp.layers.trajectory import MEASURES, Trajectory
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

FIRST = 64
"""Blocks whose position 0 is looked at, at most."""


class LensFamily:
    """Divergence from the output, ranks, entropy and depth of agreement, by layer; the part is the lens."""

    name = "lens"
    measures = (
        Measure("kl", "KL(final ‖ lens)", "nats", "0 after the last block, where the lens is the model."),
        Measure("kl_reverse", "KL(lens ‖ final)", "nats", "The other direction; the two are not the same number."),
        Measure("rank_final", "rank of the final token", "rank", "1 is the likeliest; geometric mean."),
        Measure("rank_true", "rank of the true token", "rank", "Of the token that really comes next; geometric mean."),
        Measure("entropy", "entropy of the lens", "nats", "Low and wrong is possible: read it beside the KL."),
        Measure("loss", "loss of the lens", "nats", "On the next token; after the last block the model's own."),
        Measure("overlap", "likeliest tokens in common", "share", "Of the k likeliest of lens and final."),
        Measure("agreement", "same likeliest token", "share", "As the model has in the end."),
        Measure("kl_first", "KL at position 0", "nats", "Reported apart: an attention sink of a stream of its own."),
    )

    def __init__(self, positions: int = 2048, k: int = 5, lenses: Sequence[TrainedLens] = ()) -> None:
        """Look at `positions` positions at most, with the logit lens and `lenses`; `k` likeliest tokens count.

        Raises:
            ValueError: positions or k below 1.
        """
        for name, value in (("positions", positions), ("k", k)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        self.positions, self.k, self.lenses = positions, k, tuple(lenses)

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:
        """Return the stream before the first block and after every one."""
        return (Site(0, "resid_pre"), *(Site(layer, "resid_post") for layer in range(handle.n_layers)))

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:
        """Begin.

        Raises:
            ValueError: a lens belongs to another model, or the text has no position that counts.
        """
        check_text(blocks)
        for lens in self.lenses:
            check_lens(lens, handle, f"The lens {lens.name!r}")
        self._handle = handle
        self._found, self._first = (Trajectory(handle, self.lenses, min(self.k, handle.d_vocab)) for _ in range(2))
        follows = blocks.keep[:, :-1] & blocks.keep[:, 1:]
        self._spread = Spread(int((kept_positions(blocks)[:, :-1] & follows).sum()), self.positions)
        self._spread_first = Spread(int(follows[:, 0].sum()), FIRST)
        self._blocks = 0

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        first = torch.zeros_like(batch.keep)
        first[:, 0] = True
        self._add(batch, batch.predicts & batch.keep, self._spread, self._found)
        self._add(batch, batch.predicts & first, self._spread_first, self._first)
        self._blocks += len(batch.tokens)

    def _add(self, batch: Batch, usable: torch.Tensor, spread: Spread, to: Trajectory) -> None:
        """Add the positions that `spread` chooses out of the usable ones."""
        places = usable.flatten().nonzero()[:, 0]
        places = places[spread.next(len(places)).to(places.device)]
        if len(places):
            streams = {site: batch.acts[site].flatten(0, 1)[places] for site in to.sites}
            logits, targets = batch.logits.flatten(0, 1)[places], batch.targets.flatten()[places]
            to.update(streams, logits, targets, self._blocks + places.cpu() // batch.tokens.shape[1])

    def finish(self) -> FamilyResult:
        """Return the curves, and the table `depths` of when each lens agrees with the output.

        Raises:
            ValueError: no position predicts a token.
        """
        import pyarrow as pa

        rows = [
            (layer, measure, lens, mean.value, _number(mean.low), _number(mean.high))
            for lens, by_measure in self._found.finish().items()
            for measure in MEASURES
            for layer, mean in zip(self._found.layers, by_measure[measure], strict=True)
        ]
        if self._first.positions:
            for lens in self._first.lenses:
                kl = self._first.values(lens)[MEASURES.index("kl")].double().mean(-1).tolist()
                rows += [(layer, "kl_first", lens, value) for layer, value in zip(self._first.layers, kl, strict=True)]
        depths = [
            {"lens": lens, "measure": name, "value": mean.value, "low": _number(mean.low), "high": _number(mean.high)}
            for lens in self._found.lenses
            for name, values in self._found.depths(lens).items()
            for mean in [self._found.mean(values)]
        ]
        summary: dict[str, int | float | str | None] = {
            f"{row['measure']}{'' if row['lens'] == 'logit' else '_' + row['lens']}": row["value"] for row in depths
        }
        summary |= {"positions": self._found.positions, "k": self._found.k}
        return FamilyResult(summary, layer_table(rows), {"depths": pa.Table.from_pylist(depths)})


def _number(value: float) -> float | None:
    """Return a number for a table: null where there is none."""
    return value if value == value else None
