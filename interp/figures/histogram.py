"""How often a latent takes each value."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from interp.figures.style import BLUE, ORANGE, figure, ticks


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
