"""One heat map with drill-down: a click on a cell, or the two boxes below it, choose a row and a column.

The chosen cell lives in the address (one query parameter for each axis), so links, Back and other pieces of the page
share it. A click only writes the address; whoever draws the cell's details reads `chosen`. The figure itself is
`interp.figures.heat_map`, which a notebook can draw as well. The frame of the chosen cell is a mark over it: the figure
stays the same, so a click costs no new drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from app.widgets import frame, state
from app.widgets.mark import cell_spot, mark
from interp.figures import heat_map as heat_map_figure


@dataclass(frozen=True)
class Axis:
    """The rows or the columns of a map."""

    key: str
    """Query parameter that holds the chosen one."""
    ids: Sequence[str]
    """What the address says for each, all different."""
    labels: Sequence[str]
    """What is drawn for each: plain text."""
    title: str
    """What they are, in a word or two."""

    def read(self, text: str) -> str | None:
        """Return the id that `text` names: all of it, or the last eight characters, which are the hash of a run."""
        found = [i for i in self.ids if i == text] or [i for i in self.ids if len(text) == 8 and i.endswith(text)]
        return found[0] if len(found) == 1 else None


def chosen(axis: Axis, default: int = 0) -> int:
    """Return the index that the address chooses on `axis`; a value that means nothing is replaced, with a note."""
    expected = f"one of {len(axis.ids)}: {axis.ids[0]} to {axis.ids[-1]}" if len(axis.ids) > 1 else axis.ids[0]
    found, strange = state.settle(axis.key, axis.read, axis.ids[default], expected)
    if strange:
        frame.note(strange)
    return list(axis.ids).index(found)


def picked(selection: Any) -> tuple[int, int] | None:
    """Return (row, column) of a chart's selected point, None where there is none."""
    points = selection.get("selection", {}).get("points", []) if hasattr(selection, "get") else []
    data = points[0].get("customdata") if points else None
    if isinstance(data, dict):  # an array that was not a list comes back with its indices as keys
        data = list(data.values())
    return (int(data[0]), int(data[1])) if data and len(data) > 1 else None


def take(key: str, rows: Axis, columns: Axis, also: Mapping[str, str] | None = None) -> None:
    """Write the cell that was clicked in the map `key` into the address: the callback of a click.

    `also` is what else a click in this map means: further keys of the address. Plotly unselects a point that is clicked
    again and then reports no point; that means the same cell once more.
    """
    cell = picked(st.session_state.get(key)) or st.session_state.get(f"_{key}")
    if cell is not None and cell[0] < len(rows.ids) and cell[1] < len(columns.ids):
        st.session_state[f"_{key}"] = cell
        state.put(rows.key, rows.ids[cell[0]])
        state.put(columns.key, columns.ids[cell[1]])
        for name, value in (also or {}).items():
            state.put(name, value)


def heat_map(
    key: str,
    values: Any,
    rows: Axis,
    columns: Axis,
    *,
    cell: tuple[int, int] | None,
    value: str = "value",
    signed: bool = False,
    limit: float | None = None,
    hover: Sequence[Sequence[str]] | None = None,
    boxes: bool = True,
    also: Mapping[str, str] | None = None,
) -> None:
    """Draw the map with `cell` framed.

    Args:
        key: of the widget, unique on the page.
        values: [rows columns].
        rows: the rows.
        columns: the columns.
        cell: the chosen (row, column), from `chosen`; None where it is in another map.
        value: what the colours are.
        signed: whether the values have two signs.
        limit: |value| of the full colour.
        hover: one plain line for each cell.
        boxes: whether the two boxes for the keyboard are drawn below; a page that has its own leaves them out.
        also: further keys of the address that a click sets.
    """
    figure = heat_map_figure(
        values, rows.labels, columns.labels, signed=signed, limit=limit, titles=("", columns.title, value),
        hover=hover,
    )  # fmt: skip
    size = f"{len(rows.ids)} rows ({rows.title}) and {len(columns.ids)} columns ({columns.title})"
    with st.container(gap=None):
        frame.chart(
            figure, key=key, selection_mode="points",
            on_select=lambda: take(key, rows, columns, also), alt=f"{value} for each of {size}",
        )  # fmt: skip
        if cell is not None:
            mark(key, cell_spot(cell, (len(rows.ids), len(columns.ids))))
    if boxes and cell is not None:
        with st.container(horizontal=True, gap="small"):
            for axis, at in ((rows, cell[0]), (columns, cell[1])):
                box(axis, at, f"{key}-{axis.key}")


def box(axis: Axis, at: int, key: str) -> None:
    """Draw the select box of an axis: the way to a cell without a mouse."""
    names = dict(zip(axis.ids, axis.labels, strict=True))
    st.session_state[key] = axis.ids[at]
    st.selectbox(
        axis.title, list(axis.ids), key=key, format_func=lambda name: str(names.get(name, name)),
        on_change=state.take, args=(axis.key, key), width=260,
    )  # fmt: skip
