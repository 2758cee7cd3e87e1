"""The house style: colours, the Plotly template, an empty figure, ticks of a log scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

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

POINTS_AS_SVG = 3000
"""Points that a figure draws as SVG; more are drawn by WebGL, which is faster but needs a graphics context."""


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
