"""Maps of cells, layer by position or layer by head, of several runs on one cell that is chosen in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from app.widgets.heat_map import Axis, box, chosen, heat_map
from app.widgets.questions import AXES
from app.widgets.text import number, safe, visible

AXIS_NAMES = {"pos": "position", "head": "head"}
PER_ROW = ((16, 3), (40, 2))  # columns of a map, at most -> maps side by side


@dataclass(frozen=True)
class Map:
    """Scores [layer column] with a title."""

    title: str
    """What is drawn, in a word or two."""
    aside: str
    """More of it, in small type."""
    values: NDArray[np.float64]
    """[layer column], NaN where there is no cell."""
    axis: str
    """`pos` or `head`."""
    spread: NDArray[np.float64] | None = None
    """Standard errors of the same cells."""
    also: dict[str, str] = field(default_factory=dict)
    """What else of the address a click in it sets."""
    framed: bool = True
    """Whether the chosen cell is one of this map."""


def layer_axis(n: int) -> Axis:
    """Return the rows of maps of `n` layers."""
    names = list(map(str, range(n)))
    return Axis("l", names, names, "layer")


def column_axis(axis: str, n: int, tokens: Sequence[str]) -> Axis:
    """Return the columns of maps by `axis`; positions are labelled by what stands there, if `tokens` say it."""
    names = list(map(str, range(n)))
    labels = names
    if axis == "pos":
        said = [visible(token, limit=12) for token in tokens[:n]] + [""] * n
        labels = [f"{i} {text}".strip() for i, text in zip(names, said, strict=False)]
    return Axis(AXES[axis], names, labels, AXIS_NAMES[axis])


def axes_of(maps: Sequence[Map], tokens: Sequence[str]) -> tuple[Axis, Axis]:
    """Return rows and columns that hold the cells of all `maps`, which are by the same axis."""
    layers, columns = (max(one.values.shape[i] for one in maps) for i in (0, 1))
    return layer_axis(layers), column_axis(maps[0].axis, columns, tokens)


def chosen_cell(maps: Sequence[Map], rows: Axis, columns: Axis) -> tuple[int, int]:
    """Return the cell of the address; without one, that with the largest |score| of the first map."""
    first = np.abs(np.nan_to_num(maps[0].values))
    at = np.unravel_index(int(first.argmax()), first.shape)
    return chosen(rows, int(at[0])), chosen(columns, int(at[1]))


def limit_of(maps: Sequence[Map]) -> float:
    """Return the largest |score| of all maps; 1 where all are 0."""
    return max((float(np.nanmax(np.abs(one.values), initial=0.0)) for one in maps), default=0.0) or 1.0


def draw_maps(
    key: str,
    maps: Sequence[Map],
    rows: Axis,
    columns: Axis,
    cell: tuple[int, int],
    limit: float | None,
    value: str = "score",
    across: int | None = None,
) -> None:
    """Draw the maps side by side, `across` of them in a row (None: as many as can be read).

    `limit` is the |score| of the full colour; None gives each map its own.
    """
    wide = max(one.values.shape[1] for one in maps)
    across = across or next((n for most, n in PER_ROW if wide <= most), 1)
    for start in range(0, len(maps), across):
        with st.container(key=f"split-curves-{key}-{start}"):
            places = st.columns(across, gap="medium")
        for place, (i, one) in zip(places, list(enumerate(maps))[start : start + across], strict=False):
            with place, st.container(gap=None):
                st.html(f'<p class="ms-curve">{safe(one.title)}<span>{safe(one.aside)}</span></p>')
                _draw(f"{key}-{i}", one, rows, columns, cell, limit, value)


def _draw(
    key: str, one: Map, rows: Axis, columns: Axis, cell: tuple[int, int], limit: float | None, value: str
) -> None:
    grid, spread = np.full((len(rows.ids), len(columns.ids)), np.nan), None
    grid[: one.values.shape[0], : one.values.shape[1]] = one.values
    if one.spread is not None:
        spread = np.full_like(grid, np.nan)
        spread[: one.spread.shape[0], : one.spread.shape[1]] = one.spread
    heat_map(
        key, grid, rows, columns, cell=cell if one.framed else None, value=value, signed=True,
        limit=limit or limit_of([one]), hover=_lines(one.title, rows, columns, spread), boxes=False, also=one.also,
    )  # fmt: skip


def _lines(title: str, rows: Axis, columns: Axis, spread: NDArray[np.float64] | None) -> list[list[str]]:
    """Return a line for each cell: what it is, and its standard error."""

    def line(r: int, c: int) -> str:
        error = f" · ± {number(float(spread[r, c]))}" if spread is not None and np.isfinite(spread[r, c]) else ""
        return f"{title} · layer {r} {columns.title} {columns.labels[c]}{error}"

    return [[line(r, c) for c in range(len(columns.ids))] for r in range(len(rows.ids))]


def boxes(rows: Axis, columns: Axis, cell: tuple[int, int], key: str) -> None:
    """Draw the boxes that choose a cell without a mouse."""
    with st.container(horizontal=True, gap="small"):
        box(rows, cell[0], f"{key}-l")
        box(columns, cell[1], f"{key}-c")
