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


_TITLES = {"fvu": "FVU", "l0": "L0", "dead_share": "dead latents", "loss": "loss", "lr": "learning rate"}


def _column(table: pa.Table, name: str) -> NDArray[np.float64]:
    return table.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
