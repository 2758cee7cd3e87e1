"""The maps of patching runs and the one cell that is chosen in all of them, with what stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import streamlit as st

from app.widgets import frame
from app.widgets.attributions import Scored
from app.widgets.cell_links import cell_links
from app.widgets.cell_maps import AXIS_NAMES, Map, boxes, column_axis, draw_maps, layer_axis, limit_of
from app.widgets.heat_map import Axis, box, chosen
from app.widgets.patched_cell import Spot, patched_cell
from app.widgets.questions import Question, kinds_of
from interp.sites import STREAM

SHAPES: tuple[tuple[str, ...], ...] = (("pos",), ("head",), ("pos", "head"))
"""Parts by which maps are drawn."""


@dataclass(frozen=True)
class Chart:
    """A map of the page: one kind of site by certain parts, under one variant."""

    kind: str
    """Kind of site."""
    parts: tuple[str, ...]
    """One of `SHAPES`."""
    variant: str
    """What was patched into what."""
    run: Scored
    """Where its scores are."""

    @property
    def id(self) -> str:
        """What the address says: the kind, with `.pos` where heads are patched at single positions."""
        return self.kind + (".pos" if self.parts == ("pos", "head") else "")

    @property
    def axis(self) -> str:
        """What the columns are."""
        return self.parts[-1]


def charts_of(question: Question, runs: Sequence[Scored]) -> list[Chart]:
    """Return the maps that the newest runs give: by position, by head, by both; the variants of a map side by side."""
    found: dict[tuple[str, ...], Chart] = {}
    for one in runs:
        for kind in one.found.kinds:
            parts = one.found.parts(kind)
            if parts in SHAPES:
                found.setdefault((kind, *parts, one.variant), Chart(kind, parts, one.variant, one))
    kinds, variants = kinds_of(runs), [*question.variants, ""]
    return sorted(found.values(), key=lambda c: (SHAPES.index(c.parts), kinds.index(c.kind), variants.index(c.variant)))


@st.fragment
def maps_and_cell(charts: Sequence[Chart], part: bool, own: bool) -> None:
    """Draw the maps and the drill-down of the chosen cell; a click runs this part only."""
    with frame.section():
        cell = Chosen(charts)
        limit = None if own else limit_of([one for chart in charts if (one := cell.map_of(chart, part)) is not None])
        for shape in SHAPES:
            cell.draw(shape, part, limit)
        cell.details()


class Chosen:
    """The cell of the address among the cells of all maps."""

    def __init__(self, charts: Sequence[Chart]) -> None:
        """Read the address; a part that it does not name is that of the strongest cell outside the stream."""
        self.charts = charts
        ids = _ids(charts)
        outside = [chart for chart in charts if chart.kind not in STREAM] or list(charts)
        outside.sort(key=lambda chart: -limit_of([_whole(chart)]))
        self.id = ids[chosen(Axis("map", ids, ids, "map"), ids.index(outside[0].id))]
        variants = list(dict.fromkeys(chart.variant for chart in charts if chart.id == self.id))
        self.variant = variants[chosen(Axis("dir", variants, variants, "variant"))]
        self.chart = next(chart for chart in charts if (chart.id, chart.variant) == (self.id, self.variant))
        strongest = {axis: _strongest(chart)[axis] for chart in reversed(outside) for axis in chart.parts}
        strongest |= _strongest(self.chart)
        tokens = next((chart.run.found.tokens for chart in charts if chart.run.found.tokens), ())
        maps = [(chart.parts, chart.run.found.map(chart.kind).shape) for chart in charts]
        self.layers = layer_axis(max(shape[0] for _, shape in maps))
        self.axes = {
            axis: column_axis(axis, max(wide), tokens)
            for axis in AXIS_NAMES
            if (wide := [shape[1 + parts.index(axis)] for parts, shape in maps if axis in parts])
        }
        self.layer = chosen(self.layers, strongest["layer"])
        self.at = {axis: chosen(columns, strongest.get(axis, 0)) for axis, columns in self.axes.items()}

    def map_of(self, chart: Chart, part: bool) -> Map | None:
        """Return the map of a chart, of heads at positions the plane of the chosen position."""
        values, spread = (chart.run.found.map(chart.kind, column) for column in ("score", "stderr"))
        title = chart.kind
        if chart.parts == ("pos", "head"):
            position = self.at["pos"]
            if position >= values.shape[1]:
                return None
            values, spread, title = values[:, position], spread[:, position], f"{chart.kind} at position {position}"
        if part:
            effect = chart.run.effect
            if not effect:
                return None
            values, spread = values / effect, spread / abs(effect)
        aside = f"{chart.variant}, layer by {AXIS_NAMES[chart.axis]}".lstrip(", ")
        also = {"map": chart.id, "dir": chart.variant}
        return Map(title, aside, values, chart.axis, spread, also, framed=chart.id == self.id)

    def draw(self, shape: tuple[str, ...], part: bool, limit: float | None) -> None:
        """Draw the maps of one shape."""
        charts = [chart for chart in self.charts if chart.parts == shape]
        maps = [one for chart in charts if (one := self.map_of(chart, part)) is not None]
        if len(maps) < len(charts):
            frame.note("A map without this position, or whose run does not say its effect, is left out.")
        variants = len({chart.variant for chart in charts})
        rows = [maps] if variants == 1 else [[m for m in maps if m.also["map"] == i] for i in _ids(charts)]
        for i, row in enumerate(rows):
            if row:
                draw_maps(
                    f"{'-'.join(shape)}-{i}", row, self.layers, self.axes[shape[-1]],
                    (self.layer, self.at[shape[-1]]), limit, "share of effect" if part else "effect",
                    across=min(variants, 3) if variants > 1 else None,
                )  # fmt: skip

    def details(self) -> None:
        """Draw the boxes and the drill-down of the chosen cell."""
        boxes(self.layers, self.axes[self.chart.axis], (self.layer, self.at[self.chart.axis]), "patched")
        if self.chart.parts == ("pos", "head"):
            box(self.axes["pos"], self.at["pos"], "patched-position")
        spot = Spot(self.chart.kind, self.layer, {axis: self.at[axis] for axis in self.chart.parts})
        runs = {c.variant: c.run for c in self.charts if c.id == self.id}
        if self.chart.run.cell(spot.kind, spot.layer, spot.parts, "score") is None:
            frame.note(f"{spot.name} was not patched. Click a coloured cell.")
            return
        patched_cell(runs, self.variant, spot)
        cell_links(self.chart.run, spot)


def _ids(charts: Sequence[Chart]) -> list[str]:
    return list(dict.fromkeys(chart.id for chart in charts))


def _whole(chart: Chart) -> Map:
    return Map("", "", chart.run.found.map(chart.kind), chart.axis)


def _strongest(chart: Chart) -> dict[str, int]:
    values = np.abs(np.nan_to_num(chart.run.found.map(chart.kind)))
    at = np.unravel_index(int(values.argmax()), values.shape)
    return dict(zip(("layer", *chart.parts), map(int, at), strict=True))
