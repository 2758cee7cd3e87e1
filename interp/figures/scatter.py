"""All latents of a dictionary as points: density against any other number."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
from numpy.typing import NDArray

from interp.figures.style import BLUE, ORANGE, POINTS_AS_SVG, figure

METRICS: dict[str, str] = {
    "max": "largest activation",
    "mean": "mean of the active",
    "min": "smallest activation",
    "density_negative": "density of the negative activations",
    "mean_negative": "mean of the negative activations",
    "nearest_cosine": "cosine to the nearest decoder row",
    "enc_dec_cosine": "cosine of encoder and decoder",
    "token_entropy": "entropy of the top tokens (nats)",
    "kurtosis": "kurtosis of the active",
    "skew": "skew of the active",
    "decoder_norm": "norm of the decoder row",
    "encoder_norm": "norm of the encoder row",
    "relative_norm": "share of the decoder row in the first of two models",
    "bias": "encoder bias",
}
"""Column of latents.parquet -> axis title, in the order in which a menu offers them."""


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
    scatter = go.Scattergl if int(alive.sum()) > POINTS_AS_SVG else go.Scatter
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


def _column(table: pa.Table, name: str) -> NDArray[np.float64]:
    return table.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
