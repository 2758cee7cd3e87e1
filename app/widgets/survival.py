"""What became of the features of a dictionary: how many survive, which changed most, and one of them in both models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st
from numpy.typing import NDArray

from app.widgets import frame, state
from app.widgets.artefacts import FeatureSet
from app.widgets.comparisons import Comparison
from app.widgets.mark import mark, point_spot
from app.widgets.notes import notes_of
from app.widgets.paired import change_html, pairs
from app.widgets.text import count, safe, visible
from interp.figures import STATES, survival_bars, survival_scatter

COLUMNS = ("latent", "density_a", "density_b", "peak_a", "peak_b", "r", "state")
SORTS = {
    "r": "correlation of its activations in a and b, lowest first",
    "density": "ratio of its densities in a and b, largest change first",
    "peak": "ratio of its largest activations in a and b, largest change first",
}
AGAINST = {"density": "density_a", "peak": "peak_a"}
CHANGED = ["kept", "blurred", "lost", "new"]
ROWS = 200  # of the table
DEFAULTS = {"states": CHANGED, "change": "r", "against": "density"}


def survival(comparison: Comparison, others: Sequence[Comparison], names: dict[str, str]) -> None:
    """Draw the whole section; a click in it runs this part of the page only."""

    @st.fragment
    def part() -> None:
        with frame.section():
            table = comparison.table("survival", "latents", *COLUMNS)
            if table is None or not table.num_rows:
                _none(comparison)
                return
            bars([comparison, *others], names)
            features = comparison.features()
            shown = chosen_states(table)
            followed = np.isin(np.array(table["state"].to_pylist(), dtype=object), CHANGED)
            latent = choose(table, order(table, followed if followed.any() else ~followed, "r"))
            with st.container(key="split-survival"):
                left, right = st.columns([1, 1.25], gap="large")
            with left:
                picture(comparison, table, shown, features, latent)
            with right:
                changed(table, shown, features)
            one(comparison, features, latent)

    part()


def _none(comparison: Comparison) -> None:
    if comparison.has("survival", "latents"):
        frame.note("The dictionary has no feature that could be followed.")
        return
    a = comparison.run.config.get("a")
    name = a.get("name", "A") if isinstance(a, dict) else a
    frame.note("No dictionary was given, so no feature was followed. This follows those of one:")
    st.code(f"mechscope compare {name} --recipe RECIPE --sae SAE_RUN", language="bash")


def bars(found: Sequence[Comparison], names: dict[str, str]) -> None:
    """Draw what became of the active features, a bar for each comparison."""
    rows = [
        (names[one.ref], {s: one.number("survival", s) or 0.0 for s in CHANGED})
        for one in found
        if one.number("survival", "active")
    ]
    if rows:
        muted = [bool(one.null_of) for one in found if one.number("survival", "active")]
        frame.chart(
            survival_bars(rows, muted=muted), key="bars",
             alt="Share of the active features that are kept, blurred and lost, and new ones",
        )  # fmt: skip


def chosen_states(table: pa.Table) -> NDArray[np.bool_]:
    """Draw the filter by state; return which rows pass."""
    found = np.array(table["state"].to_pylist(), dtype=object)
    numbers = {name: int((found == name).sum()) for name in STATES}
    chosen = st.pills(
        "Features that are", list(STATES), selection_mode="multi", default=CHANGED, key="states", bind="query-params",
        format_func=lambda name: name, help="  \n".join(
            f"**{name}** ({numbers[name]:,}): {meaning}" for name, (_, _, meaning) in STATES.items()
        ),
    )  # fmt: skip
    return np.isin(found, list(chosen) or CHANGED)


def order(table: pa.Table, shown: NDArray[np.bool_], by: str) -> NDArray[np.int64]:
    """Return the rows that are shown, those that changed most first; what has no value comes last."""
    rows = np.flatnonzero(shown)
    if by == "r":
        keys = column(table, "r")[rows]
    else:
        a, b = (np.abs(column(table, f"{by}_{side}")[rows]) for side in "ab")
        with np.errstate(divide="ignore", invalid="ignore"):
            keys = -np.abs(np.log(b / a))
    return rows[np.argsort(np.where(np.isnan(keys), np.inf, keys), kind="stable")]


def column(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Return a column as float64, NaN where it is null."""
    return table.column(name).to_numpy(zero_copy_only=False).astype(np.float64)


def choose(table: pa.Table, first: NDArray[np.int64]) -> int:
    """Return the feature of the address; by default the one with the lowest r."""
    index = table["latent"].to_numpy().astype(np.int64)

    def read(text: str) -> int | None:
        known = text.isascii() and text.isdigit() and len(text) < 12
        return int(text) if known and (index == int(text)).any() else None

    latent, strange = state.settle("latent", read, int(index[first[0]]), "a feature of this comparison")
    if strange:
        frame.note(strange)
    return latent


def picture(
    comparison: Comparison, table: pa.Table, shown: NDArray[np.bool_], features: FeatureSet | None, latent: int
) -> None:
    """Draw r against density or peak; a click on a point chooses that feature."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.html('<span class="ms-note">r against</span>', width="content")
        against = st.segmented_control(
            "Against", list(AGAINST), default="density", required=True, key="against", bind="query-params",
            label_visibility="collapsed",
        )  # fmt: skip
    name = AGAINST[str(against)]
    limits = (comparison.number("survival", f"threshold_{key}") for key in ("blurred", "kept"))
    blurred, kept = (usual if found is None else found for found, usual in zip(limits, (0.5, 0.9), strict=True))
    figure = survival_scatter(
        table, name, shown=shown, hover=_lines(table, features), thresholds=(blurred, kept), height=430
    )
    with st.container(gap=None):
        frame.chart(
            figure, key="survivors", selection_mode="points",
             on_select=_clicked, alt=f"Correlation of each feature's activations in a and b against its {against} in a",
        )  # fmt: skip
        at = int(np.flatnonzero(column(table, "latent") == latent)[0])
        x, r = column(table, name)[at], column(table, "r")[at]
        spot = point_spot(figure, x, r) if np.isfinite(r) and x > 0 else None
        if spot is not None:
            mark("survivors", spot)


def _clicked() -> None:
    latent = state.selected_latent(st.session_state.get("survivors"))
    if latent is not None:
        state.put("latent", latent)


def _lines(table: pa.Table, features: FeatureSet | None) -> list[str] | None:
    if features is None:
        return None
    lines = dict(zip(features.index.tolist(), features.token_lines, strict=True))
    return [lines.get(latent, "") for latent in table["latent"].to_pylist()]


def changed(table: pa.Table, shown: NDArray[np.bool_], features: FeatureSet | None) -> None:
    """Draw the features that changed most; a click on a row chooses one."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.html('<span class="ms-note">changed most in</span>', width="content")
        by = st.segmented_control(
            "Changed most in", list(SORTS), default="r", required=True, key="change", bind="query-params",
            label_visibility="collapsed", help="  \n".join(f"**{k}**: {text}" for k, text in SORTS.items()),
        )  # fmt: skip
    rows = order(table, shown, str(by))
    if not rows.size:
        frame.note("No feature is in these states.")
        return
    part = rows[:ROWS]
    drawn = _cells(table.take(part), features)

    def clicked() -> None:
        row = state.selected_row(st.session_state.get("changed"))
        if row is not None and row < len(part):
            state.put("latent", int(table["latent"][int(part[row])].as_py()))

    st.dataframe(
        drawn, hide_index=True, on_select=clicked, selection_mode="single-cell", key="changed", height=388,
        row_height=30, column_config=_columns(drawn), alt="Features by how much they changed",
    )  # fmt: skip
    rest = f"The first {ROWS} of {count(rows.size)}" if rows.size > ROWS else f"{count(rows.size)} features"
    frame.note(f"{rest}. Click one to see it in both models; a click on a heading sorts.")


def _cells(part: pa.Table, features: FeatureSet | None) -> pa.Table:
    latents = [int(i) for i in part["latent"].to_pylist()]
    data: dict[str, Any] = {"latent": latents, "state": part["state"], "r": part["r"]}
    if features is not None:
        data["tokens"] = [_tokens(features, latent) for latent in latents]
        notes = notes_of(features, say=False)
        if any(latent in notes for latent in latents):
            data["label"] = [notes[latent].label if latent in notes else "" for latent in latents]
    for name in ("density_a", "density_b"):
        data[name] = 100 * column(part, name)
    data |= {name: part[name] for name in ("peak_a", "peak_b")}
    return pa.table(data)


def _tokens(features: FeatureSet, latent: int) -> list[str]:
    if not features.index[0] <= latent <= features.index[-1] or not features.has("top_tokens"):
        return []
    return [visible(t or "", limit=16) for t in dict.fromkeys(features.top_tokens(latent))]


def _columns(drawn: pa.Table) -> dict[str, Any]:
    config = st.column_config
    made = {
        "latent": config.NumberColumn("latent", format="%d", width=62, pinned=True),
        "state": config.TextColumn("state", width=72),
        "r": config.NumberColumn("r", format="%.3f", width=62, help="Correlation of its activations in a and b"),
        "tokens": config.ListColumn("top tokens in a", width=150),
        "label": config.TextColumn("label", width=110),
        "density_a": config.NumberColumn("density a %", format="%.3g", width=82),
        "density_b": config.NumberColumn("b %", format="%.3g", width=68),
        "peak_a": config.NumberColumn("peak a", format="%.2f", width=66),
        "peak_b": config.NumberColumn("b", format="%.2f", width=60),
    }
    return {name: made[name] for name in drawn.column_names}


def one(comparison: Comparison, features: FeatureSet | None, latent: int) -> None:
    """Draw one feature: what became of it, and its examples in both models."""
    row = comparison.latent(latent) or {"latent": latent}
    label = ""
    if features is not None and latent in (notes := notes_of(features, say=False)):
        label = notes[latent].label
    with st.container(horizontal=True, vertical_alignment="center", gap="medium", key="walk-links-one"):
        st.html('<span class="ms-walk">Feature</span>', width="content")
        st.session_state["latent-widget"] = latent
        st.number_input(
            "Feature", 0, step=1, key="latent-widget", on_change=state.take, args=("latent", "latent-widget"), width=90,
            label_visibility="collapsed",
        )  # fmt: skip
        if label:
            st.html(f'<div class="ms-head bare"><span class="label">{safe(label)}</span></div>', width="content")
        st.html(change_html(row))
        if features is not None and features.index[0] <= latent <= features.index[-1]:
            address = state.feature_address(features.run.name, latent) | {"vs": comparison.run.name}
            st.page_link(state.FEATURE_PAGE, label="Open the feature", query_params=address)
    pairs(comparison, row, "compare")
