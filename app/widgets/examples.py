"""Examples of a latent as token strips, one group and one screen at a time."""

from __future__ import annotations

import math
from typing import Any

import streamlit as st

from app.widgets import frame, state
from app.widgets.artefacts import EXAMPLE_GROUPS, Example, FeatureSet
from app.widgets.text import number
from interp.figures.token_strip import TokenStrip

EXAMPLES = 20  # on the screen at once


def largest(row: dict[str, Any]) -> float:
    """Return the largest |activation| of a row of latents.parquet, for a colour scale; 1 where it never fired."""
    return max(abs(row.get("max") or 0.0), abs(row.get("min") or 0.0)) or 1.0


def examples(features: FeatureSet, row: dict[str, Any]) -> None:
    """Draw the examples, one group at a time."""
    latent = int(row["latent"])
    titles = list(EXAMPLE_GROUPS.values())
    for text in state.stray(
        ["ex", "scale"], lambda key, value: value in {"ex": titles, "scale": ["shared", "own"]}[key]
    ):
        frame.note(text)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        frame.heading("Examples")
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            spaces = st.toggle("mark spaces", key="spaces", bind="query-params", help="Show every space as ·")
            scale = st.segmented_control(
                "Colour scale", ["shared", "own"], default="shared", required=True, key="scale", bind="query-params",
                label_visibility="collapsed", help="**shared**: full colour is the latent's largest activation  \n"
                "**own**: full colour is each example's largest",
            )  # fmt: skip
    tabs = st.tabs(titles, key="ex", bind="query-params", on_change="rerun")
    for tab, group in zip(tabs, EXAMPLE_GROUPS, strict=True):
        if tab.open:
            with tab, frame.section():
                ends = ["top", "bottom"] if group == "top" and row.get("count_negative") else [group]
                found = [features.examples(latent, end) for end in ends]
                strips(features, found, group, largest(row) if scale == "shared" else None, spaces)


def strips(features: FeatureSet, found: list[list[Example]], group: str, scale: float | None, spaces: bool) -> None:
    """Draw one screen of examples in one piece of HTML, with a pager below where there are more.

    `found` is one list, or, of a signed latent, that of its positive and that of its negative end.
    """
    if not any(found):
        frame.note("There are none: " + _WHY_NONE[group])
        return
    size = EXAMPLES // len(found)
    pages = max(math.ceil(len(part) / size) for part in found)
    key = f"page-{group}"
    if st.session_state.get(key, 1) > pages:
        st.session_state[key] = 1
    page = st.session_state.get(key, 1)
    rows = []
    for title, part in zip(ENDS, found, strict=False):
        shown = part[(page - 1) * size : page * size]
        if len(found) > 1:
            rows.append(f'<div class="q">{title}{"" if part else ": it never is"}</div>')
        rows += _rows(features, shown, group, scale, spaces)
    st.html(f'<div class="ms-examples">{"".join(rows)}</div>')
    if pages > 1:
        st.pagination(pages, key=key)


ENDS = ("most positive", "most negative")
"""Headings of the two ends of a signed latent."""


def _rows(features: FeatureSet, shown: list[Example], group: str, scale: float | None, spaces: bool) -> list[str]:
    rows, quantile = [], -1
    for example in shown:
        if group == "quantile" and example.quantile != quantile:
            quantile = example.quantile
            rows.append(f'<div class="q">quantile {quantile + 1}</div>')
        rows.append(_example(features, example, scale, spaces))
    return rows


_WHY_NONE = {
    "top": "it never fired on the tokens read.",
    "quantile": "it fired too rarely for quantiles.",
    "random": "it never fired on the tokens read.",
    "near_miss": "no token came close without firing.",
}


def _example(features: FeatureSet, example: Example, scale: float | None, spaces: bool) -> str:
    strip = TokenStrip(
        features.texts(example.ids), example.values, example.ids, example.start, example.centre, scale, spaces
    )
    what = "before the rule, silent after it" if example.group == "near_miss" else "activation at the underlined token"
    where = f"block {example.block}, position {example.position}"
    return (
        f'<div class="e"><div class="g" title="{what}; {where}">{number(example.value)}'
        f"<small>{example.block}:{example.position}</small></div>{strip.html()}</div>"
    )
