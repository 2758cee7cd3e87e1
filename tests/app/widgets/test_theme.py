"""Style sheets and figures follow the theme of the browser."""

from __future__ import annotations

import re

import pytest
import streamlit as st

from app.widgets import feature_card, frame, theme
from app.widgets import sheet as light
from interp.figures.heat_table import STYLE as HEAT
from interp.figures.style import INK, figure
from interp.figures.token_strip import STYLE as STRIP

ALL = light.STYLE + STRIP + HEAT + feature_card.STYLE


def test_the_light_sheet_is_as_written() -> None:
    assert not theme.is_dark()
    assert theme.sheet(ALL) == ALL


def test_every_colour_of_the_sheets_has_one_for_dark_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theme, "is_dark", lambda: True)
    dark = theme.sheet(ALL)
    written = set(re.findall(r"#[0-9a-fA-F]{6}\b|#[0-9a-fA-F]{3}\b", ALL))
    left = {colour for colour in written if re.search(rf"{colour}\b", dark)}
    assert len(written) > 20
    assert left == set(), "give them a place in app/widgets/theme.py"
    assert "filter:invert" in dark


def test_a_chart_is_drawn_in_the_colours_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(st, "plotly_chart", lambda fig, **_: shown.append(fig))
    fig = figure(100)
    frame.chart(fig, "key")
    monkeypatch.setattr(theme, "is_dark", lambda: True)
    frame.chart(fig, "key")
    colours = [one.layout.template.layout.font.color for one in shown]
    assert colours[0] == INK != colours[1]
