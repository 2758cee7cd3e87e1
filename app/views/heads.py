"""Heads: a score of every attention head as a map, all scores as a table; of one head its partners, tokens, pattern."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import streamlit as st

from app.widgets import frame, state
from app.widgets.head_pattern import pattern_box
from app.widgets.head_scores import MEANINGS, HeadScores, both
from app.widgets.heat_map import Axis, box, chosen, heat_map
from app.widgets.profiles import Shown, choose, empty, facts, footer, python, unfinished
from app.widgets.text import number, safe, tokens_html
from interp.runs import find_runs, runs_root

WRITTEN = 4  # decimals in the table


def show() -> None:
    """Draw the page."""
    root = runs_root()
    with frame.section():
        if st.query_params.get("layer") == "-1":  # of the Layers page: the embeddings have no heads
            st.query_params["layer"] = "0"
        shown = choose(root)
        if not shown:
            if not find_runs(root, kind="layers", finished=True):
                empty(root)
            unfinished(root)
            return
        facts(shown)
        scores = both(shown)
        if scores:
            body(scores)
        else:
            frame.note("This profile holds no table of heads; the families attention and readout make one:")
            st.code(f"mechscope layers {shown[0].run.config.get('model', {}).get('name', 'NAME')}", language="bash")
        state.keep_layers({})
        frame.python(_python(shown) if scores else python(shown))
        footer(shown)


@st.fragment
def body(scores: Sequence[HeadScores]) -> None:
    """Draw everything that a click on a head changes."""
    names = list(dict.fromkeys(name for one in scores for name in one.scores))
    shape = max(one.shape[0] for one in scores), max(one.shape[1] for one in scores)
    axis = Axis("hs", names, names, "score")
    score = names[chosen(axis, names.index("induction") if "induction" in names else 0)]
    rows = Axis("layer", [str(i) for i in range(shape[0])], [str(i) for i in range(shape[0])], "layer")
    across = Axis("head", [str(i) for i in range(shape[1])], [str(i) for i in range(shape[1])], "head")
    first = scores[0].grid(score)
    best = np.unravel_index(np.nanargmax(first), first.shape) if np.isfinite(first).any() else (0, 0)
    asked = chosen(rows, int(best[0]))
    same = first[asked] if asked < len(first) else np.full(1, np.nan)
    inside = int(best[1]) if asked == int(best[0]) else int(np.nanargmax(same)) if np.isfinite(same).any() else 0
    cell = asked, chosen(across, inside)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="filters"):
        box(axis, names.index(score), "hs-box")
        box(rows, cell[0], "layer-box")
        box(across, cell[1], "head-box")
    frame.note(f"{score}: {MEANINGS.get(score, 'a number of each head')}. Click a head.")
    maps(scores, score, shape, rows, across, cell)
    with st.container(key="split-head"):
        left, right = st.columns([1, 1], gap="large")
    with left, frame.section(f"Head {cell[0]}.{cell[1]}", "layer.head"):
        numbers(scores, cell)
    with right, frame.section("Composition", "which earlier head it reads most of, and who reads it; above random"):
        partners(scores[0], cell)
        decoded(scores[0], cell)
    with right if len(scores) == 1 else st.container(), frame.section():
        pattern_box([one.shown for one in scores], *cell)
    with frame.section("All heads", "click a row; sort by a column"):
        table(scores[0], names, rows, across)


def maps(
    scores: Sequence[HeadScores], score: str, shape: tuple[int, int], rows: Axis, across: Axis, cell: tuple[int, int]
) -> None:
    """Draw the score of every head under each model, and the difference."""
    grids = [one.grid(score, shape) for one in scores]
    drawn = [(one.shown.label, grid) for one, grid in zip(scores, grids, strict=True)]
    if len(grids) > 1:
        drawn.append(("b − a", grids[1] - grids[0]))
    everything = np.concatenate([grid.ravel() for grid in grids])
    limit = max(1e-9, float(np.nanmax(np.abs(everything), initial=0.0)))
    with st.container(key="split-curves-heads"):
        places = st.columns(max(2, len(drawn)), gap="medium")
    hover = [[f"layer {r} head {c}" for c in range(shape[1])] for r in range(shape[0])]
    for i, (place, (title, grid)) in enumerate(zip(places, drawn, strict=False)):
        with place, st.container(gap=None):
            st.html(f'<p class="ms-curve">{safe(title)}<span>{safe(score)}, layer by head</span></p>')
            differs = i == len(grids)
            signed = differs or bool(np.nanmin(everything, initial=0.0) < 0)
            top = max(1e-9, float(np.nanmax(np.abs(grid), initial=0.0))) if differs else limit
            heat_map(
                f"heads-{i}", grid, rows, across, cell=cell, value=score, signed=signed, limit=top, hover=hover,
                boxes=False,
            )  # fmt: skip


def numbers(scores: Sequence[HeadScores], cell: tuple[int, int]) -> None:
    """Write every score of one head, under each model, with what it means."""
    found = [one.row(*cell) for one in scores]
    names = [name for name in dict.fromkeys(n for one in scores for n in one.scores) if any(name in r for r in found)]
    if not names:
        frame.note("This model has no such head.")
        return
    heads = "".join(f'<th class="n">{safe(one.shown.label)}</th>' for one in scores)
    lines = "".join(
        f'<tr><td title="{safe(MEANINGS.get(name, ""))}">{safe(name)}</td>'
        + "".join(f'<td class="n">{_written(row.get(name))}</td>' for row in found)
        + f'<td class="d">{safe(MEANINGS.get(name, ""))}</td></tr>'
        for name in names
    )
    st.html(f'<table class="ms-table"><tr><th>score</th>{heads}<th></th></tr>{lines}</table>')


def _written(value: object) -> str:
    return number(float(value)) if isinstance(value, int | float) else "–"


def partners(scores: HeadScores, cell: tuple[int, int]) -> None:
    """Write which earlier head this one reads most of by q, k and v, and which later ones read this one."""
    reads, readers = scores.partners(*cell), scores.readers(*cell)
    if not reads and not readers:
        frame.note("In the first layer there is nothing earlier to read, and no later head reads most of this one.")
    address = state.layers_address(st.session_state.get("_run"))
    for title, found in (("reads", reads), ("is read by", readers[:6])):
        for i, (kind, layer, head, value) in enumerate(found):
            with st.container(horizontal=True, gap="small", key=f"links-{title.replace(' ', '-')}-{i}"):
                there = {**address, "layer": str(layer), "head": str(head)}
                st.page_link(state.HEADS_PAGE, label=f"{title} {layer}.{head}", query_params=there)
                frame.note(f"by {kind.upper()}, {number(value)} above random")


def decoded(scores: HeadScores, cell: tuple[int, int]) -> None:
    """Write the tokens of the head's first OV direction, where the profile holds them."""
    row = scores.row(*cell)
    lists = {name: row.get(name) for name in ("reads", "writes")}
    if not all(isinstance(words, list) and words for words in lists.values()):
        return
    frame.heading("First direction of OV", "tokens that it reads, and what it then writes")
    for name, words in lists.items():
        st.html(f'<p class="ms-note">{name} {tokens_html([str(word) for word in words or []])}</p>')


def table(scores: HeadScores, names: Sequence[str], rows: Axis, across: Axis) -> None:
    """Draw all scores of all heads as a table that can be sorted; a click on a row chooses its head."""
    places = sorted(scores.rows)
    data = pa.table(
        {"head": [f"{layer}.{head}" for layer, head in places]}
        | {name: pa.array([scores.rows[place].get(name) for place in places], pa.float64()) for name in names}
    )
    columns = {
        name: st.column_config.NumberColumn(name, help=MEANINGS.get(name), format=f"%.{WRITTEN}g") for name in names
    }

    def take() -> None:
        at = state.selected_row(st.session_state.get("heads-table"))
        if at is not None and at < len(places):
            state.put(rows.key, places[at][0])
            state.put(across.key, places[at][1])

    st.dataframe(
        data, hide_index=True, column_config=columns, key="heads-table", on_select=take, selection_mode="single-row",
        height=min(38 * (len(places) + 1), 460),
    )  # fmt: skip


def _python(shown: Sequence[Shown]) -> list[str]:
    return [*python(shown)[:-1], 'a.results["attention"].tables["heads"].to_pandas()']


if __name__ == "__main__":
    show()
