"""Metrics of a training over the tokens it has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from interp.figures.style import BLUE, FAINT, TEMPLATE, figure

_TITLES = {"fvu": "FVU", "l0": "L0", "dead_share": "dead latents", "loss": "loss", "lr": "learning rate"}


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
