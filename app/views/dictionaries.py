"""Dictionaries: all that a folder holds of one model, site and text: sparsity against quality, rules at one L0."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import streamlit as st

from app.widgets import frame, state
from app.widgets.dictionary_card import card
from app.widgets.groups import METRICS, Group, groups
from app.widgets.heat_map import Axis, chosen
from app.widgets.mark import mark, point_spot
from app.widgets.side_by_side import choices, default_choice, explain, sides, table
from app.widgets.text import safe
from interp.figures import pareto
from interp.runs import Run, runs_root

REPEATS = 12  # links to other seeds
COMMANDS = 3  # commands that are offered at once, for dictionaries without an evaluation


def show() -> None:
    """Draw the page."""
    root = runs_root()
    found = groups(root)
    if not found:
        empty(root)
        return
    with frame.section():
        group = choose_group(found)
        if group.metrics:
            drawing(group, pick(group))
            with frame.section("Rules side by side", "at one L0"):
                beside(group)
        else:
            frame.note("None of these dictionaries says its L0. This measures one:")
            evaluate(group.dictionaries)
        with frame.section("All of them", "click one to choose it"):
            listing(group)
        state.keep_dictionaries({"metric": "FVU"})
        frame.python(python(group))
        frame.facts_line(
            {"model": group.model, "site": group.site, "text": group.text, "dictionaries": len(group.dictionaries),
             "evaluated": len(group.evaluations), "runs": root}
        )  # fmt: skip


def empty(root: Path) -> None:
    """Say that there is no dictionary, and which commands make some."""
    frame.heading("No dictionary here yet")
    st.html(
        f'<p class="ms-text">This page compares dictionaries: what each leaves unexplained, at which sparsity. The '
        f"folder <code>{safe(root)}</code> holds no finished one. This trains four in one pass over the embedded "
        "model's activations; each is then measured by <code>mechscope evaluate --sae RUN</code>:</p>"
    )
    st.code(
        'mechscope train --rule topk --rule-args k 16 --also "rule_args.k=64" --also "rule=batch_topk rule_args.k=16" '
        '--also "rule=batch_topk rule_args.k=64"', language="bash", wrap_lines=True,
    )  # fmt: skip


def choose_group(found: Sequence[Group]) -> Group:
    """Return the group of the address; a selector appears where there are several."""
    axis = Axis("g", [group.key for group in found], [group.label for group in found], "Dictionaries")
    at = chosen(axis)
    if len(found) > 1:
        st.session_state["g-widget"] = axis.ids[at]
        st.selectbox(
            "Dictionaries of", axis.ids, key="g-widget", format_func=lambda key: axis.labels[axis.ids.index(key)],
            on_change=state.take, args=("g", "g-widget"), width=560, label_visibility="collapsed",
            help="Dictionaries of one model, site, target and text can be compared. The largest group comes first.",
        )  # fmt: skip
    return found[at]


def pick(group: Group) -> Run:
    """Return the dictionary of the address."""
    names = [run.name for run in group.dictionaries]
    axis = Axis("dict", names, names, "dictionary")
    measured = next((i for i, run in enumerate(group.dictionaries) if run.ref in group.features), 0)
    return group.dictionaries[chosen(axis, measured)]


def drawing(group: Group, one: Run) -> None:
    """Draw the figure, and the chosen dictionary beside it."""
    with st.container(key="split-dictionaries"):
        left, right = st.columns([2.1, 1], gap="large")
    with left:
        figure_of(group, choose_metric(group.metrics), one)
        unmeasured = [run for run in group.unmeasured if isinstance(run.summary.get("l0"), int | float)]
        notes(group, unmeasured)
    with right, frame.section():
        runs = [run for run in (group.evaluations.get(one.ref), group.features.get(one.ref)) if run is not None]
        card(one, runs)
        repeats(group, one)


def repeats(group: Group, one: Run) -> None:
    """Draw links to the dictionaries that differ in the seed only."""
    rows = group.points.to_pylist()
    same = next((row["repeat"] for row in rows if row["sae_run"] == one.ref), None)
    others = sorted(
        (row["seed"], row["sae_run"]) for row in rows if row["repeat"] == same and row["sae_run"] != one.ref
    )
    if others:
        with st.container(horizontal=True, vertical_alignment="center", gap="small", key="links-repeats"):
            st.html('<span class="ms-note">The same with</span>', width="content")
            for seed, ref in others[:REPEATS]:
                address = {"g": group.key, "dict": group.by_ref[ref].name}
                st.page_link(state.DICTIONARIES_PAGE, label=f"seed {seed}", query_params=address)


def choose_metric(names: Sequence[str]) -> str:
    """Draw the choice of what is drawn; return the column."""
    titles = {METRICS[name]: name for name in names}
    for text in state.stray(["metric"], lambda _, value: value in titles):
        frame.note(text)
    found = st.segmented_control(
        "Against L0", list(titles), default=next(iter(titles)), required=True, key="metric", bind="query-params",
        label_visibility="collapsed",
    )  # fmt: skip
    return titles.get(str(found), names[0])


def figure_of(group: Group, metric: str, one: Run) -> None:
    """Draw the metric against L0; a click on a point chooses the dictionary."""
    fig = pareto(group.points, metric, rules=sorted({run.config["sae"]["rule"] for run in group.dictionaries}))
    with st.container(gap=None):
        frame.chart(
            fig, key="pareto", selection_mode="points", on_select=_clicked,
            alt=f"{METRICS[metric]} against L0, a line for each rule",
        )  # fmt: skip
        place = spot_of(group.points, metric, one.ref)
        spot = point_spot(fig, *place) if place else None
        if spot is not None:
            mark("pareto", spot)


def spot_of(points: pa.Table, metric: str, ref: str) -> tuple[float, float] | None:
    """Return (L0, metric) of the point that stands for a dictionary and its repeats."""
    rows = points.to_pylist()
    own = next((row for row in rows if row["sae_run"] == ref), None)
    if own is None:
        return None
    alike = [row for row in rows if row["repeat"] == own["repeat"] and row["l0"] and row[metric] is not None]
    if not alike:
        return None
    return sum(row["l0"] for row in alike) / len(alike), sum(row[metric] for row in alike) / len(alike)


def _clicked() -> None:
    chosen_point = st.session_state.get("pareto") or {}
    points = chosen_point.get("selection", {}).get("points", [])
    data = points[0].get("customdata") if points else None
    if isinstance(data, dict):  # an array that was not a list comes back with its indices as keys
        data = list(data.values())
    if data and data[0]:
        state.put("dict", str(data[0]).removeprefix("sae/"))


def notes(group: Group, unmeasured: Sequence[Run]) -> None:
    """Say what the figure cannot: what is not measured, and what is measured on another text."""
    if group.texts > 1:
        frame.note(
            f"The evaluations are of {group.texts} different texts (other --text or --tokens), so small differences "
            "may be the texts'."
        )
    if unmeasured:
        more = f" The first {COMMANDS} commands:" if len(unmeasured) > COMMANDS else " This measures them:"
        frame.note(
            f"{len(unmeasured)} of {len(group.dictionaries)} are not evaluated: hollow points, with the numbers of the "
            f"end of training.{more}"
        )
        evaluate(unmeasured)


def evaluate(runs: Sequence[Run]) -> None:
    """Write the commands that measure some dictionaries."""
    lines = "\n".join(f"mechscope evaluate --sae {run.ref}" for run in runs[:COMMANDS])
    st.code(lines, language="bash", wrap_lines=True)


def beside(group: Group) -> None:
    """Draw the rules at the chosen L0."""
    possible = choices(group.points)
    if not possible:
        frame.note("No run has an L0 above 0.")
        return
    labels = [f"{value:g}" for value in possible]
    for text in state.stray(["l0"], lambda _, value: value in labels):
        frame.note(text)
    if len(labels) > 1:
        at = st.select_slider(
            "L0", labels, value=labels[default_choice(group.points)], key="l0", bind="query-params", width=420,
            help="Active latents per token at which the rules are compared.",
        )  # fmt: skip
    else:
        at = labels[0]
    found = sides(group.points, group.metrics, float(str(at)))
    table(group, found, group.metrics)
    explain(found, float(str(at)))


def listing(group: Group) -> None:
    """Draw every dictionary with its numbers; a click on a row chooses it."""
    known = {row["sae_run"]: row for row in group.points.to_pylist()}
    rows = [known.get(run.ref, {}) for run in group.dictionaries]
    sae = [run.config["sae"] for run in group.dictionaries]
    data: dict[str, Any] = {
        "rule": [str(one.get("rule", "?")) for one in sae],
        "arguments": [", ".join(f"{k} {v}" for k, v in (one.get("rule_args") or {}).items()) for one in sae],
        "latents": [one.get("d_sae") for one in sae],
        "seed": [run.info.get("seed") for run in group.dictionaries],
        "L0": [row.get("l0") for row in rows],
    }
    for name in group.metrics:
        values = [row.get(name) for row in rows]
        data[METRICS[name]] = [100 * v if v is not None else None for v in values] if name == "dead_share" else values
    data["evaluated"] = [run.ref in group.evaluations for run in group.dictionaries]
    data["features"] = [run.ref in group.features for run in group.dictionaries]
    data["run"] = [run.name for run in group.dictionaries]

    def clicked() -> None:
        at = state.selected_row(st.session_state.get("listing"))
        if at is not None and at < len(group.dictionaries):
            state.put("dict", group.dictionaries[at].name)

    shown = pa.table(data)
    st.dataframe(
        shown, hide_index=True, on_select=clicked, selection_mode="single-cell", key="listing", row_height=30,
        height=min(420, 40 + 30 * len(rows)), column_config=columns(shown), alt="Dictionaries and their numbers",
    )  # fmt: skip


def columns(shown: pa.Table) -> dict[str, Any]:
    """Return how each column is written."""
    config = st.column_config
    made: dict[str, Any] = {
        "rule": config.TextColumn("rule", width=110, pinned=True),
        "arguments": config.TextColumn("arguments", width=130),
        "latents": config.NumberColumn("latents", format="%d", width=72),
        "seed": config.NumberColumn("seed", format="%d", width=56),
        "L0": config.NumberColumn("L0", format="%.4g", width=64),
        "dead": config.NumberColumn("dead %", format="%.3g", width=66),
        "evaluated": config.CheckboxColumn("evaluated", width=80),
        "features": config.CheckboxColumn("features", width=76),
        "run": config.TextColumn("run", width=300),
    }
    numbers = {name: config.NumberColumn(name, format="%.4f", width=92) for name in METRICS.values()}
    return {name: (numbers | made)[name] for name in shown.column_names}


def python(group: Group) -> list[str]:
    """Return the lines that draw what the page shows."""
    if not group.evaluations or not group.metrics:
        return []
    root = str(group.dictionaries[0].root)
    return [
        "from interp import figures",
        "from interp.runs import find_runs",
        "from sae.pareto import at_l0, pareto",
        "",
        f'evaluations = find_runs({root!r}, kind="evaluation", finished=True)',
        f'points = pareto([run for run in evaluations if run.config["site"] == {group.site!r}])',
        "figures.pareto(points)",
        "at_l0(points, [16, 32]).to_pandas()",
    ]


if __name__ == "__main__":
    show()
