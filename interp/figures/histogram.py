"""How often a latent takes each value."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from interp.figures.style import BLUE, INK, ORANGE, figure, ticks


def activation_histogram(
    counts: Sequence[int] | NDArray[np.integer],
    edges: Sequence[float] | NDArray[np.floating],
    *,
    negative: Sequence[int] | NDArray[np.integer] | None = None,
    marker: float | None = None,
    marker_label: str = "here",
    height: int = 190,
) -> go.Figure:
    """Return how often a latent takes each value: geometric bins, log counts, so a bar's width is a ratio.

    Negative activations, if there are any, stand mirrored on the left.

    Args:
        counts: tokens in each bin, [bins].
        edges: limits of the bins, [bins+1], growing and positive (absolute values of the activation).
        negative: how many of `counts` are of activations below 0, [bins]; None where none is.
        marker: a value to mark by a line, such as the activation on somebody's own text.
        marker_label: what stands beside that line.
        height: pixels.

    Raises:
        ValueError: there is not one edge more than counts, the edges do not grow from above 0, or `negative` counts
            more than `counts`.
    """
    n, limits = np.asarray(counts, dtype=np.int64), np.asarray(edges, dtype=np.float64)
    if limits.ndim != 1 or n.shape != (limits.size - 1,) or limits[0] <= 0 or not (np.diff(limits) > 0).all():
        raise ValueError(
            f"A histogram needs growing positive edges, one more than counts, got {limits.size} and {n.size}."
        )
    below = np.zeros_like(n) if negative is None else np.asarray(negative, dtype=np.int64)
    if below.shape != n.shape or (below > n).any():
        raise ValueError(f"negative must be a part of counts in each of the {n.size} bins; it is not.")
    full = np.flatnonzero(n)
    first, last = (full[0], full[-1] + 1) if full.size else (0, n.size)
    n, below, limits = n[first:last], below[first:last], limits[first : last + 1]
    shown = figure(height, bargap=0.06, showlegend=False)
    sides = [(1, n - below, BLUE)] if not below.any() else [(-1, below, ORANGE), (1, n - below, BLUE)]
    scale = _Scale(limits, len(sides) > 1)
    for sign, tokens, colour in sides:
        _bars(shown, scale, limits, tokens, sign, colour)
    at = [float(v) for sign, _, _ in sides for v in sign * np.array(ticks(limits[0], limits[-1]))]
    shown.update_xaxes(tickvals=[scale(v) for v in at], ticktext=[f"{v:g}" for v in at])
    shown.update_xaxes(title_text="activation (log scale)")
    ends = np.array([scale(sign * limit) for sign, _, _ in sides for limit in (limits[0], limits[-1])])
    marked = None if marker is None or marker == 0 else scale(marker if len(sides) > 1 else abs(marker))
    shown.update_xaxes(range=_span(ends, marked))
    most = float(n.max()) if n.size and n.max() > 0 else 1.0
    decades = [10**d for d in range(int(np.log10(most)) + 2)]
    shown.update_yaxes(type="log", title_text="tokens", range=[np.log10(0.7), np.log10(most * 1.8)])
    shown.update_yaxes(tickvals=decades, ticktext=[_si(v) for v in decades])
    if marked is not None:
        shown.add_vline(
            x=marked, line={"color": INK, "width": 2}, annotation_text=escape(marker_label, quote=False),
            annotation={"font": {"color": INK, "size": 12}, "yref": "paper", "y": 1.0},
        )  # fmt: skip
    return shown


class _Scale:
    """Where a value stands: log10 of its size, to the right if positive; of two signs a small gap lies between."""

    def __init__(self, limits: NDArray[np.floating], two_signs: bool) -> None:
        span = float(np.log10(limits[-1] / limits[0]))
        self.shift = 0.04 * span - float(np.log10(limits[0])) if two_signs else 0.0

    def __call__(self, value: float) -> float:
        return float(np.sign(value) * (np.log10(abs(value)) + self.shift))


def _bars(
    shown: go.Figure, scale: _Scale, limits: NDArray[np.floating], n: NDArray[np.int64], sign: int, colour: str
) -> None:
    """Draw the bins of one sign."""
    hover = [
        f"{sign * a:.3g} to {sign * b:.3g}<br>{c:,} token{'' if c == 1 else 's'}"
        for a, b, c in zip(limits, limits[1:], n, strict=False)
    ]
    # On a linear axis of log10 values the bars keep their widths; a log axis would place them by their middle only.
    x = np.array([scale(sign * limit) for limit in limits])
    shown.add_bar(
        x=(x[:-1] + x[1:]) / 2, y=n, width=np.abs(np.diff(x)) * 0.94, marker={"color": colour, "line": {"width": 0}},
        customdata=hover, hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip


def _si(value: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value // size}{letter}"
    return str(value)


def _span(ends: NDArray[np.floating], marked: float | None) -> list[float]:
    low, high = float(ends.min()), float(ends.max())
    if marked is not None:
        low, high = min(low, marked), max(high, marked)
    margin = 0.02 * (high - low)
    return [low - margin, high + margin]
