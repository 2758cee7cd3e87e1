"""One feature in two models: what became of it, and the same texts with its values in both."""

from __future__ import annotations

import math
from typing import Any

import streamlit as st

from app.widgets import frame
from app.widgets.comparisons import Comparison, Pair
from app.widgets.text import number, safe, share
from interp.figures import STATES
from interp.figures.token_strip import TokenStrip

PAIRS = 6  # on the screen at once
SIDES = {"a": "Largest in a", "b": "Largest in b"}


def change_html(row: dict[str, Any]) -> str:
    """Return state, r, and density, peak and mean in a and in b, as HTML."""
    state = str(row.get("state") or "unknown")
    meaning = STATES[state][2] if state in STATES else ""
    facts = {
        "r": (number(row.get("r")), "correlation of its activations in a and in b, over all tokens"),
        "density": (_both(row, "density", share), "share of tokens on which it fires, in a → in b"),
        "peak": (_both(row, "peak", number), "largest activation, in a → in b"),
        "mean": (_both(row, "mean", number), "mean activation, in a → in b"),
        "overlap": (number(row.get("jaccard")), "tokens on which it fires in both, of those on which it fires in one"),
    }
    items = "".join(
        f'<div title="{safe(why)}"><dt>{name}</dt><dd>{safe(value)}</dd></div>' for name, (value, why) in facts.items()
    )
    badge = f'<span class="ms-state {state if state in STATES else ""}" title="{safe(meaning)}">{safe(state)}</span>'
    return f'<dl class="ms-facts"><div><dt>state</dt><dd>{badge}</dd></div>{items}</dl>'


def _both(row: dict[str, Any], name: str, write: Any) -> str:
    return f"{write(row.get(f'{name}_a'))} → {write(row.get(f'{name}_b'))}"


def pairs(comparison: Comparison, row: dict[str, Any], key: str) -> None:
    """Draw the examples of the feature `row` (of survival.latents) in both models, the largest of either model."""
    latent = int(row["latent"])
    tabs = st.tabs(list(SIDES.values()), key=f"side-{key}", on_change="rerun")
    for tab, side in zip(tabs, SIDES, strict=True):
        if tab.open:
            with tab, frame.section():
                found = comparison.pairs(latent, side)
                if not found:
                    frame.note(_why_none(comparison, row, side))
                    continue
                _screen(comparison, found, largest(row, found), f"pairs-{key}-{side}")


def _why_none(comparison: Comparison, row: dict[str, Any], side: str) -> str:
    if not comparison.has("survival", "examples"):
        return "This comparison kept no examples."
    if not row.get(f"density_{side}"):
        return f"It never fired in {side}."
    return "Examples were kept for other features only: those that changed most."


def largest(row: dict[str, Any], found: list[Pair]) -> float:
    """Return the |activation| of the full colour: the largest in either model."""
    known = [row.get("peak_a"), row.get("peak_b"), *(v for pair in found for v in (*pair.a, *pair.b))]
    return max((abs(v) for v in known if v is not None and math.isfinite(v)), default=0.0) or 1.0


def _screen(comparison: Comparison, found: list[Pair], scale: float, key: str) -> None:
    pages = math.ceil(len(found) / PAIRS)
    if st.session_state.get(key, 1) > pages:
        st.session_state[key] = 1
    page = st.session_state.get(key, 1)
    parts = [_pair(comparison, pair, scale) for pair in found[(page - 1) * PAIRS : page * PAIRS]]
    head = f'<div class="h"><b>a</b> {safe(comparison.a)}</div><div class="h"><b>b</b> {safe(comparison.b)}</div>'
    st.html(f'<div class="ms-pairs">{head}{"".join(parts)}</div>')
    if pages > 1:
        st.pagination(pages, key=key)


def _pair(comparison: Comparison, pair: Pair, scale: float) -> str:
    texts = comparison.texts(pair.ids)
    halves = []
    for name, values in (("a", pair.a), ("b", pair.b)):
        strip = TokenStrip(texts, values, pair.ids, pair.start, pair.centre, scale)
        value = values[pair.centre] if 0 <= pair.centre < len(values) else math.nan
        where = f"activation in {name} at the underlined token; block {pair.block}, position {pair.position}"
        value_html = f'<div class="g" title="{safe(where)}"><i>{name}</i> {number(value)}</div>'
        halves.append(f'<div class="e">{value_html}{strip.html()}</div>')
    return "".join(halves)
