"""A table of values as colours, whose cells can be clicked."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from interp.figures.style import FAINT, INK, POINTS_AS_SVG, figure

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
    scatter = go.Scattergl if z.size > POINTS_AS_SVG else go.Scatter
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
