"""Light and dark: the explorer follows the theme that the browser shows, in style sheets and in figures.

Both are written in the colours of the light theme; on a dark page each is replaced by what `interp.figures.style.DARK`
puts in its place. Streamlit runs the page again when its theme changes.
"""

from __future__ import annotations

import re

import streamlit as st

from interp.figures.style import DARK

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b|#[0-9a-fA-F]{3}\b")
_SHEET = DARK | {
    "#2f6f9f": "#6cb2e4", "#edc7a6": "#6b4a2c", "#dbe9f4": "#1f3d55", "#e9f1f8": "#1e3445", "#1f6fb2": "#4aa3e0",
    "#e8f1f8": "#18344a", "#00568a": "#9ccbee", "#a9cbe2": "#2f5f83", "#eaf6fd": "#17323f", "#1b6690": "#a5d7f2",
    "#aadbf5": "#335f78", "#fdf3ea": "#33220f", "#9a4300": "#f5ac77", "#edf8f4": "#12312a", "#0b5c46": "#86d6bd",
    "#a9d8c8": "#2c6353", "#6a3d7c": "#d7b3e5", "#d3bfdc": "#5d4669", "#f7f2f9": "#2b2031", "#123a5c": "#8cc4ec",
}  # fmt: skip
"""What is only in style sheets besides."""
_TURNED = """
.ms-strip .t[style],.ms-heat td[style],.ms-align td.e[style]{filter:invert(.91) hue-rotate(180deg)}
"""
"""Shades of tokens and of small heat tables are written from white to a colour; turned round they go from the page."""


def is_dark() -> bool:
    """Return whether the page is shown on a dark ground."""
    theme = getattr(st.context, "theme", None)
    return getattr(theme, "type", None) == "dark"


def colours(markup: str) -> str:
    """Return a style or a drawing in the colours of the present theme."""
    if not is_dark():
        return markup
    return _COLOUR.sub(lambda found: _SHEET.get(found[0].lower(), _SHEET.get(found[0], found[0])), markup)


def sheet(css: str) -> str:
    """Return the style sheet of a page in the colours of the present theme."""
    return colours(css) + (_TURNED if is_dark() else "")
