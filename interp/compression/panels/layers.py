"""Layers: what families of layer measures (`interp.layers.families`) say of both models, side by side.

An even sample of `blocks` blocks is read, and both models see the same ones. A family that one of the models does not
allow is left out, with the reason in the summary. By default the families are those that read the stream, the heads and
the weights, and the loss without each block; the last runs both models again and takes longer than all other panels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.compression.panel import Pair, PanelResult
from interp.layers.families import build_families
from interp.layers.family import Batch, Family, FamilyResult
from interp.layers.sampling import Spread
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

FAMILIES = ("stream", "geometry", "importance", "attention", "spectra")
"""What is measured unless others are named."""


class Layers:
    """Families of measures by layer of both models."""

    name = "layers"

    def __init__(self, families: Sequence[str] = FAMILIES, blocks: int = 64) -> None:
        """Measure `families` on `blocks` blocks of the text at most.

        Raises:
            ValueError: an unknown family, or no block.
        """
        if blocks < 1:
            raise ValueError(f"blocks must be 1 or more, got {blocks}.")
        build_families(families)
        self.families, self.blocks = tuple(families), blocks

    def sites(self, a: ModelHandle) -> tuple[Site, ...]:
        """Return what the families want of a."""
        return tuple(sorted({site for one in build_families(self.families) for site in one.sites(a)}))

    def begin(self, a: ModelHandle, b: ModelHandle, blocks: Blocks) -> None:
        """Begin with both models."""
        self._chosen = Spread(len(blocks), self.blocks).next(len(blocks))
        self._refused: dict[str, str] = {}
        sides = [build_families(self.families) for _ in "ab"]
        self._open = {one.name: (one, other) for one, other in zip(*sides, strict=True)}
        some = blocks.select(self._chosen)
        for side, handle in enumerate((a, b)):
            self._each(side, lambda one, handle=handle: one.begin(handle, some))

    def _each(self, side: int, job: Callable[[Family], object]) -> dict[str, object]:
        """Do a job with the families of one side; one that refuses is closed for both."""
        found = {}
        for name, pair in list(self._open.items()):
            try:
                with torch.enable_grad():  # some differentiate; nothing else here keeps a graph
                    found[name] = job(pair[side])
            except ValueError as error:
                self._refused[name] = f"{'ab'[side]}: {error}"
                del self._open[name]
        return found

    def update(self, pair: Pair) -> None:
        """Give the chosen blocks of a batch to the families of both models."""
        places = torch.isin(pair.numbers, self._chosen).nonzero()[:, 0].to(pair.tokens.device)
        if len(places) == 0:
            return
        sides = ((pair.logits_a, pair.acts_a), (pair.logits_b, pair.acts_b))
        for side, (logits, acts) in enumerate(sides):
            batch = _batch(pair, places, logits, acts)
            self._each(side, lambda one, batch=batch: one.update(batch))

    def finish(self) -> PanelResult:
        """Return the means over layers, and the tables `layers` and `measures`.

        `layers`: family, measure, part, layer, value_a, value_b, and `low_a` to `high_b` where there are intervals;
        `measures`: family, measure, label, unit, note.
        """
        import pyarrow as pa

        results = [self._each(side, lambda one: one.finish()) for side in (0, 1)]
        names = [name for name in self._open if all(name in found for found in results)]
        rows = [row for name in names for row in _rows(name, *(found[name] for found in results))]  # type: ignore[arg-type]
        measures = [
            {"family": name, "measure": m.name, "label": m.label, "unit": m.unit, "note": m.note}
            for name in names
            for m in self._open[name][0].measures
        ]
        summary: dict[str, int | float | str | None] = {"families": len(names)}
        summary |= {f"{name}_refused": why for name, why in self._refused.items()}
        for name in names:
            first = self._open[name][0].measures[0].name
            own = [row for row in rows if row["family"] == name and row["measure"] == first]
            for side in "ab":
                values = [row[f"value_{side}"] for row in own if row[f"value_{side}"] is not None]
                summary[f"{name}_{first}_{side}"] = sum(values) / len(values) if values else None
        kinds = [(key, pa.string()) for key in ("family", "measure", "part")] + [("layer", pa.int32())]
        numbers = [(f"{key}_{side}", pa.float64()) for side in "ab" for key in ("value", "low", "high")]
        texts = [(key, pa.string()) for key in ("family", "measure", "label", "unit", "note")]
        tables = {
            "layers": pa.Table.from_pylist(rows, pa.schema([*kinds, *numbers])),
            "measures": pa.Table.from_pylist(measures, pa.schema(texts)),
        }
        return PanelResult(summary, tables)


def _batch(pair: Pair, places: Tensor, logits: Tensor, acts: dict[Site, Tensor]) -> Batch:
    chosen = {site: values[places] for site, values in acts.items()}
    return Batch(pair.tokens[places], pair.real[places], pair.keep[places], logits[places], chosen)


def _rows(family: str, a: FamilyResult, b: FamilyResult) -> list[dict[str, Any]]:
    """Return a row for each measure, part and layer of either model."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for side, result in zip("ab", (a, b), strict=True):
        for row in result.layers.to_pylist():
            key = row["measure"], row["part"], row["layer"]
            place: dict[str, Any] = dict(zip(("family", "measure", "part", "layer"), (family, *key), strict=True))
            values = {f"{name}_{side}": row[name] for name in ("value", "low", "high")}
            found.setdefault(key, place).update(values)
    return list(found.values())
