"""The explorer's front page script: `mechscope explore` gives it to Streamlit, which runs it at every interaction.

It draws what all pages share (navigation, the selector of features, the Python of the page) and then the page. Runs are
looked for in $MECHSCOPE_RUNS. Nothing is computed here and no model library is imported.
"""

from __future__ import annotations

import logging

import streamlit as st

from app.widgets import frame, state
from interp.runs import RunError, runs_root

# Drawn here: the named icons of Streamlit are fetched from the network when they become the page's icon.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#2f6f9f"/>'
    '<g fill="#fff"><circle cx="8" cy="22" r="3"/><circle cx="16" cy="10" r="4.5"/><circle cx="24" cy="22" r="3"/></g>'
    '<path d="M8 22 16 10 24 22" fill="none" stroke="#fff" stroke-width="2"/></svg>'
)


def show() -> None:
    """Draw the whole page."""
    st.set_page_config(page_title="mechscope", page_icon=ICON, layout="wide")
    frame.style()
    page = st.navigation(
        [
            st.Page(state.HOME_PAGE, title="mechscope", default=True),
            st.Page(state.DICTIONARIES_PAGE, title="Dictionaries · mechscope", url_path="dictionaries"),
            st.Page(state.FEATURES_PAGE, title="Features · mechscope", url_path="features"),
            st.Page(state.FEATURE_PAGE, title="Feature · mechscope", url_path="feature"),
            st.Page(state.PROMPT_PAGE, title="Prompt · mechscope", url_path="prompt"),
            st.Page(state.COMPARE_PAGE, title="Compare · mechscope", url_path="compare"),
            st.Page(state.RELEVANCE_PAGE, title="Relevance · mechscope", url_path="relevance"),
            st.Page(state.PATCHING_PAGE, title="Patching · mechscope", url_path="patching"),
            st.Page(state.LAYERS_PAGE, title="Layers · mechscope", url_path="layers"),
            st.Page(state.HEADS_PAGE, title="Heads · mechscope", url_path="heads"),
            st.Page(state.PROBES_PAGE, title="Probes · mechscope", url_path="probes"),
            st.Page(state.BOARD_PAGE, title="Board · mechscope", url_path="board"),
        ],
        position="hidden",
    )
    st.session_state.pop("_python", None)
    with st.container(horizontal=True, vertical_alignment="center", key="bar"):
        links = st.container(width="content")
        st.space("stretch")
        corner = st.container(width="content")
    with st.container(horizontal=True, vertical_alignment="center", key="which"):
        try:
            frame.run_selector(runs_root(), shown=page.url_path in frame.OF_FEATURES)
        except (RunError, OSError) as error:
            frame.problem(str(error))
    with links:
        frame.navigation()
    try:
        page.run()
    except Exception:  # whatever it is, the reader gets a sentence and the log gets the traceback
        logging.getLogger("mechscope").exception("the page %r failed", page.title)
        frame.problem(
            "This page could not be drawn; the terminal of `mechscope explore` says more.",
            "`mechscope runs verify` finds damaged files. The other pages still work.",
        )
    if snippet := st.session_state.get("_python"):
        with corner.popover("Python", icon=":material/code:", help="The code that opens what this page shows"):
            st.code(snippet, language="python", wrap_lines=True)


if __name__ == "__main__":
    show()
