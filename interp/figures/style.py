"""The house style: colours, the Plotly template, an empty figure, ticks of a log scale."""

from __future__ import annotations

import re
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

DARK = {
    "#ffffff": "#161b21", "#fff": "#161b21", "#fdfdfe": "#14181d", "#fffaf5": "#241b14",
    INK: "#e3e8ee", FAINT: "#9dabb9", "#3d4a57": "#c3ccd6", "#4a5866": "#aab6c2", "#8693a0": "#7f8c9a",
    "#a3adb8": "#66727f", LINE: "#2b333c", "#eef1f4": "#262d35", "#c9d1d9": "#434e5a", "#f4f6f8": "#222930",
    "#f5f7f9": "#20262d", "#d3d9df": "#38424c", "#d5dbe1": "#4b5763", "#dde3e9": "#323b45",
    BLUE: "#4aa3e0", ORANGE: "#ef8540", GREEN: "#35bf98", PURPLE: "#dc9cbf", SKY: "#9bd5f5", GREY: "#8794a1",
    "#8a6d00": "#cdab3a", "#7a3b00": "#c59a72", "#6a3d9a": "#b08fd6", "#9b2335": "#dd7583", "#01665e": "#4db5aa",
    "#b07d00": "#d9aa38", "#e3eef6": "#1e3445", "#6baed6": "#2a6f9f", "#00395a": "#cfe8fb", "#8a3c00": "#ffd9b8",
}  # fmt: skip
"""Colour of the light theme -> what stands for it on a dark page, in figures and style sheets alike. The scales of heat
maps turn round: what is near 0 is near the page, and the largest is the brightest."""

_MARKUP = re.compile(r"color:(#[0-9a-fA-F]{6}|#[0-9a-fA-F]{3})\b")
_TEXTS = frozenset(
    {"text", "ticktext", "hovertext", "name", "customdata", "x", "y", "z", "hovertemplate", "title_text"}
)
"""Properties of a figure that hold words or numbers, not colours."""

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


def in_dark(fig: go.Figure) -> go.Figure:
    """Return a copy of `fig` for a dark page: every colour of `DARK` replaced, words left as they are."""
    return go.Figure(_darker(fig.to_dict()), skip_invalid=True)


def _darker(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spans(item) if key in _TEXTS else _darker(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_darker(item) for item in value]
    return DARK.get(value, DARK.get(value.lower(), value)) if isinstance(value, str) else value


def _spans(value: Any) -> Any:
    """Return text with the colours of its markup replaced."""
    if not isinstance(value, str) or "color:#" not in value:
        return value
    return _MARKUP.sub(lambda found: f"color:{DARK.get(found[1], found[1])}", value)
