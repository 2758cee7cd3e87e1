"""Probes: at which layer a model knows something, what a probe has to beat, where it errs, whether it is used."""

from __future__ import annotations

import streamlit as st

from app.widgets import frame, state
from app.widgets.heat_map import Axis, chosen
from app.widgets.probe_cause import causal_box
from app.widgets.probe_curves import by_layer, by_position, concept_depth, sparse_curves
from app.widgets.probe_examples import examples
from app.widgets.probe_studies import (
    MEASURES,
    Study,
    choose_study,
    editable,
    empty,
    facts,
    footer,
    layer_of,
    python,
    site,
    studies,
    unfinished,
)
from app.widgets.probe_tables import other_study
from app.widgets.questions import choose
from interp.runs import runs_root


def show() -> None:
    """Draw the page."""
    root = runs_root()
    runs = studies(root)
    if not runs:
        empty(root)
        return
    with frame.section():
        study = choose_study(runs)
        name = None
        if study.has("sweep"):
            name = sweep(study)
        else:
            other_study(study)
        unfinished(root)
        state.keep_probes()
        frame.python(python(study, name))
        footer(study, root)


def sweep(study: Study) -> str | None:
    """Draw a study of layers and positions; return the name of the chosen probe, None where it is not kept."""
    facts(study)
    kinds = list(dict.fromkeys(row["kind"] for row in study.rows))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="filters"):
        kind = choose("kind", "Site", kinds)
        positions = study.spots(kind)
        axis = Axis("at", positions, positions, "position")
        position = positions[chosen(axis)] if len(positions) == 1 else choose("at", "Position", positions)
        layer = layer_of(study, kind, position)
    with frame.section():
        curves(study, kind, position, positions, layer)
    if study.has("layers"):
        with frame.section("Depth", "with noise before the text, and in compressed copies"):
            concept_depth(study, kind, position)
    if study.has("k_sparse"):
        with frame.section(
            "Few neurons", f"a probe on the k best columns of {site(kind, layer)}, chosen on training texts"
        ):
            sparse_curves(study, kind, position, layer)
    with frame.section("Texts", f"test texts as the probe at {site(kind, layer)}, position {position} sees them"):
        examples(study, kind, position, layer)
    with frame.section():
        causal_box(study, kind, position, layer)
    return f"probes/{site(kind, layer)}@{position}" if editable(study, kind) else None


def curves(study: Study, kind: str, position: str, positions: list[str], layer: int) -> None:
    """Draw accuracy beside its baselines, and AUC; with several positions the map over both."""
    frame.heading(f"{kind}, position {position}", f"layer {layer} is shown below; click a point for another")
    with st.container(key="split-curves-probes"):
        places = st.columns([1.25, 1], gap="medium")
    for measure, place, aside in zip(
        ("accuracy", "auc"), places, ("test texts told right; grey: what it has to beat", "0.5 is chance"), strict=True
    ):
        with place:
            st.html(f'<p class="ms-curve">{MEASURES[measure]}<span>{aside}; band: 95 % over groups</span></p>')
            by_layer(study, kind, position, measure)
    if len(positions) > 1:
        by_position(study, kind, positions, (layer, position))


if __name__ == "__main__":
    show()
