"""The Feature page's second model: a selector of comparisons of this dictionary, and the feature in both models."""

from __future__ import annotations

import streamlit as st

from app.widgets import frame, state
from app.widgets.artefacts import FeatureSet
from app.widgets.comparisons import Comparison, comparisons, labels
from app.widgets.paired import change_html, pairs

NONE = ""


def of_dictionary(features: FeatureSet) -> list[Comparison]:
    """Return the finished comparisons that followed the features of this dictionary, null runs last."""
    return [one for one in comparisons(features.run.root) if one.sae_ref and one.sae_ref == features.sae_ref]


def selector(features: FeatureSet) -> Comparison | None:
    """Draw the selector, which is `vs` in the address; return the comparison chosen, None without one."""
    found = {one.run.name: one for one in of_dictionary(features)}
    text = st.query_params.get("vs", NONE)
    fits = [name for name in found if text and (name == text or (len(text) == 8 and name.endswith(text)))]
    chosen = fits[0] if len(fits) == 1 else NONE
    st.session_state["vs"] = chosen
    if text and not chosen:
        short = text if len(text) <= 40 else text[:40] + "…"
        frame.note(f"The address asked for vs={short}, which is not a comparison of this dictionary; it is left out.")
    if not found:
        return None
    names = labels(list(found.values()))
    st.session_state["vs-pick"] = chosen
    st.selectbox(
        "Compare with", [NONE, *found], key="vs-pick", on_change=_take, width=250, label_visibility="collapsed",
        format_func=lambda name: _title(found[name], names) if name in found else "Compare with…",
        help="A second model in which this dictionary's features were followed (`mechscope compare --sae`).",
    )  # fmt: skip
    return found.get(chosen)


def _title(one: Comparison, names: dict[str, str]) -> str:
    return f"with {names[one.ref]}{' (null)' if one.null_of else ''}"


def _take() -> None:
    name = st.session_state.get("vs-pick") or NONE
    if name:
        state.put("vs", name)
    else:
        st.query_params.pop("vs", None)


def compared(comparison: Comparison, latent: int) -> None:
    """Draw what became of the feature in the second model, and its examples in both."""
    with frame.section("In the second model", f"{comparison.a} → {comparison.b}"):
        row = comparison.latent(latent)
        if row is None:
            frame.note("This comparison says nothing of this latent.")
            return
        with st.container(horizontal=True, vertical_alignment="center", gap="large"):
            st.html(change_html(row))
            st.page_link(
                state.COMPARE_PAGE, label="Open the comparison",
                query_params={"vs": comparison.run.name, "part": "Features", "latent": str(latent)},
            )  # fmt: skip
        if row.get("state") == "silent":
            frame.note("It fires in neither model on that text.")
            return
        pairs(comparison, row, "feature")
