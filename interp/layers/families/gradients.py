"""Family `gradients`: the loss's gradient by each block's matrices (`interp.layers.gradients`), on plain text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.gradient_curves import mean_step
from interp.layers.gradient_data import Example
from interp.layers.gradients import GradientSums, LayerGradients
from interp.sites import Site

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.data import Blocks
    from interp.models import ModelHandle

CURVES = ("nuclear", "ratio", "effective_rank")


class GradientsFamily:
    """Norms, ranks and cosines of the gradients of q, k, v, o and the MLP; every token of a text is scored."""

    name = "gradients"
    measures = (
        Measure("nuclear", "gradient: nuclear norm", "", "Of the mean loss: longer texts have smaller ones."),
        Measure("ratio", "gradient: nuclear / Frobenius", "", "1: one direction; at most the root of the rank."),
        Measure("effective_rank", "gradient: effective rank", "dimensions", "At most the tokens of a text."),
        Measure("next_cosine", "gradient: cosine with the next layer", "cosine", "The same matrix, one layer on."),
    )  # fmt: skip

    def __init__(self, texts: int = 16, length: int = 64) -> None:
        """Differentiate the loss of the first `texts` sequences, cut to `length` tokens, one by one.

        Raises:
            ValueError: fewer than one text, or than two tokens.
        """
        if texts < 1 or length < 2:
            raise ValueError(f"texts must be 1 or more and length 2 or more, got {texts} and {length}.")
        self.texts, self.length = texts, length

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:  # noqa: ARG002
        """Return none: gradients need runs of their own."""
        return ()

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:  # noqa: ARG002
        """Begin."""
        self._sums, self._left = GradientSums(handle), self.texts

    def update(self, batch: Batch) -> None:
        """Differentiate the loss of the batch's first texts, while some are wanted."""
        for row, real in zip(batch.tokens, batch.real, strict=True):
            tokens = tuple(row[real][: self.length].tolist())
            if self._left > 0 and len(tokens) > 1:
                self._sums.update(Example(tokens, 1))
                self._left -= 1

    def finish(self) -> FamilyResult:
        """Return the curves; bands are 95 % of the mean over texts, by their spread.

        Raises:
            ValueError: no text gave finite gradients.
        """
        found = self._sums.finish()
        rows = [row for measure in CURVES for row in _curve(found, measure)] + _next_cosines(found)
        nuclear = found.curve("nuclear")
        steps = mean_step(nuclear)
        names = {name: i for i, name in enumerate(found.names)}
        summary: dict[str, int | float | str | None] = {
            "loss": float(found.losses.mean()),
            "texts": len(found.losses),
            "tokens": int(found.scored.sum()),
            "dropped": found.dropped,
            "largest_layer": int(nuclear.sum(1).argmax()),
        }
        if nuclear.shape[0] > 1:
            summary |= {f"mad_{name}": float(steps["all"][i]) for name, i in names.items() if name in "qkvo"}
        return FamilyResult(summary, layer_table(rows), {"matrices": _matrices(found), "cosines": _pairs(found)})


def _curve(found: LayerGradients, measure: str) -> list[tuple]:
    each = found.each(measure)
    n = (~each.isnan()).sum(0)
    mean = each.nanmean(0)
    spread = 1.96 * ((each - mean).square().nansum(0) / (n - 1).clamp_min(1) / n.clamp_min(1)).sqrt()
    rows = []
    for layer in range(each.shape[1]):
        for i, name in enumerate(found.names):
            value, half = float(mean[layer, i]), float(spread[layer, i])
            band = (value - half, value + half) if n[layer, i] > 1 else ()
            rows.append((layer, measure, name, value, *band))
    return rows


def _next_cosines(found: LayerGradients) -> list[tuple]:
    layers = found.layer_cosine.shape[1]
    return [
        (layer, "next_cosine", name, float(found.layer_cosine[i, layer, layer + 1]))
        for layer in range(layers - 1)
        for i, name in enumerate(found.names)
    ]


def _matrices(found: LayerGradients) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(
        [
            {"layer": layer, "name": name}
            | {measure: float(found.curve(measure)[layer, i]) for measure in found.values}
            | {f"{measure}_sum": float(found.curve(measure, "sum")[layer, i]) for measure in ("nuclear", "frobenius")}
            for layer in range(found.layer_cosine.shape[1])
            for i, name in enumerate(found.names)
        ]
    )


def _pairs(found: LayerGradients) -> pa.Table:
    """Return the cosines between matrices of one layer and between layers of one matrix."""
    import pyarrow as pa

    layers, names = range(found.layer_cosine.shape[1]), found.names
    rows = [
        {"layer": a, "name": name, "other_layer": b, "other_name": name, "cosine": float(found.layer_cosine[i, a, b])}
        for i, name in enumerate(names)
        for a in layers
        for b in layers[a + 1 :]
    ]
    rows += [
        {"layer": a, "name": one, "other_layer": a, "other_name": other, "cosine": float(found.name_cosine[a, i, j])}
        for a in layers
        for i, one in enumerate(names)
        for j, other in enumerate(names)
        if i < j
    ]
    return pa.Table.from_pylist([row for row in rows if not math.isnan(row["cosine"])])
