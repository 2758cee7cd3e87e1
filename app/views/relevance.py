"""Relevance: which activations make the model do a task, by every method that was asked, and how far to trust each."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app.widgets import frame, state
from app.widgets.agreeing import against_measured, agreement, conservation, fidelity
from app.widgets.attributions import METHODS, PATCHING, Scored
from app.widgets.cell_maps import AXIS_NAMES, Map, axes_of, boxes, chosen_cell, draw_maps, limit_of
from app.widgets.method_cell import method_cell
from app.widgets.method_strips import method_strips
from app.widgets.questions import (
    Question,
    choose,
    choose_question,
    empty,
    facts,
    footer,
    kinds_of,
    newest,
    of_variant,
    python,
    questions,
    readable_runs,
    unfinished,
)
from app.widgets.top_cells import top_cells
from interp.runs import runs_root

WHAT = "This page shows which layers, positions and heads make a model do a task, by patching and by faster methods."


def show() -> None:
    """Draw the page."""
    root = runs_root()
    found = questions(root)
    if not found:
        empty(root, WHAT)
        return
    with frame.section():
        question = choose_question(found)
        every = readable_runs(question)
        if not every:
            frame.note("None of the runs of this question can be read.")
            return
        facts(question, every)
        with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="filters"):
            variants = question.variants
            runs = of_variant(every, choose("dir", "Patched", variants) if variants != [""] else "")
            drawn = [kind for kind in kinds_of(runs) if axes(runs, kind)]
            kind = choose("kind", "Site", drawn) if drawn else ""
            axis = choose("ax", "By", axes(runs, kind), [AXIS_NAMES[a] for a in axes(runs, kind)]) if drawn else ""
            own = st.toggle(
                "Each its own colours", key="own", bind="query-params",
                help="One scale for all methods shows which of them overestimate; their own shows faint ones.",
            )  # fmt: skip
        if drawn:
            maps_and_cell(question, runs, kind, axis, own)
        with frame.section("Tokens", "each method's share of every token of a prompt"):
            method_strips(runs, not own)
        trust(runs, kind, axis, drawn)
        with frame.section("Strongest cells", "over all kinds of sites; click a row to choose its cell"):
            top_cells(runs, drawn)
        unfinished(root)
        state.keep_attribution("relevance", {"own": False})
        frame.python(python(list(newest(runs, kind).values()), kind or next(iter(kinds_of(runs)), "")))
        footer(question, runs, root)


def axes(runs: Sequence[Scored], kind: str) -> list[str]:
    """Return what cells of `kind` can be drawn by: heads and positions, as far as any of the runs has them."""
    held = {part for one in runs if kind in one.found.kinds for part in one.found.parts(kind)}
    return [axis for axis in ("head", "pos") if axis in held]


@st.fragment
def maps_and_cell(question: Question, runs: Sequence[Scored], kind: str, axis: str, own: bool) -> None:
    """Draw the map of every method, and the chosen cell under all of them; a click runs this part only."""
    with frame.section():
        draw_cells(question, runs, kind, axis, own)


def draw_cells(question: Question, runs: Sequence[Scored], kind: str, axis: str, own: bool) -> None:
    """Draw what a click on a cell changes."""
    methods = list(newest(runs, kind, axis).values())
    maps = [one for scored in methods if (one := map_of(scored, kind, axis)) is not None]
    tokens = next((one.found.tokens for one in methods if one.found.tokens), ())
    rows, columns = axes_of(maps, tokens)
    cell = chosen_cell(maps, rows, columns)
    frame.heading(f"{kind}, layer by {AXIS_NAMES[axis]}", "blue: what the clean run has there helps; click a cell")
    draw_maps("method", maps, rows, columns, cell, None if own else limit_of(maps))
    absent = [name for name in newest(runs) if name not in {one.method for one in methods}]
    if absent:
        frame.note(f"Not by {AXIS_NAMES[axis]} at {kind}: {', '.join(absent)}.")
    boxes(rows, columns, cell, "cell")
    method_cell(methods, kind, axis, cell)
    if PATCHING in {one.method for one in methods}:
        place = {"l": rows.ids[cell[0]], columns.key: columns.ids[cell[1]]}
        address = {"ask": question.key, "map": kind, **place}
        with st.container(key="links-patching"):
            st.page_link(state.PATCHING_PAGE, label="The prompts behind this cell", query_params=address)


def map_of(one: Scored, kind: str, axis: str) -> Map | None:
    """Return the map of a run; what is by further parts is added up, and says so."""
    values = one.plane(kind, axis)
    if values is None:
        return None
    others = [AXIS_NAMES.get(part, part) for part in one.found.parts(kind) if part != axis]
    summed = f" · added up over {' and '.join(others)}s" if others else ""
    return Map(
        one.method, METHODS.get(one.method, "") + summed, values, axis,
        None if others else one.plane(kind, axis, "stderr"),
    )  # fmt: skip


def trust(runs: Sequence[Scored], kind: str, axis: str, drawn: Sequence[str]) -> None:
    """Draw what the scores add up to, how the methods agree, and the estimates against the measured effects."""
    at_kind = newest(runs, kind, axis)
    with st.container(key="split-curves-trust"):
        places = st.columns(3, gap="medium")
    with places[0], frame.section("Conservation"):
        conservation(list(newest(runs, "resid_pre").values()))
    with places[1], frame.section("Agreement", f"at {kind}" if kind else ""):
        agreement(at_kind, kind)
    with places[2], frame.section("Estimates and measured effects", f"at {kind}" if kind else ""):
        against_measured(at_kind, kind)
    with frame.section():
        fidelity({name: newest(runs, name, axes(runs, name)[0]) for name in drawn})
    if PATCHING not in {one.method for one in runs}:
        frame.note("Without a run of patching there is no truth to hold the methods against: add --methods patching.")


if __name__ == "__main__":
    show()
