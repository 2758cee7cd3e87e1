"""The strongest cells of a method, over all kinds of sites, with what the other methods and patching say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st

from app.widgets import frame, state
from app.widgets.attributions import PATCHING, Scored
from app.widgets.questions import AXES, choose
from interp.attribution.result import PARTS
from interp.attribution.saving import cell_name

CELLS = 20


def top_cells(methods: Sequence[Scored], drawn: Sequence[str]) -> None:
    """Draw the table of the strongest cells of one method; a click on a row chooses the cell.

    Args:
        methods: the runs, newest first for each method.
        drawn: kinds that the page draws, which alone can be chosen.
    """
    names = list(dict.fromkeys(one.method for one in methods))
    name = choose("rank", "Strongest cells by", names)
    ranked = [one for one in methods if one.method == name]
    rows = [row for one in ranked for row in one.found.top(CELLS).to_pylist() if np.isfinite(row["score"])]
    rows = list({cell_name(row): row for row in reversed(rows)}.values())
    rows = sorted(rows, key=lambda row: -abs(row["score"]))[:CELLS]
    if not rows:
        frame.note("No cell has a finite score.")
        return
    others: dict[str, list[Scored]] = {}
    for one in methods:
        if one.method not in (name, PATCHING):
            others.setdefault(one.method, []).append(one)
    truth = [one for one in methods if one.method == PATCHING]
    columns: dict[str, Any] = {
        "cell": [cell_name(row) for row in rows],
        "score": [row["score"] for row in rows],
        "± stderr": [row["stderr"] for row in rows],
    }
    if name != PATCHING:
        columns["measured"] = [_measured(row, truth) for row in rows]
    for other, runs in others.items():
        columns[other] = [_score(row, runs) for row in rows]
    figures = {key: st.column_config.NumberColumn(format="%.3g") for key in columns if key != "cell"}
    st.dataframe(
        pa.table(columns), hide_index=True, key="top-cells", selection_mode="single-row", row_height=30,
        column_config=figures, on_select=lambda: _take(rows, drawn), height="content", alt=f"Strongest cells of {name}",
    )  # fmt: skip


def _measured(row: dict[str, Any], truth: Sequence[Scored]) -> float | None:
    """Return the effect of patching the cell: what the method's own check found, else the map of a patching run."""
    return row["measured"] if row["measured"] is not None else _score(row, truth)


def _score(row: dict[str, Any], runs: Sequence[Scored]) -> float | None:
    """Return the score of the same cell in the first of `runs` that has it, None where none does."""
    parts = tuple(part for part in PARTS if row[part] is not None)
    for one in runs:
        if row["kind"] in one.found.kinds and one.found.parts(row["kind"]) == parts:
            values = one.found.map(row["kind"])
            at = (row["layer"], *(row[part] for part in parts))
            if all(i < n for i, n in zip(at, values.shape, strict=True)) and np.isfinite(values[at]):
                return float(values[at])
        elif len(parts) == 1 and (plane := one.plane(row["kind"], parts[0])) is not None:
            at = (row["layer"], row[parts[0]])
            return float(plane[at]) if all(i < n for i, n in zip(at, plane.shape, strict=True)) else None
    return None


def _take(rows: Sequence[dict[str, Any]], drawn: Sequence[str]) -> None:
    """Write the cell of the chosen row into the address."""
    at = state.selected_row(st.session_state.get("top-cells"))
    if at is not None and at < len(rows) and rows[at]["kind"] in drawn:
        state.put("kind", rows[at]["kind"])
        state.put("l", rows[at]["layer"])
        for part, key in AXES.items():
            if rows[at][part] is not None:
                state.put(key, rows[at][part])
