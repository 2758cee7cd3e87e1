"""Where a head looks on the reader's own text, by the live model: only when the button is pressed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from app.widgets import frame, state
from app.widgets.loaded import TEXT_LENGTH, changed, cut_text, load_model_of, one_sentence
from app.widgets.profiles import Shown
from app.widgets.text import safe, visible
from interp.figures import heat_map
from interp.runs import Run, open_run
from interp.sites import Site

EXAMPLE = "The cat saw the dog, and then the cat saw"
LONGEST = 64  # tokens that are drawn
_WORD = 10  # characters of a token at an axis

Pattern = tuple[list[str], NDArray[np.float32], bool]
"""Tokens, attention of every head of a layer [head query key], whether the text was longer."""


def pattern_box(shown: Sequence[Shown], layer: int, head: int) -> None:
    """Draw the box for the reader's own text, and where the head looks in it under each model."""
    frame.heading("Where it looks on my text", f"up to {LONGEST} tokens; loads the model when you press Run")
    text = state.keep_text(TEXT_LENGTH)
    st.session_state["head-text"] = text or EXAMPLE
    with st.form("head-text-form", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input("Text", key="head-text", max_chars=TEXT_LENGTH, label_visibility="collapsed")
        st.form_submit_button("Run", on_click=_take)
    if not st.session_state.get("_heads_live"):
        return
    with st.container(key="split-head-pattern"):
        places = st.columns(len(shown), gap="medium")
    for i, (place, one) in enumerate(zip(places, shown, strict=False)):
        with place, frame.section():
            draw(one, text or EXAMPLE, layer, head, i)


def _take() -> None:
    state.put_text("head-text")
    st.session_state["_heads_live"] = True


def draw(one: Shown, text: str, layer: int, head: int, i: int) -> None:
    """Draw the pattern of one head of one model on `text`."""
    tokens, patterns, cut = read_pattern(one.run, text, layer)
    if head >= len(patterns):
        frame.note(f"{one.label} has {len(patterns)} heads, so there is no head {head}.")
        return
    labels = [f"{n} {visible(token, limit=_WORD)}" for n, token in enumerate(tokens)]
    pattern = np.where(np.tri(len(tokens), dtype=bool), patterns[head], np.nan)
    aside = f"{safe(one.label)}, from each token (row) to those before"
    st.html(f'<p class="ms-curve">head {layer}.{head}<span>{aside}</span></p>')
    hover = [[f"from {source} to {target}" for target in labels] for source in labels]
    figure = heat_map(pattern, labels, labels, limit=1.0, titles=("", "to", "weight"), hover=hover)
    frame.chart(figure, key=f"head-pattern-{i}", alt=f"Attention of head {layer}.{head}")
    if cut:
        frame.note(f"Only the first {len(tokens)} tokens were read.")


def read_pattern(run: Run, text: str, layer: int) -> Pattern:
    """Return (tokens, attention of every head of a layer [head query key], whether the text was longer).

    Raises:
        Unreadable: the model cannot be loaded, or is not the one that was profiled.
    """
    with one_sentence():
        return _pattern(str(run.root), run.ref, changed(run), text[: TEXT_LENGTH + 1], layer)


@st.cache_data(max_entries=32, show_spinner="Running the model…")
def _pattern(root: str, ref: str, modified: int, text: str, layer: int) -> Pattern:  # noqa: ARG001  # of the cache's key
    import torch

    from interp.hooks import capture

    model = load_model_of(open_run(ref, Path(root)))
    tokens, _, cut = cut_text(model, text)
    cut, tokens = cut or tokens.shape[1] > LONGEST, tokens[:, :LONGEST]
    site = model.check_site(Site(layer, "pattern"))
    with torch.no_grad(), capture(model, site, view="bridge", stop=True) as cache:
        model.forward(tokens, view="bridge")
    words = model.token_strings(tokens[0].tolist())
    return words, cache[site][0].float().cpu().numpy(), cut
