"""What changes between two models: curves over layers, states of features, survival of each feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
from numpy.typing import NDArray

from interp.figures.style import BLUE, FAINT, GREEN, GREY, INK, ORANGE, POINTS_AS_SVG, PURPLE, SKY, figure

STATES: dict[str, tuple[str, str, str]] = {
    "kept": (BLUE, "circle", "r at least 0.9"),
    "blurred": (SKY, "square", "r from 0.5 to 0.9"),
    "lost": (ORANGE, "x", "r below 0.5"),
    "new": (GREEN, "diamond", "active in b, not in a"),
    "rare": (GREY, "triangle-up", "fires, but too rarely in both to say"),
    "silent": ("#d5dbe1", "circle-open", "never fires"),
}
"""State of a feature -> colour, marker, what it means with the usual thresholds."""
LINES = ((BLUE, "solid"), (ORANGE, "solid"), (GREEN, "solid"), (PURPLE, "dash"), ("#8a6d00", "dash"), (INK, "dash"),
         (SKY, "dot"), ("#7a3b00", "dot"))  # fmt: skip
"""Colour and dash of the series, in their order."""
_NULL_DASHES = ("dot", "dash", "dashdot", "longdash")
_WRITTEN = 0.04  # share of a bar from which its number is written into it
_LABEL, _LABEL_PIXELS, _LINE_PIXELS = 18, 7, 13  # characters, pixels a character, pixels between two labels


@dataclass(frozen=True)
class Series:
    """One line of `layer_curves`."""

    label: str
    """What stands at its end: plain text."""
    table: pa.Table | None
    """Rows of one site each, with `layer` and `kind` (or `site`); None is not drawn, but keeps its colour."""
    column: str
    """What is drawn."""
    null: bool = False
    """Whether it is a null: a grey line."""


def layer_curves(
    series: Sequence[Series],
    *,
    kind: str = "resid_post",
    log: bool = False,
    span: int | None = None,
    percent: bool = False,
    height: int = 200,
) -> go.Figure | None:
    """Return one number over the layers, a line for each series with its label at its end; None where nothing is drawn.

    Args:
        series: the lines; those that are no null take the colours of `LINES` in their order.
        kind: which sites, such as "resid_post".
        log: draw the values on a log scale; values that are not positive are left out.
        span: number of layers on the axis, for a row of figures that share it; None takes what the tables hold.
        percent: write the values as percentages.
        height: pixels.

    Raises:
        ValueError: a table lacks the column.
    """
    lines = [(one, *_points(one, kind, log), *_look(i, series)) for i, one in enumerate(series)]
    lines = [line for line in lines if line[1].size]
    if not lines:
        return None
    written = [line for line in lines if not line[0].null or sum(other[0].null for other in lines) <= 2]
    margin = 14 + _LABEL_PIXELS * max(min(_LABEL, len(line[0].label)) for line in written)
    fig = figure(height, showlegend=False, hovermode="closest", margin={"l": 8, "r": margin, "t": 6, "b": 8})
    write = ":.3~%" if percent else ":.4~g"
    for one, x, y, color, dash in lines:
        name = escape(one.label, quote=False)
        fig.add_scatter(
            x=x, y=y, mode="lines+markers", name=name, text=[name] * len(x), cliponaxis=False,
            line={"color": color, "width": 1.5 if one.null else 2, "dash": dash},
            marker={"size": 4 if one.null or len(x) > 1 else 8, "color": color},
            hovertemplate=f"%{{text}}<br>{kind}.%{{x}}: %{{y{write}}}<extra></extra>",
        )  # fmt: skip
    last = (span or max(int(line[1].max()) for line in lines) + 1) - 1
    _axes(fig, [line[2] for line in lines], last, log, percent)
    _end_labels(fig, written, height - 60)
    return fig


def _points(one: Series, kind: str, log: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if one.table is None:
        return np.zeros(0), np.zeros(0)
    if one.column not in one.table.column_names:
        there = ", ".join(one.table.column_names)
        raise ValueError(f"{one.label} has no column {one.column!r}. There are: {there}.")
    rows = [
        (row["layer"], row[one.column])
        for row in one.table.to_pylist()
        if (row.get("kind") or str(row.get("site", kind)).rpartition(".")[0]) == kind
    ]
    points = np.array(sorted((x, np.nan if y is None else y) for x, y in rows), np.float64).reshape(-1, 2)
    points = points[np.isfinite(points[:, 1]) & ((points[:, 1] > 0) | (not log))]
    return points[:, 0], points[:, 1]


def _look(at: int, series: Sequence[Series]) -> tuple[str, str]:
    before = sum(one.null == series[at].null for one in series[:at])
    return (GREY, _NULL_DASHES[before % len(_NULL_DASHES)]) if series[at].null else LINES[before % len(LINES)]


def _axes(fig: go.Figure, values: list[NDArray[np.float64]], last: int, log: bool, percent: bool) -> None:
    every = np.concatenate(values)
    low, high = float(every.min()), float(every.max())
    if log:
        low, high = np.log10(low), np.log10(high)
    elif 0 < low < 0.7 * high:
        low = 0.0
    room = (high - low) * 0.08 or abs(high) * 0.05 or 0.5
    low = low if low == 0 else low - room
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if last // s <= 12)
    fig.update_xaxes(range=[-0.3, last + 0.3], tickvals=list(range(0, last + 1, step)), fixedrange=True)
    fig.update_yaxes(range=[low, high + room], type="log" if log else "linear", nticks=5, fixedrange=True)
    fig.update_yaxes(tickformat=".3~%" if percent else "~g", exponentformat="e")


def _end_labels(fig: go.Figure, lines: Sequence[Any], pixels: int) -> None:
    """Write each label beside the end of its line, pushed apart where they would lie on each other."""
    layout: Any = fig.layout
    axis = layout.yaxis
    low, high = axis.range
    ends = [(np.log10(y[-1]) if axis.type == "log" else y[-1]) for _, _, y, _, _ in lines]
    wanted = sorted(range(len(lines)), key=lambda i: ends[i])
    gap = (high - low) * _LINE_PIXELS / pixels
    places: list[float] = []
    for i in wanted:
        places.append(max(float(ends[i]), places[-1] + gap if places else low))
    for free, i in zip(reversed(places), reversed(wanted), strict=True):
        place = min(free, high)
        high = place - gap
        one, _, _, color, _ = lines[i]
        text = one.label if len(one.label) <= _LABEL else one.label[: _LABEL - 1] + "…"
        fig.add_annotation(
            x=1, xref="paper", xanchor="left", xshift=4, y=place, yref="y", yanchor="middle", showarrow=False,
            text=escape(text, quote=False), font={"size": 11.5, "color": FAINT if one.null else color},
        )  # fmt: skip


def survival_bars(
    counts: Sequence[tuple[str, Mapping[str, float]]], *, muted: Sequence[bool] = (), height: int | None = None
) -> go.Figure:
    """Return one bar for each comparison: the features active in a by what became of them, and the new ones beyond.

    Args:
        counts: (label, {state: number of features}) from top to bottom; "kept", "blurred", "lost" and "new" are drawn.
        muted: which bars are drawn paler: the nulls.
        height: pixels; None takes what the bars need.
    """
    pale = list(muted) or [False] * len(counts)
    fig = figure(
        height or 34 * len(counts) + 86, barmode="stack", bargap=0.28, legend_traceorder="normal",
        margin={"l": 8, "r": 12, "t": 28, "b": 8},
    )  # fmt: skip
    rows = list(range(len(counts)))
    active = [max(1.0, sum(found.get(s) or 0 for s in ("kept", "blurred", "lost"))) for _, found in counts]
    for state in ("kept", "blurred", "lost", "new"):
        numbers = [found.get(state) or 0 for _, found in counts]
        fig.add_bar(
            y=rows, x=[n / of for n, of in zip(numbers, active, strict=True)], orientation="h", name=state,
            text=[f"{n:,.0f}" if n / of >= _WRITTEN else "" for n, of in zip(numbers, active, strict=True)],
            textposition="inside", insidetextanchor="middle", constraintext="none",
            insidetextfont={"color": INK if state == "blurred" else "#fff", "size": 11.5}, textangle=0,
            marker={"color": STATES[state][0], "opacity": [0.5 if p else 1.0 for p in pale], "line": {"width": 0},
                    "pattern": {"shape": "/" if state == "new" else "", "fillmode": "overlay", "fgcolor": "#fff",
                               "size": 5, "solidity": 0.25}},
            customdata=[[escape(label, quote=False), n] for (label, _), n in zip(counts, numbers, strict=True)],
            hovertemplate=f"%{{customdata[0]}}<br>{state} %{{customdata[1]:,}}: %{{x:.1%}} of active<extra></extra>",
        )  # fmt: skip
    short = [label if len(label) <= 26 else label[:25] + "…" for label, _ in counts]
    fig.update_yaxes(
        tickvals=rows, ticktext=[escape(label, quote=False) for label in short], showgrid=False, ticks="",
        range=[len(counts) - 0.5, -0.5], fixedrange=True, ticklabelstandoff=4,
    )  # fmt: skip
    fig.update_xaxes(
        tickformat=".0%", title_text="share of the features active in a", fixedrange=True, rangemode="tozero"
    )
    return fig


def survival_scatter(
    latents: pa.Table,
    against: str = "density_a",
    *,
    shown: NDArray[np.bool_] | None = None,
    hover: Sequence[str] | None = None,
    thresholds: tuple[float, float] = (0.5, 0.9),
    height: int = 400,
) -> go.Figure:
    """Return r of each feature against its density or its largest activation in a, on a log scale.

    Each point's `customdata` is `[latent]`, which a click returns. Features without an r, or that never fire in a (new
    ones), have no point.

    Args:
        latents: the table `survival.latents`.
        against: "density_a" or "peak_a".
        shown: [latents] which points are drawn; None draws all.
        hover: one line for each latent, such as its top tokens; escaped here.
        thresholds: the values of r between lost, blurred and kept, drawn as lines.
        height: pixels.

    Raises:
        ValueError: the table has no such column.
    """
    if against not in latents.column_names:
        there = ", ".join(latents.column_names)
        raise ValueError(f"against must be a column of the table, got {against!r}. There are: {there}.")
    number, r, x = (_column(latents, name) for name in ("latent", "r", against))
    state = np.array(latents["state"].to_pylist(), dtype=object)
    drawn = np.isfinite(r) & (x > 0) & (np.ones_like(r, dtype=bool) if shown is None else shown)
    lines = [escape(text, quote=False) for text in hover] if hover is not None else [""] * len(number)
    scatter = go.Scattergl if int(drawn.sum()) > POINTS_AS_SVG else go.Scatter
    fig = figure(height, dragmode=False, clickmode="event+select", hovermode="closest", margin={"t": 30, "r": 16})
    unit = "density %{x:.2%}" if against.startswith("density") else "peak %{x:.3g}"
    for name, (color, symbol, _) in STATES.items():
        at = np.flatnonzero(drawn & (state == name))
        if not at.size:
            continue
        look = {"marker": {"opacity": 0.75}}
        fig.add_trace(
            scatter(
                x=x[at], y=r[at], mode="markers", name=f"{name}, {at.size:,}", selected=look, unselected=look,
                marker={"color": color, "symbol": symbol, "size": 6.5, "opacity": 0.75, "line": {"width": 0}},
                customdata=[[int(number[i])] for i in at], text=[lines[i] for i in at],
                hovertemplate=f"latent %{{customdata[0]}}, {name}<br>r %{{y:.3f}} · {unit}<br>%{{text}}<extra></extra>",
            )
        )  # fmt: skip
    for value in thresholds:
        fig.add_hline(y=value, line={"color": "#c9d1d9", "width": 1, "dash": "dot"}, layer="below")
    _scatter_axes(fig, x[drawn], r[drawn], against)
    return fig


def _scatter_axes(fig: go.Figure, x: NDArray[np.float64], r: NDArray[np.float64], against: str) -> None:
    low, high = (float(np.log10(x.min())), float(np.log10(x.max()))) if x.size else (-4.0, 0.0)
    density = against.startswith("density")
    steps = (1,) if high - low > 1.5 else (1, 2, 5)
    at = [m * 10.0**d for d in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in steps]
    title = "density in a, share of tokens (log scale)" if density else "largest activation in a (log scale)"
    fig.update_xaxes(
        type="log", range=[low - 0.08, high + 0.08], tickvals=at, title_text=title, fixedrange=True, showgrid=True,
        ticktext=[f"{100 * v:.3g}%" if density else f"{v:g}" for v in at],
    )  # fmt: skip
    bottom = min(0.0, float(r.min())) if r.size else 0.0
    fig.update_yaxes(range=[bottom - 0.05, 1.05], title_text="r: correlation of its codes in a and b", fixedrange=True)


def _column(table: pa.Table, name: str) -> NDArray[np.float64]:
    return table.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
