"""What every page shares: the style sheet, the run selector, notes, guarded sections, the footer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from app.widgets import feature_card, sheet, state, theme
from app.widgets.artefacts import FeatureSet, Unreadable, open_features
from app.widgets.text import count, place_of, safe
from app.workspace import WorkspaceError
from interp.figures import in_dark
from interp.figures.token_strip import STYLE as STRIP_STYLE
from interp.runs import Run, RunError, find_runs, runs_root

if TYPE_CHECKING:
    import plotly.graph_objects as go

log = logging.getLogger(__name__)

CHART = {"displaylogo": False, "displayModeBar": False, "responsive": True}
"""Settings of every Plotly chart."""
OF_FEATURES = ("dictionaries", "features", "feature", "prompt")
"""Paths of the pages that are about a features run, and show which."""


def style() -> None:
    """Put the style sheet on the page."""
    st.html(f"<style>{theme.sheet(sheet.STYLE + STRIP_STYLE + feature_card.STYLE)}</style>")


def chart(
    figure: go.Figure,
    key: str,
    *,
    alt: str = "",
    on_select: Literal["ignore", "rerun"] | Callable[[], object] = "ignore",
    selection_mode: Literal["points", "box", "lasso"] = "points",
    width: int | Literal["stretch"] = "stretch",
) -> Any:
    """Draw a figure in the colours of the present theme; return what is selected in it.

    Args:
        figure: written in the colours of the light theme.
        key: of the widget, unique on the page.
        alt: what it shows, for those who do not see it.
        on_select: what a click does: nothing, a new run of the page, or a callback and then a new run.
        selection_mode: what can be selected.
        width: pixels, or the width of the place.
    """
    shown = in_dark(figure) if theme.is_dark() else figure
    draw: Any = st.plotly_chart  # its overloads know each way of selecting apart
    return draw(
        shown, theme=None, key=key, config=CHART, on_select=on_select, selection_mode=selection_mode, alt=alt or None,
        width=width,
    )  # fmt: skip


def note(text: str) -> None:
    """Write a quiet line; `text` is plain."""
    st.html(f'<p class="ms-note">{safe(text)}</p>')


def problem(text: str, remedy: str = "") -> None:
    """Write what could not be shown, and what to do about it; both are plain text."""
    more = f'<br><span class="dim">{safe(remedy)}</span>' if remedy else ""
    st.html(f'<div class="ms-problem" role="alert">{safe(text)}{more}</div>')


def heading(text: str, aside: str = "") -> None:
    """Write the heading of a section, with a definition or a count in small type; both are plain text."""
    st.html(f'<h2 class="ms-h">{safe(text)} <span>{safe(aside)}</span></h2>')


@contextmanager
def section(title: str = "", aside: str = "") -> Iterator[None]:
    """Draw a part of a page; a damaged file costs this part and not the page."""
    if title:
        heading(title, aside)
    try:
        yield
    except (Unreadable, RunError, WorkspaceError) as error:
        problem(str(error))


def navigation() -> None:
    """Draw the links between the pages; they keep run, latent and filters, which Streamlit's own would drop."""
    with st.container(horizontal=True, gap="xsmall", width="content", key="nav"):
        for i, group in enumerate(_links()):
            with st.container(horizontal=True, gap=None, width="content", key=f"navgroup-{i}"):
                for page, label, address in group:
                    icon = ":material/hub:" if page == state.HOME_PAGE else None
                    st.page_link(page, label=label, icon=icon, query_params=address)


def _links() -> list[list[tuple[str, str, dict[str, str]]]]:
    """Return (page, label, address) of every link, in groups: a dictionary, layers, causes, comparisons."""
    name, latent = st.session_state.get("_run"), st.session_state.get("_f")
    run = {"run": name} if name else {}
    layers = state.layers_address(name)
    return [
        [(state.HOME_PAGE, "mechscope", run)],
        [
            (state.DICTIONARIES_PAGE, "Dictionaries", state.dictionaries_address(name)),
            (state.FEATURES_PAGE, "Features", state.list_address(name) if name else {}),
            (
                state.FEATURE_PAGE,
                "Feature",
                state.feature_address(name, latent) if name and latent is not None else run,
            ),
            (state.PROMPT_PAGE, "Prompt", state.prompt_address(name)),
        ],
        [(state.LAYERS_PAGE, "Layers", layers), (state.HEADS_PAGE, "Heads", layers)],
        [
            (state.PROBES_PAGE, "Probes", state.probes_address(name)),
            (state.BOARD_PAGE, "Board", state.board_address(name)),
        ],
        [
            (state.RELEVANCE_PAGE, "Relevance", state.attribution_address("relevance", name)),
            (state.PATCHING_PAGE, "Patching", state.attribution_address("patching", name)),
        ],
        [(state.COMPARE_PAGE, "Compare", state.compare_address(name))],
    ]


def run_selector(root: Path, *, shown: bool = True) -> Run | None:
    """Draw the selector of features runs, which is `run` in the address; return the one chosen, None without any.

    On a page that is not about a features run (`shown` False) the choice is kept without being drawn.
    """
    runs = find_runs(root, kind="features", finished=True)
    if not runs:
        return None
    names = [run.name for run in runs]

    def read(text: str) -> str | None:
        found = [name for name in names if name == text] or [
            n for n in names if len(text) >= 4 and n[-8:].startswith(text)
        ]
        return found[0] if len(found) == 1 else None

    chosen, strange = state.settle("run", read, names[0], "a finished features run in this folder")
    run = runs[names.index(chosen)]
    if shown:
        st.session_state["run-widget"] = chosen
        st.selectbox(
            "Features run", names, key="run-widget", on_change=state.take, args=("run", "run-widget"), width=320,
            label_visibility="collapsed", help="Whose features the pages show. Newest first.",
        )  # fmt: skip
        where(run)
    if strange:
        note(strange)
    return run


def where(run: Run) -> None:
    """Write what the chosen run is about: model, site, latents, tokens."""
    model, summary = run.info.get("model") or run.config.get("model"), run.summary
    name = model.get("name", "unknown") if isinstance(model, dict) else model or "unknown"
    parts = [f"<b>{safe(Path(str(name)).name)}</b>", f"<b>{safe(place_of(run.config))}</b>"]
    parts += [f"{count(summary[key])} {key}" for key in ("latents", "tokens") if isinstance(summary.get(key), int)]
    st.html(f'<span class="ms-where">{" · ".join(parts)}</span>', width="content")


def current() -> FeatureSet | None:
    """Return the features that the selector shows, or None after writing what to do instead."""
    name, root = st.session_state.get("_run"), runs_root()
    if not name:
        empty(root)
        return None
    try:
        return open_features(root / "features" / str(name))
    except Unreadable as error:
        problem(str(error), "The other pages and runs are not affected.")
        return None


def empty(root: Path) -> None:
    """Say that there are no features yet, and which command makes them."""
    heading("No features here yet")
    st.html(
        f'<p class="ms-text">The folder <code>{safe(root)}</code> holds no finished features run. '
        "The whole job on the embedded model takes a few minutes:</p>"
    )
    st.code("mechscope demo", language="bash")
    dictionaries = find_runs(root, kind="sae", finished=True)
    if dictionaries:
        st.html('<p class="ms-text">or describe the features of the dictionary that is here:</p>')
        st.code(f"mechscope features --sae {dictionaries[0].ref}", language="bash")
    else:
        st.html('<p class="ms-text">Another folder is opened by:</p>')
        st.code("mechscope explore --runs DIR", language="bash")


def python(lines: Sequence[str]) -> None:
    """Offer the Python that opens what this page shows (the bar above draws it)."""
    st.session_state["_python"] = "\n".join(lines)


def opening(features: FeatureSet) -> list[str]:
    """Return the lines that open `features` in Python."""
    return [
        "from sae.features import load_features",
        "",
        f"features = load_features({features.run.ref!r}, root={str(features.run.root)!r})",
    ]


def footer(features: FeatureSet) -> None:
    """Write where the page's numbers come from."""
    info, evaluation = features.run.info, features.evaluation
    model = info.get("model") or features.run.config.get("model") or {}
    code = info.get("code") or {}
    commit = str(code.get("commit") or "")[:8] + (" with changes" if code.get("dirty") else "")
    facts = {
        "features": features.run.ref,
        "dictionary": features.sae_ref or "unknown",
        "evaluation": evaluation.ref if evaluation else "none",
        "model": str(model.get("name", "unknown")) + (f"@{model['revision']}" if model.get("revision") else ""),
        "site": features.site or "unknown",
        "tokens": count(features.tokens),
        "made": str(info.get("finished") or info.get("created", ""))[:16].replace("T", " ") + " UTC",
        "code": " ".join(
            part
            for part in (
                f"mechscope {code.get('mechscope', 'unknown')}".replace("not installed", "from source"),
                commit,
            )
            if part
        ),
    }
    facts_line(facts)


def facts_line(facts: Mapping[str, object]) -> None:
    """Write the line at the foot of a page: name and value of each fact, plain text."""
    items = "".join(f"<div><dt>{safe(key)}</dt><dd>{safe(value)}</dd></div>" for key, value in facts.items())
    st.html(f'<dl class="ms-foot">{items}</dl>')
