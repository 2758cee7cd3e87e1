"""What the probes of a study told right, by layer and position, with what they have to beat; depth; k-sparse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st

from app.widgets import frame, state
from app.widgets.heat_map import Axis, heat_map
from app.widgets.probe_studies import DIFFERENCES, MEASURES, Study
from app.widgets.text import number, share
from interp.figures import ProbeCurve, probe_curves

BESIDE = ("random weights", "bag of tokens", "position only", "shuffled labels", "majority", "control task")
"""Baselines in the order of their dashes; others come after these."""
CHANCE = 0.5
"""AUC of a probe that knows nothing."""


def by_layer(study: Study, kind: str, position: str, measure: str) -> None:
    """Draw a measure over the layers at one position, baselines beside it; a click chooses the layer."""
    here = [row for row in study.rows if row["kind"] == kind and row["position"] == position]
    curves = [curve(MEASURES[measure], [row for row in here if row["measure"] == measure])]
    if measure == "accuracy":  # a baseline is an accuracy, and stands beside nothing else
        names = {row["measure"] for row in here} - {*MEASURES, *DIFFERENCES}
        order = [*(name for name in BESIDE if name in names), *sorted(names - {*BESIDE})]
        curves += [curve(name, [row for row in here if row["measure"] == name], beside=True) for name in order]
    draw(curves, MEASURES[measure], f"curve-{measure.replace(' ', '-')}")


def draw(curves: Sequence[ProbeCurve], title: str, key: str) -> None:
    """Draw curves, or say that there is no number."""
    if not any(math.isfinite(value) for one in curves for value in one.values):
        frame.note(f"There is no {title} here.")
        return
    figure = probe_curves(curves, title=title, percent="AUC" not in title)
    frame.chart(
        figure, key=key, on_select=lambda: _clicked(key), selection_mode="points", alt=f"{title} by layer"
    )  # fmt: skip


def _clicked(key: str) -> None:
    layer = state.selected_latent(st.session_state.get(key))  # the point's customdata
    if layer is not None:
        state.put("layer", layer)


def curve(
    label: str, rows: Sequence[Mapping[str, Any]], value: str = "value", low: str = "low", high: str = "high",
    *, beside: bool = False,
) -> ProbeCurve:  # fmt: skip
    """Return the curve of rows that differ by layer only."""
    rows = sorted(rows, key=lambda row: row["layer"])
    columns = ([_finite(row.get(name)) for row in rows] for name in (value, low, high))
    return ProbeCurve(label, [row["layer"] for row in rows], *columns, beside=beside)


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def by_position(study: Study, kind: str, positions: Sequence[str], cell: tuple[int, str]) -> None:
    """Draw the map of AUC, layer by position; a click chooses both."""
    rows = [row for row in study.rows if row["kind"] == kind and row["measure"] == "auc"]
    layers = sorted({row["layer"] for row in rows})
    values = np.full((len(layers), len(positions)), np.nan)
    for row in rows:
        values[layers.index(row["layer"]), positions.index(row["position"])] = _finite(row["value"]) - CHANCE
    frame.heading("AUC, layer by position", "above chance, which is 0.5; click a cell to choose both")
    down = Axis("layer", [str(layer) for layer in layers], [str(layer) for layer in layers], "layer")
    across = Axis("at", list(positions), list(positions), "position")
    at = (layers.index(cell[0]), list(positions).index(cell[1])) if cell[0] in layers else None
    with st.container(width=160 + 90 * len(positions) if len(positions) < 12 else "stretch"):
        heat_map(
            "positions", values, down, across, cell=at, value="AUC − 0.5", signed=True, limit=CHANCE,
            boxes=False,
        )  # fmt: skip


def concept_depth(study: Study, kind: str, position: str) -> None:
    """Draw a depth study: the original model, prompts with noise and compressed copies, and where each settles."""
    columns = ("variant", "kind", "layer", "position", "accuracy", "accuracy_low", "accuracy_high", "auc_drop")
    rows = [
        r for r in study.table("layers", *columns).to_pylist() if r["kind"] == kind and r["position"] == position
    ]  # fmt: skip
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    with st.container(key="split-curves-depth"):
        left, right = st.columns(2, gap="medium")
    with left:
        st.html('<p class="ms-curve">accuracy<span>of each variant’s own probes</span></p>')
        draw([_variant(rows, one, "accuracy") for one in variants], "accuracy", "depth-accuracy")
    with right:
        st.html('<p class="ms-curve">AUC lost<span>original less variant, same test texts</span></p>')
        draw([_variant(rows, one, "auc_drop") for one in variants if one != "original"], "AUC lost", "depth-drop")
    depths = study.table("depths", "variant", "kind", "position", "jump", "converging", "best_layer")
    found = [row for row in depths.to_pylist() if row["kind"] == kind and row["position"] == position]
    names = {
        "variant": "variant", "jump": "jump", "converging": "converging", "converging_literal": "converging, literal",
        "best_layer": "best layer", "best_layer_shift": "shift", "auc_drop_mean": "mean AUC lost",
    }  # fmt: skip
    table = pa.table({title: [row.get(name) for row in found] for name, title in names.items()})
    st.dataframe(table, hide_index=True, alt="Jump and converging point of each variant")
    frame.note(
        "Jump: first depth at which accuracy grows by a tenth. Converging: depth from which it stays within 3 %. "
        "Both are shares of the layers; empty where there is no such layer."
    )


def _variant(rows: Sequence[Mapping[str, Any]], variant: str, value: str) -> ProbeCurve:
    own = [row for row in rows if row["variant"] == variant]
    return curve(variant, own, value, f"{value}_low", f"{value}_high")


def sparse_curves(study: Study, kind: str, position: str, layer: int) -> None:
    """Draw the accuracy of probes on k neurons at the chosen layer, as a table with intervals."""
    table = study.table("k_sparse", "kind", "layer", "position", "k", "accuracy", "low", "high", "chosen")
    rows = [r for r in table.to_pylist() if (r["kind"], r["layer"], r["position"]) == (kind, layer, position)]
    if not rows:
        frame.note("No probe on few neurons was fitted at this place.")
        return
    shown = {
        "k": [row["k"] for row in rows],
        "accuracy": [share(_finite(row["accuracy"])) for row in rows],
        "95 %": [f"{share(_finite(row['low']))} to {share(_finite(row['high']))}" for row in rows],
        "AUC": [number(_finite(row.get("auc"))) for row in rows],
        "random weights": [share(_finite(row.get("random_weights"))) for row in rows],
        "columns of the activation": [", ".join(str(i) for i in (row["chosen"] or [])[:16]) for row in rows],
    }
    st.dataframe(pa.table(shown), hide_index=True, alt="Accuracy of probes on few neurons")
