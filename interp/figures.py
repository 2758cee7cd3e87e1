"""Figures: pure functions from tables to Plotly figures, for pages and notebooks alike.

One quiet template (no frame, faint grid, direct labels) and the colours of Okabe and Ito (2008), which stay apart for
colour-blind readers; where colour carries a class, a marker shape carries it too. Text from a model is escaped, for
Plotly reads its labels as markup (it knows &lt; and &amp; but not &quot;).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
from numpy.typing import NDArray

BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#9aa5b1"
INK, FAINT, LINE = "#1c2733", "#5b6875", "#e6eaee"
FONT = '"Source Sans", "Source Sans Pro", system-ui, sans-serif'

_AXIS: dict[str, Any] = {
    "gridcolor": LINE,
    "linecolor": "#c9d1d9",
    "zeroline": False,
    "ticks": "outside",
    "tickcolor": "#c9d1d9",
    "ticklen": 4,
    "tickfont": {"size": 12, "color": FAINT},
    "title": {"font": {"size": 12, "color": FAINT}, "standoff": 8},
    "automargin": True,
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 12, "color": INK},
        "colorway": [BLUE, ORANGE, GREEN, PURPLE, SKY, GREY],
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "xaxis": {**_AXIS, "showgrid": False, "showline": True},
        "yaxis": _AXIS,
        "hoverlabel": {"bgcolor": INK, "bordercolor": INK, "font": {"color": "#fff", "size": 12, "family": FONT}},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 12, "color": FAINT}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": INK},
    }
)

METRICS: dict[str, str] = {
    "max": "largest activation",
    "mean": "mean of the active",
    "nearest_cosine": "cosine to the nearest decoder row",
    "enc_dec_cosine": "cosine of encoder and decoder",
    "token_entropy": "entropy of the top tokens (nats)",
    "kurtosis": "kurtosis of the active",
    "skew": "skew of the active",
    "decoder_norm": "norm of the decoder row",
    "encoder_norm": "norm of the encoder row",
    "bias": "encoder bias",
}
"""Column of latents.parquet -> axis title, in the order in which a menu offers them."""

_POINTS_AS_SVG = 3000  # more are drawn by WebGL, which is faster but needs a graphics context


def figure(height: int, **layout: Any) -> go.Figure:
    """Return an empty figure of `height` pixels in the house template."""
    return go.Figure(layout={"template": TEMPLATE, "height": height, **layout})


def ticks(low: float, high: float) -> list[float]:
    """Return 1-2-5 values between `low` and `high` (both positive) for an axis on a log scale: about five of them."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
        if len(found) <= 7:
            break
    return found[:: max(1, round(len(found) / 6))]


def activation_histogram(
    counts: Sequence[int] | NDArray[np.integer],
    edges: Sequence[float] | NDArray[np.floating],
    *,
    marker: float | None = None,
    marker_label: str = "here",
    height: int = 190,
) -> go.Figure:
    """Return how often a latent takes each value: geometric bins, log counts, so a bar's width is a ratio.

    Args:
        counts: tokens in each bin, [bins].
        edges: limits of the bins, [bins+1], growing and positive (absolute values of the activation).
        marker: a value to mark by a line, such as the activation on somebody's own text.
        marker_label: what stands beside that line.
        height: pixels.

    Raises:
        ValueError: there is not one edge more than counts, or the edges do not grow from above 0.
    """
    n, limits = np.asarray(counts, dtype=np.int64), np.asarray(edges, dtype=np.float64)
    if limits.ndim != 1 or n.shape != (limits.size - 1,) or limits[0] <= 0 or not (np.diff(limits) > 0).all():
        raise ValueError(
            f"A histogram needs growing positive edges, one more than counts, got {limits.size} and {n.size}."
        )
    full = np.flatnonzero(n)
    first, last = (full[0], full[-1] + 1) if full.size else (0, n.size)
    n, limits = n[first:last], limits[first : last + 1]
    shown = figure(height, bargap=0.06, showlegend=False)
    # On a linear axis of log10 values the bars keep their widths; a log axis would place them by their middle only.
    x = np.log10(limits)
    hover = [
        f"{a:.3g} to {b:.3g}<br>{c:,} token{'' if c == 1 else 's'}"
        for a, b, c in zip(limits, limits[1:], n, strict=False)
    ]
    shown.add_bar(
        x=(x[:-1] + x[1:]) / 2, y=n, width=np.diff(x) * 0.94, marker={"color": BLUE, "line": {"width": 0}},
        customdata=hover, hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    at = ticks(limits[0], limits[-1])
    shown.update_xaxes(tickvals=np.log10(at), ticktext=[f"{v:g}" for v in at], title_text="activation (log scale)")
    shown.update_xaxes(range=_span(x, marker))
    most = float(n.max()) if n.size and n.max() > 0 else 1.0
    decades = [10**d for d in range(int(np.log10(most)) + 2)]
    shown.update_yaxes(type="log", title_text="tokens", range=[np.log10(0.7), np.log10(most * 1.8)])
    shown.update_yaxes(tickvals=decades, ticktext=[_si(v) for v in decades])
    if marker is not None and marker > 0:
        shown.add_vline(
            x=np.log10(marker), line={"color": ORANGE, "width": 2}, annotation_text=escape(marker_label, quote=False),
            annotation={"font": {"color": ORANGE, "size": 12}, "yref": "paper", "y": 1.0},
        )  # fmt: skip
    return shown


def _si(value: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value // size}{letter}"
    return str(value)


def _span(x: NDArray[np.floating], marker: float | None) -> list[float]:
    low, high = float(x[0]), float(x[-1])
    if marker is not None and marker > 0:
        low, high = min(low, float(np.log10(marker))), max(high, float(np.log10(marker)))
    margin = 0.02 * (high - low)
    return [low - margin, high + margin]


def density_scatter(
    latents: pa.Table,
    metric: str = "max",
    *,
    shown: NDArray[np.bool_] | None = None,
    dense_from: float = 0.1,
    hover: Sequence[str] | None = None,
    height: int = 420,
) -> go.Figure:
    """Return density (log scale) against `metric`, one point a latent; dead latents have no density and no point.

    Each point's `customdata` is `[latent]`, which a click returns.

    Args:
        latents: latents.parquet of a features run, or some columns of it.
        metric: a column of it, see `METRICS`.
        shown: [latents] which points are in colour, the others are faint and answer no click; None colours all.
        dense_from: density from which a latent counts as dense.
        hover: one line for each latent, such as its top tokens; escaped here.
        height: pixels.

    Raises:
        ValueError: the table has no such column.
    """
    if metric not in latents.column_names:
        raise ValueError(
            f"metric must be a column of the table, got {metric!r}. There are: {', '.join(latents.column_names)}."
        )
    number, density, y = (_column(latents, name) for name in ("latent", "density", metric))
    alive = (density > 0) & np.isfinite(y)
    chosen = alive & (np.ones_like(alive) if shown is None else np.asarray(shown, dtype=bool))
    lines = [escape(text, quote=False) for text in hover] if hover is not None else [""] * len(number)
    scatter = go.Scattergl if int(alive.sum()) > _POINTS_AS_SVG else go.Scatter
    fig = figure(height, dragmode=False, clickmode="event+select", hovermode="closest")
    rest = np.flatnonzero(alive & ~chosen)
    if rest.size:
        faint = {"color": "#d5dbe1", "size": 4}
        fig.add_trace(
            scatter(x=density[rest], y=y[rest], mode="markers", marker=faint, hoverinfo="skip", showlegend=False)
        )
    line = f"latent %{{customdata[0]}}<br>density %{{x:.2%}}<br>{metric} %{{y:.3g}}<br>%{{text}}<extra></extra>"
    for name, mask, color, symbol in (
        ("sparse", density < dense_from, BLUE, "circle"),
        (f"dense (from {100 * dense_from:g}%)", density >= dense_from, ORANGE, "diamond"),
    ):
        index = np.flatnonzero(chosen & mask)
        if index.size:
            fig.add_trace(
                scatter(
                    x=density[index],
                    y=y[index],
                    mode="markers",
                    name=f"{name}, {index.size:,}",
                    marker={"color": color, "symbol": symbol, "size": 6, "opacity": 0.65, "line": {"width": 0}},
                    customdata=[[int(number[i])] for i in index],
                    text=[lines[i] for i in index],
                    hovertemplate=line,
                )
            )
    fig.update_xaxes(type="log", title_text="density, share of tokens (log scale)", tickformat=".1~%", showgrid=True)
    if alive.any():
        low, high = float(density[alive].min()), float(density[alive].max())
        at = [10.0**d for d in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)]
        fig.update_xaxes(tickvals=at, ticktext=[f"{100 * v:g}%" for v in at])
        fig.update_xaxes(range=[np.log10(low) - 0.1, np.log10(high) + 0.1])
    fig.update_yaxes(title_text=METRICS.get(metric, metric.replace("_", " ")))
    return fig


def training_curves(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] = ("fvu", "l0", "dead_share"), *, height: int = 170
) -> go.Figure:
    """Return one small panel for each of `metrics` over the tokens seen, side by side, from rows of metrics.jsonl."""
    from plotly.subplots import make_subplots

    names = [name for name in metrics if any(row.get(name) is not None for row in rows)]
    if not names:
        return figure(height)
    fig = make_subplots(
        rows=1, cols=len(names), subplot_titles=[_TITLES.get(n, n) for n in names], horizontal_spacing=0.09
    )
    fig.update_layout(template=TEMPLATE, height=height, showlegend=False, margin={"t": 26})
    for i, name in enumerate(names, 1):
        points = [(row.get("tokens", row.get("step")), row[name]) for row in rows if row.get(name) is not None]
        unit = "%{x:,} tokens"
        fig.add_scatter(
            x=[p[0] for p in points], y=[p[1] for p in points], mode="lines", line={"color": BLUE, "width": 1.6},
            hovertemplate=f"{_TITLES.get(name, name)} %{{y:.4g}}<br>{unit}<extra></extra>", row=1, col=i,
        )  # fmt: skip
    fig.update_annotations(font={"size": 12, "color": FAINT})
    fig.update_yaxes(rangemode="tozero", nticks=4, tickformat="~g")
    if "dead_share" in names:
        fig.update_yaxes(tickformat=".0~%", row=1, col=names.index("dead_share") + 1)
    fig.update_xaxes(nticks=4, tickformat="~s", title_text="tokens")
    return fig


UNSIGNED = [[0.0, "#ffffff"], [0.12, "#e3eef6"], [0.5, "#6baed6"], [0.8, "#0072B2"], [1.0, "#00395a"]]
SIGNED = [[0.0, "#8a3c00"], [0.25, "#D55E00"], [0.5, "#ffffff"], [0.75, "#0072B2"], [1.0, "#00395a"]]
_LONGEST_LABEL = 28  # characters
_COLUMN_LABELS = 40  # at most; they need about 15 pixels each when they stand upright


def heat_map(
    values: Sequence[Sequence[float]] | NDArray[np.floating],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    signed: bool = False,
    limit: float | None = None,
    titles: tuple[str, str, str] = ("", "", "value"),
    hover: Sequence[Sequence[str]] | None = None,
    selected: tuple[int, int] | None = None,
    height: int | None = None,
) -> go.Figure:
    """Return a table of values as colours, the first row on top; the customdata of a click is `[row, column]`.

    `go.Heatmap` reports no click to Streamlit, so an invisible point lies on each cell; the nearest one answers.

    Args:
        values: [rows columns]; NaN is drawn grey.
        rows: label of each row; escaped here, as all text.
        columns: label of each column; where they do not all fit, every second, fifth, ... is written.
        signed: two hues that meet in white at 0; otherwise one hue from 0 (or the smallest value) up.
        limit: |value| of the full colour; None takes the largest one.
        titles: of the rows' axis, the columns' axis and the colours.
        hover: one line for each cell, [rows columns]; None writes the two labels.
        selected: (row, column) of a cell to frame.
        height: pixels; None takes what the number of rows needs.

    Raises:
        ValueError: labels or lines do not fit the values, or the selected cell is outside.
    """
    z = np.asarray(values, dtype=np.float64)
    shape = (len(rows), len(columns))
    if z.shape != shape or z.size == 0:
        raise ValueError(f"A heat map needs values [rows columns] = {list(shape)}, not empty, got {list(z.shape)}.")
    if hover is not None and [len(line) for line in hover] != [shape[1]] * shape[0]:
        raise ValueError(f"hover must hold one line for each of the {shape[0]} x {shape[1]} cells.")
    if selected is not None and not all(0 <= at < n for at, n in zip(selected, shape, strict=True)):
        raise ValueError(f"selected must lie within {shape[0]} rows and {shape[1]} columns, got {selected}.")
    cell = min(30.0, max(13.0, 540 / shape[0])) if shape[0] <= 64 else max(4.0, 832 / shape[0])
    fig = figure(
        height or round(cell * shape[0]) + 84, dragmode=False, clickmode="event+select", hovermode="closest",
        hoverdistance=-1, plot_bgcolor="#d3d9df", showlegend=False, margin={"l": 8, "r": 8, "t": 10, "b": 8},
    )  # fmt: skip
    low, high = _limits(z, signed, limit)
    title = escape(titles[2], quote=False) if cell * shape[0] > 7 * len(titles[2]) else ""  # else it would be cut off
    gap = 1 if cell >= 13 and shape[1] <= 48 else 0
    fig.add_heatmap(
        z=z, zmin=low, zmax=high, colorscale=SIGNED if signed else UNSIGNED, xgap=gap, ygap=gap, hoverinfo="skip",
        colorbar={
            "title": {"text": title, "side": "right", "font": {"size": 12, "color": FAINT}},
            "thickness": 9, "outlinewidth": 0, "tickfont": {"size": 11, "color": FAINT}, "nticks": 5, "xpad": 8,
        },
    )  # fmt: skip
    _cells(fig, z, rows, columns, titles[2], hover)
    _labels(fig, rows, columns, titles, int(832 / cell))
    if selected is not None:
        _frame(fig, *selected)
    return fig


def _limits(z: NDArray[np.float64], signed: bool, limit: float | None) -> tuple[float, float]:
    found = z[np.isfinite(z)]
    high = limit or (float(np.abs(found).max() if signed else found.max()) if found.size else 1.0)
    low = -high if signed else min(0.0, float(found.min()) if found.size else 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def _cells(fig: go.Figure, z: NDArray[np.float64], rows: Any, columns: Any, title: str, hover: Any) -> None:
    """Put an invisible point on each cell: a small one, for within their radius points do not compete by distance."""
    where = [(r, c) for r in range(len(rows)) for c in range(len(columns))]
    lines = [hover[r][c] if hover is not None else f"{rows[r]} · {columns[c]}" for r, c in where]
    numbers = [f"{z[r, c]:.4g}" if np.isfinite(z[r, c]) else "–" for r, c in where]
    scatter = go.Scattergl if z.size > _POINTS_AS_SVG else go.Scatter
    quiet = {"marker": {"opacity": 0}}
    fig.add_trace(
        scatter(
            x=[c for _, c in where], y=[r for r, _ in where], mode="markers", showlegend=False,
            marker={"symbol": "square", "size": 6, "color": INK, "opacity": 0, "line": {"width": 0}},
            selected=quiet, unselected=quiet, customdata=[[r, c] for r, c in where],
            text=[
                f"{escape(line, quote=False)}<br>{escape(title, quote=False)} {value}"
                for line, value in zip(lines, numbers, strict=True)
            ],
            hovertemplate="%{text}<extra></extra>",
        )
    )  # fmt: skip


def _labels(fig: go.Figure, rows: Sequence[str], columns: Sequence[str], titles: Any, pixels: int) -> None:
    """Write as many labels as can be read; the axes reach exactly to the outer edges of the cells."""
    plain = {"showgrid": False, "showline": False, "ticks": "", "fixedrange": True}
    every = _thin(len(columns), _COLUMN_LABELS)
    at = list(range(0, len(columns), every))
    fig.update_xaxes(
        plain, range=[-0.5, len(columns) - 0.5], tickvals=at, ticktext=[_label(columns[i]) for i in at],
        autotickangles=[0, 90], title_text=escape(titles[1], quote=False),
    )  # fmt: skip
    at = list(range(0, len(rows), _thin(len(rows), max(2, pixels if len(rows) <= 64 else 64))))
    fig.update_yaxes(
        plain, range=[len(rows) - 0.5, -0.5], tickvals=at, ticktext=[_label(rows[i]) for i in at],
        title_text=escape(titles[0], quote=False), ticklabelstandoff=4,
    )  # fmt: skip
    fig.update_layout(yaxis_tickfont_size=11 if len(rows) > 24 else 12, xaxis_tickfont_size=11)


def _thin(n: int, most: int) -> int:
    """Return the step (1, 2, 5, 10, ...) that leaves at most `most` of `n` labels."""
    steps = (m * 10**d for d in range(9) for m in (1, 2, 5))
    return next(step for step in steps if -(-n // step) <= most)


def _label(text: str) -> str:
    short = text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"
    return escape(short, quote=False)


def _frame(fig: go.Figure, row: int, column: int) -> None:
    """Frame a cell by a dark line on a white one, which shows on every colour."""
    box = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5, "type": "rect"}
    for color, width in (("#ffffff", 5), (INK, 2.5)):
        fig.add_shape(**box, line={"color": color, "width": width}, layer="above")


_TITLES = {"fvu": "FVU", "l0": "L0", "dead_share": "dead latents", "loss": "loss", "lr": "learning rate"}


def _column(table: pa.Table, name: str) -> NDArray[np.float64]:
    return table.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
