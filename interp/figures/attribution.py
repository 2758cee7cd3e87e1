"""Pictures of an attribution: maps over layers, how methods agree, how scores compare with patching, conservation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol, runtime_checkable

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from interp.figures.heat import heat_map
from interp.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, figure

SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x")
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)


@runtime_checkable
class Scores(Protocol):
    """What is drawn: an `interp.attribution.Attribution`."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """What stands at each position."""
        ...

    def map(self, kind: str, column: str = "score") -> np.ndarray:
        """Scores of a kind, [layer ...]."""
        ...

    def parts(self, kind: str) -> tuple[str, ...]:
        """Names of the axes after the layer."""
        ...


def attribution_map(
    found: Scores,
    kind: str,
    *,
    column: str = "score",
    position: int | None = None,
    limit: float | None = None,
    selected: tuple[int, int] | None = None,
) -> go.Figure:
    """Return the scores of one kind as a heat map, layer 0 on top: blue helps the clean answer, orange hurts.

    Cells by position and head are drawn as [layer head] at `position`, or at the position of the largest score.

    Args:
        found: the attribution.
        kind: kind of site.
        column: `score`, `measured` or `stderr`.
        position: of maps [layer pos head].
        limit: |score| of the full colour, shared by several maps; None takes the largest one.
        selected: (layer, column) of a cell to frame.

    Raises:
        ValueError: there is no such kind, or it has no axis but the layer.
    """
    values, labels, title = plane(found, kind, column, position)
    return heat_map(
        values, [str(layer) for layer in range(len(values))], labels, signed=True, limit=limit, selected=selected,
        titles=("layer", title, f"{kind}: {column}"),
        hover=[[f"{kind} · layer {layer} · {title} {label}" for label in labels] for layer in range(len(values))],
    )  # fmt: skip


def plane(
    found: Scores, kind: str, column: str = "score", position: int | None = None
) -> tuple[Float[np.ndarray, "layer cell"], list[str], str]:
    """Return the map of a kind as (values [layer cell], label of each column, what the columns are).

    Of a map [layer pos head] it is the plane at `position`, or at the position of the largest score.
    """
    values, parts = found.map(kind, column), found.parts(kind)
    if not parts:
        return values[:, None], [kind], ""
    if parts == ("pos",):
        return values, position_labels(found.tokens, values.shape[1]), "position"
    if parts[0] == "pos":
        scores = np.abs(np.nan_to_num(found.map(kind)))
        at = int(scores.max(axis=(0, 2)).argmax()) if position is None else position
        values = values[:, at]
    return values, [str(i) for i in range(values.shape[1])], parts[-1]


def position_labels(tokens: Sequence[str], n: int) -> list[str]:
    """Return one label for each of `n` positions: its number and what stands there, if that is known."""
    return [f"{i} {tokens[i]!r}" if i < len(tokens) and tokens[i] else str(i) for i in range(n)]


def agreement_matrix(names: Sequence[str], values: Float[np.ndarray, "method method"]) -> go.Figure:
    """Return correlations between methods as a matrix from -1 to 1, each written into its cell."""
    fig = heat_map(values, names, names, signed=True, limit=1.0, titles=("", "", "correlation"))
    notes: list[dict[str, Any]] = []
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if np.isfinite(value):
                ink = "#ffffff" if abs(value) > 0.42 else INK
                note: dict[str, Any] = {"text": f"{value:.2f}", "showarrow": False, "font": {"size": 12, "color": ink}}
                notes.append(note | {"x": column, "y": row})
    fig.update_layout(annotations=notes)
    return fig


def estimate_scatter(
    measured: Sequence[float], groups: Mapping[str, Sequence[float]], hover: Sequence[str] | None = None
) -> go.Figure:
    """Return estimated effects against measured ones, one colour and shape for each method; the line is equality."""
    every = np.concatenate([np.asarray(measured, float), *(np.asarray(v, float) for v in groups.values())])
    finite = every[np.isfinite(every)]  # a method has no value (NaN) at a cell that it does not score
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = 0.05 * (high - low or 1.0)
    ends = [low - margin, high + margin]
    fig = figure(340, hovermode="closest")
    fig.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": GREY, "width": 1, "dash": "dot"}, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    lines = [escape(line, quote=False) for line in hover] if hover is not None else None
    for i, (name, values) in enumerate(groups.items()):
        fig.add_scatter(
            x=list(measured), y=list(values), mode="markers", name=escape(name, quote=False), text=lines,
            marker={"size": 7, "opacity": 0.75, "color": COLOURS[i % 6], "symbol": SYMBOLS[i % 6]},
            hovertemplate="%{text}<br>measured %{x:.4g}, estimated %{y:.4g}<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title_text="effect measured by patching", range=ends)
    fig.update_yaxes(title_text="estimate")
    return fig


def conservation_curve(rows: Sequence[Mapping[str, Any]], total: str = "total", *, share: bool = False) -> go.Figure:
    """Return what the scores of each layer add up to against what they should.

    Args:
        rows: rows of `Attribution.completeness`, several methods told apart by a key `method`; the keys `kind`,
            `layer`, `explained` and the one that `total` names are read.
        total: key of what the scores should add up to.
        share: draw shares of that, so that methods which explain different totals have one goal: 100%.
    """
    fig = figure(280, hovermode="x unified")
    rows = [row for row in rows if not share or _goal(row, total)]
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        name = " · ".join(str(row[key]) for key in ("method", "kind") if row.get(key))
        curves.setdefault(name, []).append(row)
    for i, (name, points) in enumerate(curves.items()):
        sums = [p["explained"] / _goal(p, total) if share else p["explained"] for p in points]
        fig.add_scatter(
            x=[p["layer"] for p in points], y=sums, mode="lines+markers", name=escape(name, quote=False),
            line={"color": COLOURS[i % 6], "width": 2}, marker={"symbol": SYMBOLS[i % 6], "size": 7},
        )  # fmt: skip
    goals = [1.0] if share else _distinct([_goal(row, total) for row in rows if row.get(total) is not None])
    for goal in goals if len(goals) <= 2 else ():
        fig.add_hline(y=goal, line={"color": GREY, "width": 1, "dash": "dot"})
    fig.update_xaxes(title_text="layer", dtick=1 if len({row["layer"] for row in rows}) <= 16 else None)
    fig.update_yaxes(title_text="sum of scores", tickformat=".0%" if share else None)
    if share:
        fig.update_yaxes(title_text="sum of scores, as a share of what it should be", rangemode="tozero")
    return fig


def _goal(row: Mapping[str, Any], total: str) -> float:
    return float(row.get(total) or 0.0)


def _distinct(values: Sequence[float]) -> list[float]:
    """Return the values that differ by more than what float32 rounds away."""
    found: list[float] = []
    for value in sorted(values):
        if not found or abs(value - found[-1]) > 1e-4 * max(abs(value), abs(found[-1])):
            found.append(value)
    return found


def prompt_values(groups: Mapping[str, Sequence[float]], labels: Sequence[str], unit: str = "score") -> go.Figure:
    """Return the score of one cell at each prompt, a colour and shape for each method; the first one gives the order.

    A click's customdata is `[prompt]`.

    Args:
        groups: method -> one value for each prompt.
        labels: a line for each prompt, for hovering; escaped here.
        unit: what the values are.
    """
    first = np.asarray(next(iter(groups.values())), float)
    order = np.argsort(-first, kind="stable")
    fig = figure(260, hovermode="closest", clickmode="event+select", dragmode=False)
    fig.add_hline(y=0, line={"color": GREY, "width": 1})
    lines = [escape(f"prompt {i}: {labels[i]}", quote=False) for i in order]
    for i, (name, values) in enumerate(groups.items()):
        fig.add_scatter(
            x=list(range(len(order))), y=np.asarray(values, float)[order].tolist(), mode="markers",
            name=escape(name, quote=False), text=lines, customdata=[[int(at)] for at in order],
            marker={"size": 8, "opacity": 0.8, "color": COLOURS[i % 6], "symbol": SYMBOLS[i % 6]},
            hovertemplate="%{text}<br>%{y:.4g}<extra>" + escape(name, quote=False) + "</extra>",
            selected={"marker": {"opacity": 0.8}}, unselected={"marker": {"opacity": 0.8}},
        )  # fmt: skip
    few = len(order) <= 24
    fig.update_xaxes(
        title_text=f"prompts, by {escape(next(iter(groups)), quote=False)}", fixedrange=True,
        tickvals=list(range(len(order))) if few else [], ticktext=[str(i) for i in order] if few else [],
    )  # fmt: skip
    fig.update_yaxes(title_text=escape(unit, quote=False), fixedrange=True)
    return fig
