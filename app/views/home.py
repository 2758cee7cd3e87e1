"""Home: what is in the folder of runs, what it was made from, what is being made, what is damaged, what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app.widgets import frame, state
from app.widgets.comparisons import recipe_label
from app.widgets.dictionary_card import card
from app.widgets.text import count, safe
from interp.runs import Run, damaged_runs, find_runs, runs_root

WATCHED = "3s"  # between two looks at a run that is being written


def show() -> None:
    """Draw the page."""
    root = runs_root()
    runs, damaged = find_runs(root), damaged_runs(root)
    st.html(f'<div class="ms-title">Runs<span>{safe(root)}</span></div>')
    if not runs and not damaged:
        frame.empty(root)
        return
    open_jobs = [run for run in runs if not run.finished]
    if open_jobs:
        jobs(root, any(run.status == "running" for run in open_jobs))
    dictionaries(runs)
    with frame.section("Models", "that these runs were made with"):
        models(runs)
    with frame.section("All runs", "newest first, with what each was made from"):
        lineage(runs)
    if damaged:
        broken(damaged)


def jobs(root: Path, live: bool) -> None:
    """Write the runs that are not finished; while one is being written, look again every few seconds."""

    @st.fragment(run_every=WATCHED if live else None)
    def watch() -> None:
        frame.heading("Not finished")
        lines = "".join(_job(run) for run in find_runs(root, finished=False))
        st.html(
            f'<table class="ms-table ms-narrow">{lines}</table>'
            if lines
            else '<p class="ms-note">All are finished now.</p>'
        )

    watch()


def _job(run: Run) -> str:
    remedy = {
        "running": "being written",
        "interrupted": "stopped; the same command resumes it",
        "failed": f"failed: {run.info.get('error', 'no reason given')}; the same command tries again",
    }[run.status]
    return (
        f'<tr><td>{safe(run.ref)}</td><td class="n">{safe(_done(run.info.get("progress")))}</td>'
        f'<td class="d">{safe(remedy)}</td></tr>'
    )


def _done(progress: Any) -> str:
    if not isinstance(progress, dict) or not isinstance(progress.get("done"), int | float):
        return ""
    total, unit = progress.get("total"), progress.get("unit", "")
    if not isinstance(total, int | float) or total <= 0:
        return f"{count(progress['done'])} {unit}"
    return f"{count(progress['done'])} of {count(total)} {unit} ({progress['done'] / total:.0%})"


def dictionaries(runs: Sequence[Run]) -> None:
    """Draw one card for each dictionary that was trained to its end."""
    found = [run for run in runs if run.kind == "sae" and run.finished]
    frame.heading("Dictionaries", f"{len(found)}" if found else "")
    if not found:
        frame.note("No dictionary is finished. `mechscope train` makes one, `mechscope demo` does the whole job.")
        return
    st.page_link(state.DICTIONARIES_PAGE, label="Compare them", icon=":material/monitoring:")
    with st.container(horizontal=True, gap="medium", key="cards"):
        for run in found:
            with st.container(border=True, width=350, height="stretch", key=f"card-{run.id}"), frame.section():
                card(run, runs)


def models(runs: Sequence[Run]) -> None:
    """Write which models the runs name, and how many runs each has."""
    seen: Counter[tuple[str, str, str]] = Counter()
    for run in runs:
        model = run.info.get("model") or run.config.get("model")
        if isinstance(model, str):
            model = {"name": model}
        if isinstance(model, dict):
            recipe = recipe_label(model.get("recipe"))
            seen[str(model.get("name", "?")), str(model.get("revision") or ""), recipe] += 1
    if not seen:
        frame.note("No run names its model. `mechscope models list` shows the embedded ones.")
        return
    head = "<tr><th>model</th><th>revision</th><th>recipe</th><th class='n'>runs</th></tr>"
    lines = "".join(
        f"<tr><td>{safe(name)}</td><td>{safe(revision or '–')}</td><td>{safe(recipe or 'as stored')}</td>"
        f'<td class="n">{n}</td></tr>'
        for (name, revision, recipe), n in seen.most_common()
    )
    st.html(f'<table class="ms-table ms-narrow">{head}{lines}</table>')


def lineage(runs: Sequence[Run]) -> None:
    """Write every run with its parents."""
    lines = "".join(
        f'<tr><td class="k">{safe(run.kind)}</td><td>{safe(run.name)}</td><td>{safe(run.status)}</td>'
        f'<td class="d">{safe(", ".join(run.parents)) or "–"}</td><td class="n">{_size(run)}</td>'
        f'<td class="n">{safe(str(run.info.get("created", ""))[:16].replace("T", " "))}</td></tr>'
        for run in runs[:200]
    )
    head = (
        "<tr><th>kind</th><th>run</th><th>state</th><th>made from</th><th class='n'>size</th>"
        "<th class='n'>begun, UTC</th></tr>"
    )
    st.html(f'<div class="ms-scroll"><table class="ms-table">{head}{lines}</table></div>')
    if len(runs) > 200:
        frame.note(f"{len(runs) - 200} older runs are left out; `mechscope runs list` shows them all.")


def _size(run: Run) -> str:
    size = float(sum(run.files.values()))
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def broken(damaged: Sequence[tuple[Path, str]]) -> None:
    """Write the runs that cannot be opened, with the reason, which says what to do."""
    frame.heading("Damaged runs", "left out above")
    for path, reason in damaged:
        frame.problem(f"{path.parent.name}/{path.name}: {reason}")


if __name__ == "__main__":
    show()
