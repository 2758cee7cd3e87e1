"""Questions that attribution answers: runs of one model, task, prompts and metric; and how a page chooses among them.

The address holds the question (`ask`), the variant (`dir`), the kind of site (`kind`), and the cell: layer (`l`),
position (`p`), head (`h`). Both pages read the same keys, so the cell stays on the way from one to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from app.widgets import frame, state
from app.widgets.artefacts import Unreadable
from app.widgets.attributions import KIND, Scored, in_order, open_scored
from app.widgets.dictionaries import model_name
from app.widgets.heat_map import Axis, chosen
from app.widgets.loaded import model_key
from app.widgets.text import count, number, safe, share, visible
from interp.config import digest
from interp.runs import Run, damaged_runs, find_runs

COMMAND = "mechscope attribute tiny --task agreement"
AXES = {"pos": "p", "head": "h"}
"""Part of a cell -> key of the address."""


@dataclass(frozen=True)
class Question:
    """Finished runs on one model, task, prompts and metric, newest first."""

    key: str
    """Eight hexadecimal digits, the same in every folder."""
    model: str
    """The model's name."""
    task: str
    """What it was asked."""
    metric: str
    """What was measured."""
    runs: list[Run]
    """One for each method and set of options."""

    @property
    def label(self) -> str:
        """Model, task and metric, for a menu."""
        runs = "1 run" if len(self.runs) == 1 else f"{count(len(self.runs))} runs"
        return f"{self.model} · {self.task} · {self.metric} ({runs})"

    @property
    def variants(self) -> list[str]:
        """What was patched into what, denoising first; [""] where every method shares out the metric itself."""
        found = {Scored(run).variant for run in self.runs} - {""}
        return sorted(found) or [""]


def questions(root: Path) -> list[Question]:
    """Return the questions that finished runs of the folder `root` answer, the most recently asked first."""
    found: dict[str, list[Run]] = {}
    for run in find_runs(root, kind=KIND, finished=True):
        config = run.config
        parts = [model_key(config), *(config.get(key) for key in ("weights", "task", "pairs", "metric"))]
        found.setdefault(digest(parts)[:8], []).append(run)
    return [_question(key, runs) for key, runs in found.items()]


def _question(key: str, runs: list[Run]) -> Question:
    config = runs[0].config
    model = model_key(config)
    task, metric = (visible(str(config.get(name) or "unknown"), limit=40) for name in ("task", "metric"))
    return Question(key, model_name(model) if model else "unknown model", task, metric, runs)


def empty(root: Path, what: str) -> None:
    """Say that there is no run, and which command makes one."""
    frame.heading("Nothing attributed here yet")
    st.html(
        f'<p class="ms-text">{safe(what)} The folder <code>{safe(root)}</code> holds no finished run of it. This '
        "scores the embedded model on subject-verb agreement, by patching and by two estimates of it:</p>"
    )
    st.code(COMMAND, language="bash")
    unfinished(root)


def unfinished(root: Path) -> None:
    """Write which runs are not finished, and which cannot be opened, with the reason."""
    for run in find_runs(root, kind=KIND, finished=False):
        frame.note(f"{run.ref} is {run.status}; it is shown when it is finished.")
    for path, reason in damaged_runs(root):
        if path.parent.name == KIND:
            frame.problem(f"{KIND}/{path.name}: {reason}")


def choose_question(found: Sequence[Question]) -> Question:
    """Draw the selector of questions; return the one of the address."""
    plain = [one.label for one in found]
    labels = [f"{one.label} {one.key}" if plain.count(one.label) > 1 else one.label for one in found]
    axis = Axis("ask", [one.key for one in found], labels, "question")
    at = chosen(axis)
    st.session_state["ask-widget"] = axis.ids[at]
    st.selectbox(
        "Question", axis.ids, key="ask-widget", format_func=lambda key: labels[axis.ids.index(key)], width=460,
        on_change=_ask, help="Model, task and metric. Runs on the same prompts belong to one question.",
    )  # fmt: skip
    return found[at]


def _ask() -> None:
    state.take("ask", "ask-widget")
    for key in ("dir", "kind", "map", "l", "p", "h", "n", "rank"):
        st.query_params.pop(key, None)


def choose(key: str, title: str, ids: Sequence[str], labels: Sequence[str] | None = None, default: int = 0) -> str:
    """Draw a row of choices where there is more than one; return the one of the address `key`."""
    axis = Axis(key, list(ids), list(labels or ids), title)
    at = chosen(axis, default)
    if len(ids) > 1:
        st.session_state[f"{key}-widget"] = axis.ids[at]
        st.segmented_control(
            title, axis.ids, key=f"{key}-widget", required=True, on_change=state.take, args=(key, f"{key}-widget"),
            format_func=lambda one: axis.labels[axis.ids.index(one)],
        )  # fmt: skip
    return axis.ids[at]


def readable_runs(question: Question) -> list[Scored]:
    """Return the runs of a question that can be read, in the order of pages; the others cost a line each."""
    good = []
    for run in question.runs:
        try:
            scored = open_scored(run)
            _ = scored.found
            good.append(scored)
        except Unreadable as problem:
            frame.problem(f"{run.ref} is left out: {problem}")
    return in_order(good)


def of_variant(runs: Sequence[Scored], variant: str) -> list[Scored]:
    """Return the runs of a variant, with those that have none."""
    return [one for one in runs if one.variant in ("", variant)]


def newest(runs: Sequence[Scored], kind: str = "", axis: str = "") -> dict[str, Scored]:
    """Return {method: its newest run}, of those that have `kind` (and its cells by `axis`) where these are given.

    Where one run has cells by `axis` alone and another by further parts, the first serves.
    """
    fits = [one for one in runs if not kind or (kind in one.found.kinds and axis in ("", *one.found.parts(kind)))]
    fits.sort(key=lambda one: bool(axis) and one.found.parts(kind) != (axis,))
    found: dict[str, Scored] = {}
    for one in fits:
        found.setdefault(one.method, one)
    return {one.method: one for one in in_order(list(found.values()))}


def kinds_of(runs: Sequence[Scored]) -> list[str]:
    """Return the kinds that any of the runs has, in the order of computing."""
    order: dict[str, None] = {}
    for one in sorted(runs, key=lambda one: -len(one.found.kinds)):
        order |= dict.fromkeys(one.found.kinds)
    return list(order)


def facts(question: Question, runs: Sequence[Scored]) -> None:
    """Write the numbers of the question: what the model does on clean and on corrupted prompts."""
    values = next((one.found.values for one in runs if one.effect is not None), {})
    accuracy = next((run.summary.get("accuracy") for run in question.runs if run.summary.get("accuracy")), None)
    prompts = next((one.found.values["prompts"] for one in runs if "prompts" in one.found.values), None)
    clean, corrupt = values.get("clean"), values.get("corrupt")
    effect = None if clean is None or corrupt is None else clean - corrupt
    items = [
        ("clean", number(clean), f"mean {question.metric} of the clean prompts"),
        ("corrupted", number(corrupt), f"mean {question.metric} of the corrupted prompts"),
        ("effect", number(effect), "clean minus corrupted: what scores of patching are shares of"),
        ("prompts", count(prompts), "pairs of a clean and a corrupted prompt"),
        ("accuracy", share(accuracy if isinstance(accuracy, int | float) else None), "clean prompts answered rightly"),
    ]
    drawn = "".join(
        f'<div title="{safe(why)}"><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>' for name, value, why in items
    )
    st.html(f'<dl class="ms-facts big">{drawn}</dl>')


def footer(question: Question, runs: Sequence[Scored], root: Path) -> None:
    """Write where the numbers come from."""
    config = question.runs[0].config
    frame.facts_line(
        {
            "model": question.model,
            "task": question.task,
            "metric": question.metric,
            "prompts": str(config.get("pairs", "unknown")),
            "runs": ", ".join(one.run.ref.removeprefix(f"{KIND}/") for one in runs),
            "folder": root,
        }
    )


def python(runs: Sequence[Scored], kind: str) -> list[str]:
    """Return the lines that open the runs in Python."""
    if not runs:
        return []
    lines = ["from interp.attribution.saving import load_attribution", "from interp.runs import open_run", ""]
    lines += [f"root = {str(runs[0].run.root)!r}", "found = {"]
    lines += [f"    {one.method!r}: load_attribution(open_run({one.run.ref!r}, root=root))," for one in runs]
    return [*lines, "}", f"found[{runs[0].method!r}].figure({kind!r})"]
