"""The box "does it fire on my text?" and its answer."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.widgets import frame, live
from app.widgets.artefacts import FeatureSet, Unreadable
from app.widgets.examples import largest
from app.widgets.links import links
from app.widgets.text import number, token_html
from interp.figures.token_strip import TokenStrip


def live_box(features: FeatureSet, row: dict[str, Any]) -> live.Fired | None:
    """Draw the box for the reader's own text; return its code, None before it was asked for."""
    latent = int(row["latent"])
    frame.heading(
        "Does it fire on my text?", f"up to {live.TEXT_LENGTH} characters; loads the model when you press Run"
    )
    with st.form("live", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input(
            "Text", key="text", bind="query-params", max_chars=live.TEXT_LENGTH, label_visibility="collapsed",
            placeholder="Type or paste a sentence",
        )  # fmt: skip
        if st.form_submit_button("Run"):
            st.session_state["_live"] = True
    if text:
        st.session_state["_text"] = text
    if not text or not st.session_state.get("_live"):
        return None
    fired = None
    with frame.section():
        if features.sae is None:
            raise Unreadable(f"The dictionary {features.sae_ref or '?'} is not in this folder, so no text can be read.")
        fired = live.read_text(features.sae, text)
        answer(features, latent, fired)
    return fired


def answer(features: FeatureSet, latent: int, fired: live.Fired) -> None:
    """Draw the strip of the reader's text, and who else fires at its strongest token."""
    at = fired.strongest(latent)
    strip = TokenStrip(fired.tokens, fired.values(latent), fired.ids, fired.start, scale=largest(features.row(latent)))
    st.html(f'<div class="ms-answer">{strip.html()}</div>')
    place = len(fired.tokens) - 1 if at is None else at
    said = (
        "Silent on this text; at its last token" if at is None else f"Strongest: {number(fired.values(latent)[at])} at"
    )
    also = "fire most" if at is None else "where these fire too"
    st.html(f'<p class="ms-note">{said} {token_html(fired.tokens[place])} {also}:</p>')
    others = [(i, value) for i, value in fired.active[place].items() if i != latent][:6]
    links(features, others, max((abs(v) for _, v in others), default=1.0), "live")
    if fired.cut:
        frame.note(f"Only the first {live.TOKENS} tokens were read.")
