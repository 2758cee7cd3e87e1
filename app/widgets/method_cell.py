"""One cell as every method scores it: a table, and the value of each prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import streamlit as st

from app.widgets import frame
from app.widgets.attributions import PATCHING, Scored, sentence
from app.widgets.cell_maps import AXIS_NAMES
from app.widgets.text import count, number, safe
from interp.figures import prompt_values

HEADS = (
    ("method", ""),
    ("score", "mean over prompts, in units of the metric"),
    ("±", "standard error over prompts"),
    ("rank", "place among the cells of this kind, by |score|"),
    ("measured", "effect of really patching this cell, where the method's check did that"),
)


def method_cell(methods: Sequence[Scored], kind: str, axis: str, cell: tuple[int, int]) -> None:
    """Write the table of the methods, and draw the value of each prompt under each of them."""
    layer, column = cell
    frame.heading(f"{kind}.{layer}, {AXIS_NAMES[axis]} {column}", "the same cell under every method")
    with st.container(key="split-cell"):
        left, right = st.columns([1, 1.35], gap="large")
    with left, frame.section():
        _table(methods, kind, axis, cell)
    with right, frame.section():
        found = {one.method: one.values(kind, layer, **{axis: column}) for one in methods}
        held = {name: values.tolist() for name, values in found.items() if values is not None}
        sizes = {len(values) for values in held.values()}
        if len(sizes) != 1:
            frame.note("The runs hold no values of single prompts.")
            return
        rows = next((one.prompts for one in methods if len(one.prompts) == max(sizes)), [])
        labels = [sentence(row, "clean") for row in rows] or [""] * max(sizes)
        frame.chart(
            prompt_values(held, labels), key="cell-prompts",
             alt=f"Score of the cell at each of {max(sizes)} prompts under each method",
        )  # fmt: skip


def _table(methods: Sequence[Scored], kind: str, axis: str, cell: tuple[int, int]) -> None:
    head = "".join(f'<th class="{"n" if why else ""}" title="{safe(why)}">{name}</th>' for name, why in HEADS)
    lines = "".join(_line(one, kind, axis, cell) for one in methods)
    table = f'<table class="ms-table ms-wide"><tr>{head}</tr>{lines}</table>'
    st.html(f'<div class="ms-scroll">{table}</div>')


def _line(one: Scored, kind: str, axis: str, cell: tuple[int, int]) -> str:
    scores = one.plane(kind, axis)
    exact = one.found.parts(kind) == (axis,)  # what is added up over other parts has no error or check of its own
    if scores is None or not all(at < size for at, size in zip(cell, scores.shape, strict=True)):
        return f'<tr class="null"><td>{safe(one.method)}</td><td class="n" colspan="4">no such cell</td></tr>'
    score = float(scores[cell])
    rank = 1 + int((np.abs(scores) > abs(score) * (1 + 1e-6)).sum())  # equal up to rounding: the same place
    of = int(np.isfinite(scores).sum())
    more = [_at(one, kind, axis, name, cell) if exact else None for name in ("stderr", "measured")]
    measured = number(score if one.method == PATCHING else more[1])
    cells = (number(score), number(more[0]), f"{count(rank)} of {count(of)}", measured)
    return f"<tr><td>{safe(one.method)}</td>{''.join(f'<td class=n>{safe(text)}</td>' for text in cells)}</tr>"


def _at(one: Scored, kind: str, axis: str, column: str, cell: tuple[int, int]) -> float | None:
    values = one.plane(kind, axis, column)
    return None if values is None or not np.isfinite(values[cell]) else float(values[cell])
