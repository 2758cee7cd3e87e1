"""Scores of every attention head in two models: three maps, layer by head, with one chosen cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from app.widgets import frame
from app.widgets.comparisons import Comparison
from app.widgets.heat_map import Axis, box, chosen, heat_map
from app.widgets.text import number, safe

SCORES = {"induction": "attends to what followed the same token before", "previous": "attends to the token before",
          "duplicate": "attends to the same token before"}  # fmt: skip


def head_maps(comparison: Comparison) -> None:
    """Draw a score of every head in a, in b, and the difference; a click runs this part of the page only."""

    @st.fragment
    def part() -> None:
        with frame.section():
            table = comparison.table("heads", "heads", "layer", "head", *(f"{s}_{x}" for s in SCORES for x in "ab"))
            if table is None or not table.num_rows:
                frame.note("The panel heads did not run.")
                return
            score = st.segmented_control(
                "Score", list(SCORES), default="induction", required=True, key="score", bind="query-params",
                label_visibility="collapsed", help="  \n".join(f"**{k}**: {text}" for k, text in SCORES.items()),
            )  # fmt: skip
            columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
            maps(columns, str(score))

    part()


def maps(columns: dict[str, NDArray[Any]], score: str) -> None:
    """Draw the three maps, layer by head, and the chosen head's numbers."""
    layer, head = columns["layer"].astype(np.int64), columns["head"].astype(np.int64)
    shape = int(layer.max()) + 1, int(head.max()) + 1
    rows = Axis("layer", [str(i) for i in range(shape[0])], [str(i) for i in range(shape[0])], "layer")
    across = Axis("head", [str(i) for i in range(shape[1])], [str(i) for i in range(shape[1])], "head")
    a, b = (columns[f"{score}_{side}"].astype(np.float64) for side in "ab")
    worst = int(np.nanargmax(np.abs(b - a))) if np.isfinite(b - a).any() else 0
    cell = chosen(rows, int(layer[worst])), chosen(across, int(head[worst]))
    limit = max(0.1, float(np.nanmax(np.abs(np.concatenate([a, b])), initial=0.0)))
    with st.container(key="split-curves-heads"):
        places = st.columns(3, gap="medium")
    for place, key, title, values, signed in zip(
        places, "abd", ("a", "b", "b − a"), (a, b, b - a), (False, False, True), strict=True
    ):
        with place, st.container(gap=None):
            st.html(f'<p class="ms-curve">{title}<span>{safe(score)}, layer by head</span></p>')
            lines = [[f"layer {r} head {c}" for c in range(shape[1])] for r in range(shape[0])]
            grid = np.full(shape, np.nan)
            grid[layer, head] = values
            heat_map(
                f"heads-{key}", grid, rows, across, cell=cell, value=score, signed=signed, hover=lines,
                limit=limit if not signed else max(0.1, float(np.nanmax(np.abs(grid), initial=0.0))), boxes=False,
            )  # fmt: skip
    at = np.flatnonzero((layer == cell[0]) & (head == cell[1]))
    if at.size:
        said = [
            f"{s} {number(float(columns[f'{s}_a'][at[0]]))} → {number(float(columns[f'{s}_b'][at[0]]))}" for s in SCORES
        ]
        if "pattern_kl" in columns:
            said.append(f"KL of its pattern {number(float(columns['pattern_kl'][at[0]]))} nats")
        frame.note(f"Layer {cell[0]}, head {cell[1]}: {' · '.join(said)}. Click a cell to choose another.")
    with st.container(horizontal=True, gap="small"):
        box(rows, cell[0], "layer-box")
        box(across, cell[1], "head-box")
