"""Features: every latent of a dictionary in a table and in a picture, narrowed by filters that live in the address."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st
from numpy.typing import NDArray

from app.widgets import frame, state
from app.widgets.artefacts import FeatureSet, Unreadable, latents_with_text, latents_with_top_token
from app.widgets.feature_card import DENSE_FROM, TOKEN_PURE_BELOW
from app.widgets.notes import notes_of
from app.widgets.text import count, share, visible
from app.workspace import Note
from interp.figures import METRICS, density_scatter

ROWS = 25  # latents on one page of the table
SHOW = {
    "alive": "fired at least once",
    "sparse": "alive and not dense",
    "dense": "fires at least as often as the limit on the right",
    "token-pure": f"one token makes most of the top activations (entropy below {TOKEN_PURE_BELOW} nats)",
    "dead": "never fired",
    "two signs": "positive on some tokens and negative on others",
    "labelled": "has a label, note or bookmark of yours",
    "all": "every latent",
}
DENSE = ["0.1%", "0.2%", "0.5%", "1%", "2%", "5%", "10%", "20%", "50%"]
ORDERS = ["down", "up"]
WHERE = ["top tokens", "example text", "labels"]
QUERY_LENGTH = 100  # characters


@dataclass(frozen=True)
class Choice:
    """What the reader asked for."""

    show: str
    query: str
    where: str
    dense_from: float


def show() -> None:
    """Draw the page."""
    features = frame.current()
    if features is None:
        return
    state.restore_list(features.run.name)
    with frame.section():
        notes = notes_of(features)
        choice = controls(features)
        chosen = select(features, choice, notes)
        with st.container(key="split-features"):
            left, right = st.columns([1.6, 1], gap="medium")
        with right:
            picture(features, choice, chosen)
        with left:
            table(features, chosen, notes)
        state.keep_list({"show": "alive", "in": WHERE[0], "dense": f"{100 * DENSE_FROM:g}%", "order": "down", "q": "",
                         "sort": sorts(features)[0], "y": metrics(features)[0], "page": 1})  # fmt: skip
        frame.python([*frame.opening(features), "latents = features.latents.to_pandas()"])
    frame.footer(features)


def controls(features: FeatureSet) -> Choice:
    """Draw the filters and return what they say."""
    shows = [name for name in SHOW if name != "two signs" or features.signed]
    choices = {
        "show": shows,
        "in": WHERE,
        "dense": DENSE,
        "sort": sorts(features),
        "order": ORDERS,
        "y": metrics(features),
    }
    for text in state.stray(list(choices), lambda key, value: value in choices[key]):
        frame.note(text)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="filters"):
        shown = st.segmented_control(
            "Show", shows, default="alive", required=True, key="show", bind="query-params",
            help="  \n".join(f"**{name}**: {SHOW[name]}" for name in shows),
        )  # fmt: skip
        dense = st.select_slider(
            "Dense from", DENSE, value=f"{100 * DENSE_FROM:g}%", key="dense", bind="query-params", width=180,
            help="The density from which a latent counts as dense.",
        )  # fmt: skip
        query = st.text_input(
            "Search", key="q", bind="query-params", max_chars=QUERY_LENGTH, width=200, placeholder="text",
            icon=":material/search:", help="Part of a text, upper and lower case alike; a leading space counts.",
        )  # fmt: skip
        where = st.selectbox("in", WHERE, key="in", bind="query-params", width=140)
    limit = float(str(dense).rstrip("%")) / 100
    return Choice(str(shown), query or "", str(where), limit)


def select(features: FeatureSet, choice: Choice, notes: dict[int, Note]) -> NDArray[np.bool_]:
    """Return which latents the filters let through, [latents]."""
    density = features.column("density")
    alive = density > 0
    by_kind = {
        "alive": lambda: alive,
        "sparse": lambda: alive & (density < choice.dense_from),
        "dense": lambda: density >= choice.dense_from,
        "token-pure": lambda: alive & (features.column("token_entropy") < TOKEN_PURE_BELOW),
        "dead": lambda: ~alive,
        "two signs": lambda: two_signs(features),
        "labelled": lambda: np.isin(features.index, list(notes)),
        "all": lambda: np.ones_like(alive),
    }
    chosen = by_kind[choice.show]()
    if choice.query:
        chosen = chosen & np.isin(features.index, matching(features, choice, notes))
    return chosen


def two_signs(features: FeatureSet) -> NDArray[np.bool_]:
    """Return which latents are positive on some tokens and negative on others."""
    below = features.column("count_negative")
    return (below > 0) & (below < features.column("count"))


def matching(features: FeatureSet, choice: Choice, notes: dict[int, Note]) -> list[int]:
    """Return the latents that the search finds; the marks of a strip (· ↵) count as what they stand for."""
    query = choice.query.replace("·", " ").replace("↵", "\n")
    if choice.where == "top tokens":
        return latents_with_top_token(features, query)
    if choice.where == "example text":
        return latents_with_text(features, query)
    wanted = query.lower()
    return [latent for latent, note in notes.items() if wanted in f"{note.label}\n{note.note}".lower()]


def sorts(features: FeatureSet) -> list[str]:
    """Return the columns that the table can be sorted by."""
    return [name for name in ("density", "latent", *METRICS) if features.has(name)]


def metrics(features: FeatureSet) -> list[str]:
    """Return the columns that density can be drawn against."""
    found = [name for name in METRICS if features.has(name)]
    if not found:
        raise Unreadable(f"{features.run.ref}/latents.parquet has none of the columns {', '.join(METRICS)}.")
    return found


def ordered(features: FeatureSet, chosen: NDArray[np.bool_], by: str, descending: bool) -> NDArray[np.int64]:
    """Return the chosen rows in the order asked for; what has no value comes last, equal ones by latent."""
    rows = np.flatnonzero(chosen)
    keys = features.column(by)[rows].astype(np.float64)
    keys = np.where(np.isnan(keys), np.inf, -keys if descending else keys)
    return rows[np.argsort(keys, kind="stable")]


def table(features: FeatureSet, chosen: NDArray[np.bool_], notes: dict[int, Note]) -> None:
    """Draw one page of the table; a click on a row opens the latent's page."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        frame.note(f"{int(chosen.sum()):,} of {len(features):,} latents. Click one to open it.")
        st.space("stretch")
        st.html('<span class="ms-note">sorted by</span>', width="content")
        by = st.selectbox(
            "Sort by", sorts(features), key="sort", bind="query-params", label_visibility="collapsed", width=150
        )
        order = st.segmented_control(
            "Order", ORDERS, default="down", required=True, key="order", bind="query-params",
            label_visibility="collapsed", help="**down**: largest first",
        )  # fmt: skip
    rows = ordered(features, chosen, str(by), order == "down")
    if not len(rows):
        frame.note("No latent passes these filters. Show all, raise the limit of density, or shorten the search.")
        return
    spot, pages = st.container(), math.ceil(len(rows) / ROWS)
    page = pager(pages)
    part = rows[(page - 1) * ROWS : page * ROWS]
    shown = cells(features, part, notes)
    with spot:
        picked = st.dataframe(
            shown, hide_index=True, on_select="rerun", selection_mode="single-cell", key="table", height="content",
            row_height=30, column_config=columns(shown), alt="Latents and their statistics",
        )  # fmt: skip
    row = state.selected_row(picked)
    if row is not None and row < len(part):
        state.open_feature(features.run.name, int(features.index[part[row]]))


def pager(pages: int) -> int:
    """Draw the pager where there is more than one page; return the page, from 1."""
    text = st.query_params.get("page")
    if text is not None and not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= pages):
        frame.note(f"The address asked for a page that is not among the {pages} of this table; this is the first.")
    if (st.session_state.get("page") or 1) > pages:
        st.session_state["page"] = 1
    if pages == 1:
        return 1
    with st.container(horizontal=True, horizontal_alignment="right"):
        return st.pagination(pages, key="page", bind="query-params")


def cells(features: FeatureSet, part: NDArray[np.int64], notes: dict[int, Note]) -> pa.Table:
    """Return the rows `part` as the table shows them."""
    taken = features.latents.take(part)
    latents = [int(i) for i in features.index[part]]
    data: dict[str, Any] = {"latent": latents}
    if notes:
        data["label"] = [("★ " if n.bookmarked else "") + n.label if (n := notes.get(i)) else "" for i in latents]
    data["top tokens"] = tokens_of(features, taken, "top_tokens")
    if features.signed:
        data["bottom tokens"] = tokens_of(features, taken, "bottom_tokens")
    ends = ("density_negative", "max", "min") if features.signed else ("max", "mean")
    for name in ("density", *ends, "token_entropy", "nearest", "nearest_cosine"):
        if features.has(name):
            data[name] = 100 * features.column(name)[part] if name.startswith("density") else taken.column(name)
    return pa.table(data)


def tokens_of(features: FeatureSet, taken: pa.Table, name: str) -> list[list[str]]:
    """Return the tokens at one end of some latents, as they are written."""
    lists = taken.column(name).to_pylist() if features.has(name) else [[]] * taken.num_rows
    return [[visible(t or "", limit=16) for t in dict.fromkeys(tokens or [])] for tokens in lists]


def columns(shown: pa.Table) -> dict[str, Any]:
    """Return how each column is written."""
    config = st.column_config
    made = {
        "latent": config.NumberColumn("latent", format="%d", width=70, pinned=True),
        "label": config.TextColumn("label", width=115),
        "top tokens": config.ListColumn(
            "top tokens",
            width=185 if {"label", "bottom tokens"} & set(shown.column_names) else 250,
            help="Tokens at the largest activations, most active first",
        ),
        "bottom tokens": config.ListColumn(
            "bottom tokens", width=185, help="Tokens at the most negative activations, most negative first"
        ),
        "density_negative": config.NumberColumn(
            "below 0 %", format="%.3g", width=78, help="Share of tokens on which it is negative"
        ),
        "density": config.NumberColumn("density %", format="%.3g", width=80, help="Share of tokens on which it fires"),
        "max": config.NumberColumn("max", format="%.2f", width=70, help="Largest activation"),
        "min": config.NumberColumn("min", format="%.2f", width=70, help="Most negative activation"),
        "mean": config.NumberColumn("mean", format="%.2f", width=70, help="Mean activation where it fires"),
        "token_entropy": config.NumberColumn(
            "entropy", format="%.2f", width=68, help="Entropy in nats of the tokens at its largest activations"
        ),
        "nearest": config.NumberColumn(
            "nearest", format="%d", width=68, help="The latent whose decoder row is closest"
        ),
        "nearest_cosine": config.NumberColumn("cosine", format="%.2f", width=70, help="Cosine to that decoder row"),
    }
    return {name: made[name] for name in shown.column_names}


def picture(features: FeatureSet, choice: Choice, chosen: NDArray[np.bool_]) -> None:
    """Draw density against the metric; a click on a point opens the latent's page."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.html('<span class="ms-note">density against</span>', width="content")
        metric = st.selectbox(
            "Density against", metrics(features), key="y", bind="query-params", label_visibility="collapsed", width=170
        )
    chart = density_scatter(
        features.latents, metric, shown=chosen, dense_from=choice.dense_from, hover=features.token_lines, height=520
    )
    picked = frame.chart(
        chart, key="scatter", on_select="rerun", selection_mode="points",
         alt=f"Density of each latent against {METRICS[metric]}",
    )  # fmt: skip
    dead = int((features.column("density") == 0).sum())
    median = features.column("density")
    alive = median[median > 0]
    frame.note(
        f"{count(dead)} dead ({share(dead / len(features))}) and not drawn; median density of the others "
        f"{share(float(np.median(alive)) if alive.size else None)}. Click a point to open it."
    )
    latent = state.selected_latent(picked)
    if latent is not None:
        state.open_feature(features.run.name, latent)


if __name__ == "__main__":
    show()
