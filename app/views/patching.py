"""Patching: the measured effect of every layer, position and head, and what stands behind each: prompts, attention."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app.widgets import frame, state
from app.widgets.attributions import PATCHING, Scored
from app.widgets.patch_charts import charts_of, maps_and_cell
from app.widgets.questions import (
    Question,
    choose_question,
    empty,
    facts,
    footer,
    python,
    questions,
    readable_runs,
    unfinished,
)
from interp.runs import runs_root

WHAT = "This page shows what happens when an activation of one prompt is put into the run of another."


def show() -> None:
    """Draw the page."""
    root = runs_root()
    found = [_only_patching(question) for question in questions(root)]
    found = [question for question in found if question.runs]
    if not found:
        empty(root, WHAT)
        return
    with frame.section():
        question = choose_question(found)
        runs = readable_runs(question)
        charts = charts_of(question, runs)
        if not charts:
            frame.note("None of these runs has a map by position or head.")
            return
        facts(question, runs)
        with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="filters"):
            part = st.toggle(
                "As a share of the effect", key="share", bind="query-params",
                help="Divides by clean minus corrupted metric: 100% restores (or destroys) all of it.",
            )  # fmt: skip
            own = st.toggle(
                "Each its own colours", key="own", bind="query-params",
                help="One scale for all maps shows which kind of site matters; their own shows faint cells.",
            )  # fmt: skip
        maps_and_cell(charts, part, own)
        unfinished(root)
        state.keep_attribution("patching", {"share": False, "own": False})
        frame.python(python(runs[:1], charts[0].kind))
        footer(question, runs, root)


def _only_patching(question: Question) -> Question:
    return replace(question, runs=[run for run in question.runs if Scored(run).method == PATCHING])


if __name__ == "__main__":
    show()
