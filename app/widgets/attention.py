"""Where a head attends on the two prompts of a pair, by the live model: only when the button is pressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from app.widgets import frame
from app.widgets.artefacts import Unreadable
from app.widgets.attributions import Scored, open_scored, texts
from app.widgets.loaded import changed, load_model_of, model_key, one_sentence
from app.widgets.text import visible
from interp.figures import heat_map
from interp.runs import open_run
from interp.sites import Site

SIDES = {"clean": "clean", "corrupt": "corrupted"}


def attention(one: Scored, layer: int, head: int | None, prompt: int) -> None:
    """Draw the button, and what it asked for: the pattern of `head` (None: one that is chosen here) on a prompt."""
    asked = (one.run.ref, layer, prompt)
    frame.heading(f"Attention in layer {layer}", f"on prompt {prompt}; the model is loaded when you press the button")
    if st.session_state.get("_attention") != asked:
        st.button("Show attention", on_click=_ask, args=asked)
        return
    patterns = read_patterns(one, layer, prompt)
    if head is None:
        head = int(st.number_input("Head", 0, patterns.shape[1] - 1, step=1, key="attention-head", width=120))
    if head >= patterns.shape[1]:
        raise Unreadable(f"Layer {layer} of the model has {patterns.shape[1]} heads, so there is no head {head}.")
    row = one.prompts[prompt]
    with st.container(key="split-attention"):
        places = st.columns(2, gap="medium")
    for place, (side, title), pattern in zip(places, SIDES.items(), patterns[:, head], strict=True):
        labels = [f"{i} {visible(text, limit=10)}" for i, text in enumerate(texts(row, side))]
        with place, st.container(gap=None):
            aside = f"{title} prompt: from each token (row) to those before"
            st.html(f'<p class="ms-curve">head {head}<span>{aside}</span></p>')
            figure = heat_map(pattern, labels, labels, limit=1.0, titles=("", "to", "weight"), hover=_lines(labels))
            frame.chart(figure, key=f"attention-{side}", alt=f"Attention on the {title} prompt")


def _ask(ref: str, layer: int, prompt: int) -> None:
    st.session_state["_attention"] = (ref, layer, prompt)


def _lines(labels: list[str]) -> list[list[str]]:
    return [[f"from {source} to {target}" for target in labels] for source in labels]


def read_patterns(one: Scored, layer: int, prompt: int) -> NDArray[np.float32]:
    """Return the attention of every head of a layer on the clean and the corrupted prompt, [side head query key].

    Raises:
        Unreadable: the model cannot be loaded, or is not the one that the run is of.
    """
    if not model_key(one.run.config):
        raise Unreadable(f"{one.run.ref} does not say which model it is of, so its attention cannot be computed.")
    with one_sentence():
        return _patterns(str(one.run.root), one.run.ref, changed(one.run), layer, prompt)


@st.cache_data(max_entries=16, show_spinner="Running the model…")
def _patterns(root: str, ref: str, modified: int, layer: int, prompt: int) -> NDArray[np.float32]:  # noqa: ARG001
    import torch

    from interp.hooks import capture

    run = open_run(ref, Path(root))
    row = open_scored(run).prompts[prompt]
    model = load_model_of(run)
    tokens = torch.tensor([row[side] for side in SIDES], device=model.device)
    site = Site(layer, "pattern")
    with capture(model, site, view="bridge", stop=True) as cache:
        model.forward(tokens, view="bridge")
    return cache[site].float().cpu().numpy()
