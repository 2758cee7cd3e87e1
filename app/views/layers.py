"""Layers: what each layer does, as small multiples on one axis; a click on a layer marks it in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from app.widgets import frame, state, theme
from app.widgets.heat_map import box, chosen, picked
from app.widgets.layer_figures import (
    ABOUT,
    ALL,
    at_layer,
    family_figure,
    family_table,
    known_families,
    matrix,
)
from app.widgets.layer_mark import layer_mark, share_of
from app.widgets.profiles import Shown, choose, empty, facts, footer, layer_axis, python, unfinished
from interp.runs import find_runs, runs_root


def show() -> None:
    """Draw the page."""
    root = runs_root()
    with frame.section():
        shown = choose(root)
        if not shown:
            if not find_runs(root, kind="layers", finished=True):
                empty(root)
            unfinished(root)
            return
        facts(shown)
        unfinished(root)
        body(shown)
        state.keep_layers({"fam": ""})
        frame.python(python(shown))
        footer(shown)


@st.fragment
def body(shown: Sequence[Shown]) -> None:
    """Draw everything that a click on a layer changes."""
    known = known_families(shown)
    if not known:
        frame.note("This profile holds no family: the model allowed none of them.")
        return
    axis = layer_axis(shown)
    layer = int(axis.ids[chosen(axis, 1)])
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="filters"):
        families = _families(known)
        box(axis, layer + 1, "layer-box")
        st.page_link(
            state.HEADS_PAGE, label="Heads of this layer", icon=":material/grid_on:",
            query_params={**state.layers_address(st.session_state.get("_run")), "layer": str(max(layer, 0))},
        )  # fmt: skip
    what = "all measures of the chosen families" if families else "some measures of each family"
    frame.note(f"Shown are {what}. Click a point to mark its layer everywhere; a title says how to read it.")
    shares = {}
    for family in families or [ALL]:
        with frame.section(family if families else "", ABOUT.get(family, "")):
            figure = family_figure(shown, family)
            key = f"family-{family}"
            with st.container(key=f"wide-{family}"):  # scrolls by itself where the window is narrow
                frame.chart(figure, key=key, on_select=lambda key=key: take(key), alt=f"{family}: measures by layer")
            place = _place(figure, shown, layer)
            if place is not None:
                shares[key] = place
            if families:
                with st.expander(f"Numbers of {family}"):
                    family_table(shown, family, layer)
                matrix(shown, family)
    layer_mark(shares, "#9dabb9" if theme.is_dark() else "#5b6875")
    with frame.section(axis.labels[layer + 1].capitalize(), "every measure"):
        at_layer(shown, families or known, layer)


def _families(known: Sequence[str]) -> list[str]:
    """Draw the filter; return the families of the address: none is the overview, which has some of every family."""
    asked = [name for name in str(st.query_params.get("fam", "")).split(",") if name]
    strange = [name for name in asked if name not in known]
    wanted = [name for name in known if name in asked]
    st.session_state["fam-widget"] = wanted
    st.pills(
        "Families", list(known), key="fam-widget", selection_mode="multi", on_change=_take_families,
        help="All that a family measures; none chosen is an overview.",
    )  # fmt: skip
    if strange:
        frame.note(f"The address asked for fam={strange[0][:40]}, which this profile does not hold; it is left out.")
    return wanted


def _take_families() -> None:
    names = st.session_state.get("fam-widget") or []
    state.put("fam", ",".join(names)) if names else st.query_params.pop("fam", None)


def take(key: str) -> None:
    """Write the layer that was clicked in the chart `key` into the address: the callback of a click."""
    found = picked(st.session_state.get(key))
    if found is not None:
        state.put("layer", found[0])


def _place(figure: Any, shown: Sequence[Shown], layer: int) -> float | None:
    """Return how far along the axis of `figure` the layer of the first model lies."""
    deep = len({one.profile.n_layers for one in shown}) > 1
    return share_of(figure, (layer + 1) / shown[0].profile.n_layers if deep else layer)


if __name__ == "__main__":
    show()
