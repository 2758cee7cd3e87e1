"""A prompt's tokens shaded by the scores of its positions, one strip for each method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import streamlit as st

from app.widgets import frame, state
from app.widgets.attributions import Scored, texts
from app.widgets.heat_map import Axis, chosen
from app.widgets.questions import newest
from app.widgets.text import count, number, safe, tokens_html
from interp.figures.token_strip import TokenStrip

INPUTS = ("embed", "resid_pre")
"""Kinds whose scores at layer 0 are those of the input's tokens, the first that a method has."""


def method_strips(runs: Sequence[Scored], shared: bool) -> None:
    """Draw the strips of the prompt that the address chooses; `shared`: one scale for all of them."""
    source = next((one for one in runs if one.prompts), None)
    if source is None:
        frame.note("These runs do not hold their prompts.")
        return
    rows = source.prompts
    at = choose_prompt(len(rows))
    tokens = texts(rows[at], "clean")
    methods = {one.method: (one, kind) for kind in reversed(INPUTS) for one in newest(runs, kind, "pos").values()}
    found = []
    for name in dict.fromkeys(one.method for one in runs if one.method in methods):
        one, kind = methods[name]
        values = one.by_position(kind, 0)
        if values is not None and values.shape == (len(rows), len(tokens)):
            found.append((name, values[at]))
    if not found:
        frame.note("No method scores the tokens of the input (resid_pre of layer 0, or the embeddings) by position.")
        return
    largest = max(float(np.nanmax(np.abs(values), initial=0.0)) for _, values in found)
    strips = ""
    for name, values in found:
        scale = largest if shared else None
        strip = TokenStrip(tokens, np.nan_to_num(values).tolist(), rows[at].get("clean"), scale=scale, spaces=True)
        total = f"<small>sum {safe(number(float(np.nansum(values))))}</small>"
        strips += f'<div class="e"><div class="m">{safe(name)}{total}</div><div>{strip.html()}</div></div>'
    right, wrong = (texts(rows[at], side) for side in ("correct", "wrong"))
    st.html(f'<div class="ms-strips">{strips}</div>')
    answers = f"Right answer {tokens_html(right[:6])} · wrong {tokens_html(wrong[:6])}" if right and wrong else ""
    legend = "Blue helps the right answer, orange hurts it; the strongest token is underlined."
    st.html(f'<p class="ms-note">{answers}{". " if answers else ""}{legend}</p>')


def choose_prompt(n: int, key: str = "n-widget") -> int:
    """Draw the choice of a prompt, with the keys Left and Right; return its index."""
    axis = Axis("n", [str(i) for i in range(n)], [str(i) for i in range(n)], "prompt")
    at = chosen(axis)
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"walk-{key}"):
        st.html('<span class="ms-walk">Prompt</span>', width="content")
        st.session_state[key] = at
        st.number_input(
            "Prompt", 0, n - 1, step=1, key=key, on_change=state.take, args=("n", key), width=70,
            label_visibility="collapsed",
        )  # fmt: skip
        st.html(f'<span class="ms-walk">of {count(n)}</span>', width="content")
        for name, step in (("Left", -1), ("Right", 1)):
            st.button(
                "Previous" if step < 0 else "Next", icon=f":material/chevron_{name.lower()}:", shortcut=name,
                on_click=state.put, args=("n", at + step), disabled=not 0 <= at + step < n, key=f"{key}-{name}",
            )  # fmt: skip
    return at
