"""What probes found: a measure over the layers with its intervals and what it has to beat; effect against strength."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.figures.comparison import LINES
from interp.figures.style import BLUE, FAINT, GREY, ORANGE, TEMPLATE, figure

DASHES = ("dot", "dash", "dashdot", "longdash", "longdashdot")
_BAND = 0.15
_LABEL, _LETTER, _ROW = 22, 6.6, 14  # letters, pixels of a letter, pixels between two labels


@dataclass(frozen=True)
class ProbeCurve:
    """One line over the layers."""

    label: str
    """What stands at its end: plain text."""
    layers: Sequence[int]
    """Layers."""
    values: Sequence[float]
    """A value for each; NaN leaves a gap."""
    low: Sequence[float] = ()
    """Lower ends of intervals; none, or NaN, draws no band."""
    high: Sequence[float] = ()
    """Upper ends."""
    beside: bool = False
    """Whether it is what the probe has to beat: a thin grey line."""


def probe_curves(
    curves: Sequence[ProbeCurve], *, title: str = "accuracy", percent: bool = True, height: int = 270
) -> go.Figure:
    """Return a measure over the layers; the customdata of a click is `[layer]`.

    Args:
        curves: the lines, those to beat marked as such.
        title: what is measured.
        percent: write the values as percentages.
        height: pixels.

    Raises:
        ValueError: no curve holds a number.
    """
    drawn = [one for one in curves if any(math.isfinite(value) for value in one.values)]
    if not drawn:
        raise ValueError("There is no number to draw: every value is missing.")
    longest = max(min(_LABEL, len(one.label)) for one in drawn)
    fig = figure(height, showlegend=False, hovermode="closest", clickmode="event+select", dragmode=False)
    fig.update_layout(margin={"l": 8, "r": 16 + _LETTER * longest, "t": 8, "b": 8}, hoverdistance=40)
    looks = _looks(drawn)
    for one, (color, dash) in sorted(zip(drawn, looks, strict=True), key=lambda pair: not pair[0].beside):
        _curve(fig, one, color, dash, title, ".1%" if percent else ".3f")
    last = max(max(one.layers) for one in drawn)
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if last / s <= 12)
    first = min(0, *(min(one.layers) for one in drawn))
    fig.update_xaxes(
        range=[first - 0.25, last + 0.25], tickvals=list(range(0, last + 1, step)), title_text="layer", fixedrange=True
    )
    found = [v for one in drawn for v in (*one.values, *one.low, *one.high) if math.isfinite(v)]
    room = 0.06 * (max(found) - min(found)) or 0.05
    low, high = min(found) - room, max(found) + room
    fig.update_yaxes(range=[low, high], nticks=6, fixedrange=True, tickformat=".0~%" if percent else ".2~f")
    _labels(fig, drawn, looks, low, high, height - 70)
    return fig


def _looks(curves: Sequence[ProbeCurve]) -> list[tuple[str, str]]:
    found = []
    for i, one in enumerate(curves):
        before = sum(other.beside == one.beside for other in curves[:i])
        found.append((GREY, DASHES[before % len(DASHES)]) if one.beside else LINES[before % len(LINES)])
    return found


def _curve(fig: go.Figure, one: ProbeCurve, color: str, dash: str, title: str, write: str) -> None:
    name = escape(one.label, quote=False)
    nothing = [math.nan] * len(one.layers)
    low, high = list(one.low) or nothing, list(one.high) or nothing
    banded = [(x, a, b) for x, a, b in zip(one.layers, low, high, strict=True) if math.isfinite(a + b)]
    if banded:
        x, a, b = (list(column) for column in zip(*banded, strict=True))
        red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
        fig.add_scatter(
            x=[*x, *x[::-1]], y=[*b, *a[::-1]], mode="lines", fill="toself", hoverinfo="skip",
            line={"width": 0}, fillcolor=f"rgba({red},{green},{blue},{_BAND})",
        )  # fmt: skip
    texts = [
        f", 95 % {a:{write}} to {b:{write}}" if math.isfinite(a + b) else "" for a, b in zip(low, high, strict=True)
    ]
    fig.add_scatter(
        x=list(one.layers), y=list(one.values), mode="lines+markers", name=name, text=texts, cliponaxis=False,
        line={"color": color, "width": 1.4 if one.beside else 2.2, "dash": dash},
        marker={"size": 4 if one.beside else 8, "color": color}, customdata=[[layer] for layer in one.layers],
        selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}},
        hovertemplate=f"{name}<br>layer %{{x}}: {escape(title, quote=False)} %{{y:{write}}}%{{text}}<extra></extra>",
    )  # fmt: skip


def _labels(
    fig: go.Figure,
    curves: Sequence[ProbeCurve],
    looks: Sequence[tuple[str, str]],
    low: float,
    high: float,
    pixels: int,
) -> None:
    """Write each label beside the end of its line, pushed apart where two would lie on each other."""
    ends = [next(v for v in reversed(one.values) if math.isfinite(v)) for one in curves]
    order = sorted(range(len(curves)), key=lambda i: ends[i])
    gap = (high - low) * _ROW / pixels
    places: list[float] = []
    for i in order:
        places.append(max(ends[i], places[-1] + gap if places else -math.inf))
    for j in reversed(range(len(places))):
        places[j] = min(places[j], high if j == len(places) - 1 else places[j + 1] - gap)
    for place, i in zip(places, order, strict=True):
        text = curves[i].label if len(curves[i].label) <= _LABEL else curves[i].label[: _LABEL - 1] + "…"
        fig.add_annotation(
            x=1, xref="paper", xanchor="left", xshift=4, y=place, yref="y", yanchor="middle", showarrow=False,
            text=escape(text, quote=False), font={"size": 11.5, "color": FAINT if curves[i].beside else looks[i][0]},
        )  # fmt: skip


DIRECTIONS = {"probe": (BLUE, "along the probe"), "mean_difference": (ORANGE, "along the difference in means")}
"""Direction of a causal check -> colour, what the legend says."""


def strength_curves(rows: Sequence[Mapping[str, Any]], value: str, title: str, *, height: int = 230) -> go.Figure:
    """Return the effect of moving along a direction against how far, with all random directions as a grey band.

    Args:
        rows: of `probes.causal.causal_check`: direction, draw, strength and `value`.
        value: the column that is drawn.
        title: what it is.
        height: pixels.

    Raises:
        ValueError: no row has the value.
    """
    rows = [row for row in rows if row.get(value) is not None]
    if not rows:
        raise ValueError(f"There is no {value} to draw.")
    fig = go.Figure(layout={"template": TEMPLATE, "height": height, "hovermode": "closest"})
    strengths = sorted({row["strength"] for row in rows})
    random = [[row[value] for row in rows if row["direction"] == "random" and row["strength"] == s] for s in strengths]
    if all(random):
        low, high = [min(values) for values in random], [max(values) for values in random]
        fig.add_scatter(
            x=[*strengths, *strengths[::-1]], y=[*high, *low[::-1]], mode="lines", fill="toself", hoverinfo="skip",
            line={"width": 0}, fillcolor="rgba(139,152,165,0.3)", showlegend=True,
            name=f"{len(random[0])} random directions, lowest to highest",
        )  # fmt: skip
        fig.add_scatter(
            x=strengths, y=[float(np.mean(values)) for values in random], mode="lines", showlegend=False,
            line={"color": GREY, "width": 1.2, "dash": "dot"},
            hovertemplate="mean of random directions<br>%{y:.3~g} at strength %{x}<extra></extra>",
        )  # fmt: skip
    for name, (color, said) in DIRECTIONS.items():
        own = sorted((row["strength"], row[value]) for row in rows if row["direction"] == name)
        if own:
            fig.add_scatter(
                x=[x for x, _ in own], y=[y for _, y in own], mode="lines+markers", name=said,
                line={"color": color, "width": 2}, marker={"size": 6},
                hovertemplate=f"{said}<br>%{{y:.3~g}} at strength %{{x}}<extra></extra>",
            )  # fmt: skip
    fig.update_xaxes(title_text="strength", zeroline=True, fixedrange=True)
    fig.update_yaxes(title_text=escape(title, quote=False), nticks=5, fixedrange=True)
    return fig
