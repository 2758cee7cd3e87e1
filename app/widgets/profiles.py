"""Runs of kind layers: profiles of models by layer, which two are shown, and which layer is looked at.

Reading needs pyarrow only. What is wrong with a file comes out as `Unreadable`, and costs that run and not the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from app.widgets import frame, state
from app.widgets.artefacts import Unreadable, readable
from app.widgets.heat_map import Axis
from app.widgets.text import count, safe, visible
from interp.layers.result import KIND, Profile, load_profile
from interp.runs import Run, damaged_runs, find_runs, open_run

NONE = ""
_LABEL = 48  # characters of a model's label


@dataclass(frozen=True)
class Shown:
    """A run and the profile in it."""

    run: Run
    profile: Profile
    label: str
    """The model, told apart from others of the same name."""

    @property
    def modified(self) -> int:
        """When the run was finished, in nanoseconds: a part of every cache's key."""
        return (self.run.path / "manifest.json").stat().st_mtime_ns


@st.cache_resource(max_entries=16, show_spinner=False)
def _profile(path: str, modified: int) -> Profile:  # noqa: ARG001  # a part of the cache's key
    folder = Path(path)
    with readable():
        try:
            found = load_profile(open_run(f"{folder.parent.name}/{folder.name}", folder.parent.parent))
        except ValueError as problem:
            raise Unreadable(str(problem)) from problem
        for name, part in found.parts.items():
            lacking = {"layer", "measure", "part", "value", "low", "high"} - set(part.result.layers.column_names)
            if lacking:
                raise Unreadable(f"{folder.name}/{name}.layers.parquet lacks {', '.join(sorted(lacking))}.")
    return found


def open_profile(run: Run) -> Profile:
    """Return the profile of `run`, read anew when it has changed.

    Raises:
        Unreadable: with what is wrong.
    """
    with readable():
        modified = (run.path / "manifest.json").stat().st_mtime_ns
    return _profile(str(run.path), modified)


def labels(runs: Sequence[Run]) -> dict[str, str]:
    """Return {name of a run: a short label}, with the hash where two would be alike."""
    plain = {
        run.name: visible(str(run.summary.get("model_label") or run.slug), spaces=False, limit=_LABEL) for run in runs
    }
    alike = list(plain.values())
    return {run.name: f"{plain[run.name]} {run.id}" if alike.count(plain[run.name]) > 1 else plain[run.name]
            for run in runs}  # fmt: skip


def choose(root: Path) -> list[Shown]:
    """Draw the two selectors; return the profile of the address and, if any, that beside it; none where none is there.

    A run that cannot be read is said and left out.
    """
    runs = find_runs(root, kind=KIND, finished=True)
    if not runs:
        return []
    names = labels(runs)
    by_name = {run.name: run for run in runs}

    def read(text: str) -> str | None:
        fits = [name for name in by_name if name == text or (len(text) == 8 and name.endswith(text))]
        return fits[0] if len(fits) == 1 else None

    name, strange = state.settle("prof", read, runs[0].name, "a finished profile in this folder")
    beside = _beside(read, name)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="choose"):
        st.session_state["prof-widget"] = name
        st.selectbox(
            "Profile", list(by_name), key="prof-widget", on_change=state.take, args=("prof", "prof-widget"), width=340,
            format_func=names.__getitem__,
        )  # fmt: skip
        st.session_state["with-widget"] = beside
        others = [NONE, *(other for other in by_name if other != name)]
        if len(others) > 1:
            st.selectbox(
                "Compare with", others, key="with-widget", on_change=_take_beside, width=340,
                format_func=lambda one: names.get(one, "nothing"),
                help="A second model or recipe, drawn into the same figures: `mechscope layers NAME --vs OTHER`.",
            )  # fmt: skip
    if strange:
        frame.note(strange)
    found = []
    for one in (name, beside):
        if one:
            try:
                found.append(Shown(by_name[one], open_profile(by_name[one]), names[one]))
            except Unreadable as problem:
                frame.problem(f"{by_name[one].ref}: {problem}", "The other profiles are not affected.")
                if one == name:
                    return []
    return found


def _beside(read: Any, name: str) -> str:
    """Return the name of the run beside; "" for none."""
    text = str(st.query_params.get("with", st.session_state.get("_with", NONE)))
    found = read(text) if text else None
    if text and (found is None or found == name):
        if "with" in st.query_params and found is None:
            short = text if len(text) <= 40 else text[:40] + "…"
            frame.note(f"The address asked for with={short}, which is not a finished profile; it is left out.")
        found = None
    st.session_state["_with"] = found or NONE
    if found:
        st.query_params["with"] = found
    else:
        st.query_params.pop("with", None)
    return found or NONE


def _take_beside() -> None:
    name = st.session_state.get("with-widget") or NONE
    st.session_state["_with"] = name
    state.put("with", name) if name else st.query_params.pop("with", None)


def layer_axis(shown: Sequence[Shown]) -> Axis:
    """Return the layers of the first model, the embeddings as -1."""
    names = [str(layer) for layer in range(-1, shown[0].profile.n_layers)]
    return Axis("layer", names, ["embeddings", *(f"layer {name}" for name in names[1:])], "layer")


def empty(root: Path) -> None:
    """Say that there is no profile, and which command makes one."""
    frame.heading("No profile here yet")
    st.html(
        "<p class=\"ms-text\">This page shows what each layer of a model does, by every family of measures, and where "
        f"two models part ways. The folder <code>{safe(root)}</code> holds no finished profile. This makes one of the "
        "embedded model, and one of its 4-bit copy to lay beside it:</p>"
    )  # fmt: skip
    st.code("mechscope layers tiny --vs-recipe int4", language="bash")


def unfinished(root: Path) -> None:
    """Write which profiles are not finished, and which cannot be opened, with the reason."""
    for run in find_runs(root, kind=KIND, finished=False):
        frame.note(f"{run.ref} is {run.status}; it is shown when it is finished.")
    for path, reason in damaged_runs(root):
        if path.parent.name == KIND:
            frame.problem(f"{KIND}/{path.name}: {reason}")


def facts(shown: Sequence[Shown]) -> None:
    """Write a line about each model, what was left out, and whether both read the same text."""
    for letter, one in zip("ab", shown, strict=False):
        about: Mapping[str, Any] = one.profile.about
        parts = [f"<b>{safe(one.label)}</b>", f"{one.profile.n_layers} layers"]
        parts += [f"{count(about.get('blocks'))} prompts of {count(about.get('context'))} tokens"]
        start = f"{letter}: " if len(shown) > 1 else ""
        st.html(f'<span class="ms-where">{start}{" · ".join(parts)}</span>')
        for name, why in one.profile.refused.items():
            frame.note(f"{name} is left out of {one.label}: {why}")
    if len(shown) > 1:
        texts = [one.run.config.get("tokens") for one in shown]
        if texts[0] != texts[1]:
            frame.note("The two models read different text, or read it in different tokens.")


def python(shown: Sequence[Shown]) -> list[str]:
    """Return the lines that open what the page shows."""
    lines = ["from interp.layers.result import load_profile", "from interp.runs import open_run", ""]
    for name, one in zip("ab", shown, strict=False):
        lines.append(f"{name} = load_profile(open_run({one.run.ref!r}, root={str(one.run.root)!r}))")
    return [*lines, "a.figure()" if len(shown) == 1 else "a.beside(b).figure()"]


def footer(shown: Sequence[Shown]) -> None:
    """Write where the numbers come from."""
    run = shown[0].run
    data, code = run.config.get("data"), run.info.get("code") or {}
    facts_of = {"profile": run.ref}
    if len(shown) > 1:
        facts_of["beside"] = shown[1].run.ref
    frame.facts_line(
        facts_of
        | {
            "text": str(data.get("text", "unknown")) if isinstance(data, Mapping) else str(data or "unknown"),
            "lens": str(run.config.get("lens") or "logit lens"),
            "made": str(run.info.get("finished") or run.info.get("created", ""))[:16].replace("T", " ") + " UTC",
            "code": f"mechscope {code.get('mechscope', 'unknown')}".replace("not installed", "from source"),
        }
    )
