"""A list of latents, each a link with what it is: neighbours, and what fires beside it."""

from __future__ import annotations

import streamlit as st

from app.widgets import frame, state
from app.widgets.artefacts import FeatureSet
from app.widgets.feature_card import FeatureCard
from app.widgets.notes import notes_of


def links(features: FeatureSet, found: list[tuple[int, float]], scale: float, key: str) -> None:
    """Write one line for each latent and value: a link, a bar, and what it is."""
    with frame.section(), st.container(key=f"links-{key}", gap=None):
        notes = notes_of(features, say=False)
        for latent, value in found:
            row = features.row(latent)
            with st.container(horizontal=True, wrap=False, vertical_alignment="center", gap="small"):
                st.page_link(
                    state.FEATURE_PAGE, label=str(latent), width=52,
                    query_params=state.feature_address(features.run.name, latent),
                )  # fmt: skip
                st.html(FeatureCard(row, notes[latent].label if latent in notes else "", value, scale).line())
