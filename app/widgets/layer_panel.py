"""The panel layers of a comparison: families of measures by layer, both models in each small figure."""

from __future__ import annotations

import math
from typing import Any

import streamlit as st

from app.widgets import frame
from app.widgets.artefacts import readable
from app.widgets.comparisons import Comparison
from interp.figures import LayerLine, Multiple, layer_multiples


def layer_panel(comparison: Comparison) -> None:
    """Draw one family of the panel layers, chosen by pills; nothing where the panel did not run."""
    table = comparison.table("layers", "layers", "family", "measure", "part", "layer", "value_a", "value_b")
    titles = comparison.table("layers", "measures", "family", "measure", "label", "unit", "note")
    if table is None or titles is None or not table.num_rows:
        frame.note("`mechscope compare ... --panels layers` also measures stream, geometry, heads and losses by layer.")
        return
    frame.heading("Measures of each model by layer", "both models beside each other; a title says how to read it")
    with readable():
        families = list(dict.fromkeys(titles["family"].to_pylist()))
        family = st.segmented_control(
            "Family", families, default=families[0], required=True, key="layer-family", label_visibility="collapsed"
        )
        found = multiples_of(table, titles, str(family))
    for name in ("stream", "geometry", "importance", "attention", "spectra"):
        why = comparison.summaries.get("layers", {}).get(f"{name}_refused")
        if why:
            frame.note(f"{name} is left out of {why}")
    if found:
        figure = layer_multiples(found, [f"a: {comparison.a}", f"b: {comparison.change}"], headings=False)
        with st.container(key="wide-layer-panel"):
            frame.chart(figure, key=f"layer-panel-{family}", alt=f"{family}: measures by layer of both models")


def multiples_of(table: Any, titles: Any, family: str) -> list[Multiple]:
    """Return a small figure for each measure of a family, with the lines of both models."""
    rows = [row for row in table.to_pylist() if row["family"] == family]
    found = []
    for title in (one for one in titles.to_pylist() if one["family"] == family):
        lines = []
        own = [row for row in rows if row["measure"] == title["measure"]]
        for model, side in enumerate("ab"):
            for part in dict.fromkeys(row["part"] for row in own):
                points = sorted((row for row in own if row["part"] == part), key=lambda row: row["layer"])
                numbers = [[_number(row.get(f"{key}_{side}")) for row in points] for key in ("value", "low", "high")]
                lines.append(LayerLine(part, [row["layer"] for row in points], *numbers, model=model))
        if lines:
            found.append(Multiple(title["label"], lines, unit=title["unit"], note=title["note"], group=family))
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value
