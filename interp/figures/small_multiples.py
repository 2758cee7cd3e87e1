"""Small multiples on one axis of layers: a small figure for each measure, grouped, one model or two in each.

Parts of a layer (attention and MLP, or the matrices) are lines of their own; with two models colour is the model and
dash is the part. Intervals are bands. Models of different depth share the axis of relative depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

from interp.figures.style import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, SKY, TEMPLATE, ticks

MODELS = (BLUE, ORANGE)
"""Colours of the models where there are two."""
PARTS = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#8a6d00", "#7a3b00", INK)
"""Colours of the parts where there is one model."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
LABELLED = 8
"""Lines of a small figure whose part is written at the end; of more, hovering tells."""
CELL, HEAD, FOOT, GROUP, LEGEND = 128, 24, 26, 28, 28
"""Pixels of a plotting area, of its title, of its ticks, of a group's heading, and of the legend."""
LOGGED = 30.0, 10.0
"""The axis is logarithmic where all values are positive and the largest is above so many times the median, and above
the second number: shares and cosines stay as they are."""
TITLE = 46
"""Characters of title and unit that fit above a small figure; without room the unit is left to hovering."""
_BAND = 0.16
_ROOM = 0.3  # layers beside the first and the last


@dataclass(frozen=True)
class LayerLine:
    """One line of a small figure."""

    part: str
    """What of the layer it is; "" for all of it."""
    layers: Sequence[int]
    """Layers, -1 for the embeddings."""
    values: Sequence[float]
    """A value for each; NaN leaves a gap."""
    low: Sequence[float] = ()
    """Lower ends of intervals; none, or NaN, draws no band."""
    high: Sequence[float] = ()
    """Upper ends."""
    model: int = 0
    """Which model, 0 or 1."""
    blocks: int | None = None
    """Blocks of the model: the axis is then relative depth, 0 at the embeddings and 1 after the last block."""

    def places(self) -> list[float]:
        """Return where on the axis the values lie."""
        if self.blocks is None:
            return [float(layer) for layer in self.layers]
        return [(layer + 1) / self.blocks for layer in self.layers]


@dataclass(frozen=True)
class Multiple:
    """One small figure."""

    title: str
    """What is drawn."""
    lines: Sequence[LayerLine]
    """The lines."""
    unit: str = ""
    """Unit of the values."""
    note: str = ""
    """A sentence that hovering over the title shows."""
    group: str = ""
    """What it belongs to; figures of a group stand together under its name."""


def layer_multiples(
    multiples: Sequence[Multiple],
    models: Sequence[str] = ("",),
    *,
    columns: int = 4,
    layer: int | None = None,
    headings: bool = True,
) -> go.Figure:
    """Return one figure of small figures; the customdata of a click is `[layer, model]`.

    Args:
        multiples: what is drawn, in order; those of one group should follow each other.
        models: name of each model; two are drawn in two colours with a legend.
        columns: small figures beside each other.
        layer: a layer to mark by a line; not for relative depth.
        headings: write the name of each group above it.

    Raises:
        ValueError: nothing to draw, no column, or a line of a model that has no name.
    """
    if not multiples or columns < 1:
        raise ValueError(f"Small multiples need at least one figure and one column, got {len(multiples)}, {columns}.")
    if any(not 0 <= line.model < len(models) for one in multiples for line in one.lines):
        raise ValueError(f"A line's model must lie in 0..{len(models) - 1}, the models that are named.")
    places, height = _grid(multiples, columns, headings, LEGEND if len(models) > 1 else 0)
    relative = any(line.blocks is not None for one in multiples for line in one.lines)
    fig = go.Figure(layout={"template": TEMPLATE, "height": height, "showlegend": len(models) > 1})
    fig.update_layout(
        margin={"l": 0, "r": 0, "t": 0, "b": 0}, hovermode="closest", hoverdistance=-1, dragmode=False,
        clickmode="event+select", legend={"x": 0, "y": 1, "xanchor": "left", "yanchor": "top"},
    )  # fmt: skip
    span = _span(multiples)
    for i, (one, place) in enumerate(zip(multiples, places, strict=True), 1):
        _axes(fig, i, one, place, height, span, relative)
        _lines(fig, i, one, models)
        if layer is not None and not relative:
            fig.add_vline(
                x=layer,
                line={"color": FAINT, "width": 1, "dash": "dot"},
                xref=_ref("x", i),
                yref=f"{_ref('y', i)} domain",
            )
    if headings:
        _headings(fig, multiples, places, height)
    fig.add_annotation(
        x=places[-1].left, xref="paper", xanchor="left", y=0, yref="paper", yanchor="bottom", showarrow=False,
        text="depth, share of the blocks" if relative else "layer", font={"size": 11, "color": FAINT},
    )  # fmt: skip
    _legend(fig, models)
    return fig


@dataclass(frozen=True)
class _Place:
    left: float
    right: float
    """Shares of the width."""
    top: int
    """Pixels from the upper edge of the figure to that of the plotting area."""
    heading: int
    """Pixels to where the heading of its group would stand."""


def _grid(multiples: Sequence[Multiple], columns: int, headings: bool, above: int) -> tuple[list[_Place], int]:
    """Return where each small figure goes, and the height of the whole."""
    gap = 0.012 if columns > 1 else 0.0
    width = (1 - gap * (columns - 1)) / columns
    places: list[_Place] = []
    y, column, group = above, columns, None
    for i, one in enumerate(multiples):
        new = one.group != group
        if new or column == columns:
            y += (HEAD + CELL + FOOT if i else 0) + (GROUP if new and headings else 0)
            column, group = 0, one.group
        left = column * (width + gap)
        places.append(_Place(left + 0.2 * width, left + 0.82 * width, y + HEAD, y - GROUP))
        column += 1
    return places, y + HEAD + CELL + FOOT + 14


def _ref(axis: str, i: int) -> str:
    return axis if i == 1 else f"{axis}{i}"


def _span(multiples: Sequence[Multiple]) -> tuple[float, float]:
    every = [place for one in multiples for line in one.lines for place in line.places()]
    return (min(every, default=0.0), max(every, default=1.0))


def _axes(
    fig: go.Figure, i: int, one: Multiple, place: _Place, height: int, span: tuple[float, float], relative: bool
) -> None:
    """Lay out the axes and the title of a small figure."""
    top, bottom = 1 - place.top / height, 1 - (place.top + CELL) / height
    low, high = span
    room = 0.03 if relative else _ROOM
    x: dict[str, Any] = {"range": [low - room, high + room], "domain": [place.left, place.right], "fixedrange": True}
    if relative:
        x |= {"tickvals": [0, 0.5, 1], "tickformat": ".0%"}
    else:
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if (high - low) / s <= 12)
        at = list(range(0, int(high) + 1, step))
        x |= {"tickvals": at}
    fig.update_layout({f"xaxis{i if i > 1 else ''}": {**x, "anchor": _ref("y", i)}})
    values = [v for line in one.lines for v in (*line.values, *line.low, *line.high) if math.isfinite(v)]
    scale = _scale(values)
    y: dict[str, Any] = {"domain": [bottom, top], "anchor": _ref("x", i), "fixedrange": True}
    fig.update_layout({f"yaxis{i if i > 1 else ''}": {**y, **scale}})
    unit = " · ".join(text for text in (one.unit, "log scale" if scale.get("type") == "log" else "") if text)
    fits = len(one.title) + len(unit) <= TITLE
    aside = f' <span style="color:{FAINT}">{escape(unit, quote=False)}</span>' if unit and fits else ""
    title = one.title if len(one.title) <= TITLE else one.title[: TITLE - 1] + "…"
    fig.add_annotation(
        x=place.left - 0.8 * (place.right - place.left) / 3.3, xref="paper", xanchor="left",
        y=1, yref=f"{_ref('y', i)} domain", yanchor="bottom",
        yshift=4, showarrow=False, text=f"{escape(title, quote=False)}{aside}", font={"size": 12, "color": INK},
        hovertext=escape(one.note, quote=False) or None, captureevents=bool(one.note),
    )  # fmt: skip


def _scale(values: Sequence[float]) -> dict[str, Any]:
    """Return range and ticks: from 0 where that wastes little, never a line on the edge, logarithmic if need be."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    look = {"tickformat": "~s" if high >= 10_000 else "~g", "exponentformat": "e", "nticks": 4}
    if low > 0 and high > max(LOGGED[1], LOGGED[0] * sorted(values)[len(values) // 2]):
        low, high = math.log10(low), math.log10(high)
        at = ticks(10**low, 10**high)
        return look | {"type": "log", "range": [low - 0.1, high + 0.1], "tickvals": at[:: max(1, len(at) // 4)]}
    if 0 < low < 0.7 * high:
        low = 0.0
    room = (high - low) * 0.08 or abs(high) * 0.05 or 0.5
    return look | {"range": [low if low == 0 else low - room, high + room]}


def _lines(fig: go.Figure, i: int, one: Multiple, models: Sequence[str]) -> None:
    """Draw bands and lines, and write the parts at their ends."""
    parts = list(dict.fromkeys(line.part for line in one.lines))
    many = len(parts) > LABELLED
    axes = {"xaxis": _ref("x", i), "yaxis": _ref("y", i)}
    ends: dict[str, tuple[float, float, str]] = {}
    for line in one.lines:
        at = parts.index(line.part)
        two = len(models) > 1
        color = MODELS[line.model % 2] if two or many else PARTS[at % len(PARTS)]
        x = line.places()
        _band(fig, line, x, color, axes)
        name = " · ".join(escape(text, quote=False) for text in (line.part, models[line.model] if two else "") if text)
        unit = f" {escape(one.unit, quote=False)}" if one.unit else ""
        fig.add_scatter(
            x=x, y=list(line.values), mode="lines+markers", showlegend=False, cliponaxis=False, **axes,
            line={"color": color, "width": 1 if many else 1.7, "dash": DASHES[at % len(DASHES)] if two else "solid"},
            marker={"size": 3 if many else 4 if len(x) > 1 else 7, "color": color}, opacity=0.55 if many else 1,
            selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}},
            customdata=[[layer, line.model] for layer in line.layers],
            text=[_point(name, layer, low, high) for layer, low, high in _intervals(line)],
            hovertemplate=f"%{{text}}<br>{escape(one.title, quote=False)} %{{y:.4~g}}{unit}<extra></extra>",
        )  # fmt: skip
        last = [(place, value) for place, value in zip(x, line.values, strict=True) if math.isfinite(value)]
        if last and line.part and (line.part not in ends or not two):
            ends[line.part] = (*last[-1], FAINT if two else color)
    if not many:
        _end_labels(fig, i, ends)


def _intervals(line: LayerLine) -> list[tuple[int, float, float]]:
    nothing = [math.nan] * len(line.layers)
    return list(zip(line.layers, line.low or nothing, line.high or nothing, strict=True))


def _point(name: str, layer: int, low: float, high: float) -> str:
    place = f"layer {layer}" if layer >= 0 else "embeddings"
    interval = f", {low:.4g} to {high:.4g}" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{name} · {place}{interval}" if name else f"{place}{interval}"


def _band(fig: go.Figure, line: LayerLine, x: Sequence[float], color: str, axes: dict[str, str]) -> None:
    found = [(p, lo, hi) for p, (_, lo, hi) in zip(x, _intervals(line), strict=True) if math.isfinite(lo + hi)]
    if not found:
        return
    places, low, high = (list(column) for column in zip(*found, strict=True))
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    fig.add_scatter(
        x=[*places, *places[::-1]], y=[*high, *low[::-1]], mode="lines", fill="toself", hoverinfo="skip",
        showlegend=False, line={"width": 0}, fillcolor=f"rgba({red},{green},{blue},{_BAND})", **axes,
    )  # fmt: skip


def _end_labels(fig: go.Figure, i: int, ends: dict[str, tuple[float, float, str]]) -> None:
    """Write each part beside the end of its line, pushed apart where two would lie on each other."""
    layout: Any = fig.layout
    axis = layout[f"yaxis{i if i > 1 else ''}"]
    low, high = axis.range
    gap = (high - low) * 12 / CELL
    heights = {part: math.log10(y) if axis.type == "log" else y for part, (_, y, _) in ends.items()}
    order = sorted(ends, key=lambda part: heights[part])
    places: list[float] = []
    for part in order:
        places.append(max(heights[part], places[-1] + gap if places else -math.inf))
    for j in range(len(order) - 1, -1, -1):
        places[j] = min(places[j], high if j == len(order) - 1 else places[j + 1] - gap)
    for part, y in zip(order, places, strict=True):
        text = part if len(part) <= 12 else part[:11] + "…"
        fig.add_annotation(
            x=ends[part][0], xref=_ref("x", i), xanchor="left", xshift=5, y=y, yref=_ref("y", i), yanchor="middle",
            showarrow=False, text=escape(text, quote=False), font={"size": 10.5, "color": ends[part][2]},
        )  # fmt: skip


def _headings(fig: go.Figure, multiples: Sequence[Multiple], places: Sequence[_Place], height: int) -> None:
    group = None
    for one, place in zip(multiples, places, strict=True):
        if one.group != group:
            group = one.group
            fig.add_annotation(
                x=0, xref="paper", xanchor="left", y=1 - place.heading / height, yref="paper", yanchor="top",
                showarrow=False, text=f"<b>{escape(group, quote=False)}</b>", font={"size": 13, "color": FAINT},
            )  # fmt: skip


def _legend(fig: go.Figure, models: Sequence[str]) -> None:
    if len(models) < 2:
        return
    for name, color in zip(models, MODELS, strict=False):
        fig.add_scatter(
            x=[None], y=[None], mode="lines", name=escape(name, quote=False), showlegend=True,
            line={"color": color, "width": 2.5},
        )  # fmt: skip
