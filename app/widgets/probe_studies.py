"""Runs of kind probes: which there are, what they hold, which one a page shows. Reading needs pyarrow only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import streamlit as st

from app.widgets import frame, state
from app.widgets.artefacts import Unreadable, readable
from app.widgets.dictionaries import model_name
from app.widgets.heat_map import Axis, chosen
from app.widgets.loaded import model_key
from app.widgets.text import count, number, safe, share, visible
from interp.runs import Run, damaged_runs, find_runs, open_run
from interp.sites import Site

KIND = "probes"
COMMAND = "mechscope probe tiny --data quoted_speech"
MEASURES = {"auc": "AUC", "accuracy": "accuracy", "balanced accuracy": "balanced accuracy"}
"""Measure of a probe -> what it is called, in the order of pages."""
DIFFERENCES = ("selectivity",)
"""Measures that are no accuracy."""
PLACE = ("site", "kind", "layer", "position")
_BY_LAYER = "layer"


class Study:
    """One run of kind probes, its tables read when they are asked for and kept."""

    def __init__(self, run: Run) -> None:
        """Wrap `run`; nothing is read yet but its records."""
        self.run = run

    @property
    def study(self) -> str:
        """What was asked: sweep, depth, transfer, ..."""
        return visible(str(self.run.config.get("study") or "sweep"), limit=20)

    @property
    def model(self) -> str:
        """Name of the model."""
        key = model_key(self.run.config)
        return model_name(key) if key else "unknown model"

    @property
    def data(self) -> str:
        """Name of the labelled texts."""
        data = self.run.config.get("data")
        name = data.get("name") if isinstance(data, dict) else None
        return visible(Path(str(name or "unknown texts")).name, limit=40)

    @property
    def label(self) -> str:
        """Model, texts and study, for a menu."""
        return f"{self.model} · {self.data} · {self.study}"

    def has(self, table: str) -> bool:
        """Return whether the run holds a table of this name (no suffix)."""
        return f"{table}.parquet" in self.run.files

    def table(self, name: str, *columns: str) -> pa.Table:
        """Return a table, which must have `columns`.

        Raises:
            Unreadable: it is damaged, or lacks one.
        """
        kept: dict[str, pa.Table] = self.__dict__.setdefault("_tables", {})
        if name not in kept:
            with readable():
                kept[name] = self.run.table(f"{name}.parquet")
        lacking = [column for column in columns if column not in kept[name].column_names]
        if lacking:
            raise Unreadable(f"{self.run.ref}/{name}.parquet lacks {', '.join(lacking)}; make the study again.")
        return kept[name]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the sweep, whose sites are sites.

        Raises:
            Unreadable: the table is damaged, or names something else.
        """
        rows = self.table("sweep", *PLACE, "measure", "value", "low", "high").to_pylist()
        _check(rows, f"{self.run.ref}/sweep.parquet")
        return rows

    @cached_property
    def classes(self) -> list[str]:
        """The classes, as the run names them; the second is the one that a positive score means."""
        found = self.run.summary.get("classes")
        return [str(one) for one in found] if isinstance(found, list) else []

    def spots(self, kind: str) -> list[str]:
        """Return the positions that were probed at this kind of site, in their order."""
        return list(dict.fromkeys(row["position"] for row in self.rows if row["kind"] == kind))


def _check(rows: Sequence[dict[str, Any]], where: str) -> None:
    if not rows:
        raise Unreadable(f"{where} is empty; make the study again.")
    for row in rows:
        fits = isinstance(row["layer"], int) and isinstance(row["position"], str) and isinstance(row["measure"], str)
        if not fits or str(row["site"]) != f"{row['kind']}.{row['layer']}" or not str(row["kind"]).isidentifier():
            raise Unreadable(f"{where} names a place that is none: {visible(str(row['site']), limit=40)}.")


def studies(root: Path) -> list[Run]:
    """Return the finished studies of the folder `root`, newest first."""
    return find_runs(root, kind=KIND, finished=True)


@st.cache_resource(max_entries=16, show_spinner=False)
def _study(path: str, modified: int) -> Study:  # noqa: ARG001  # a part of the cache's key
    folder = Path(path)
    with readable():
        return Study(open_run(f"{folder.parent.name}/{folder.name}", folder.parent.parent))


def choose_study(runs: Sequence[Run]) -> Study:
    """Draw the selector of studies; return the one of the address.

    Raises:
        Unreadable: it cannot be opened.
    """
    plain = [Study(run).label for run in runs]
    labels = [f"{one} ({run.id})" if plain.count(one) > 1 else one for one, run in zip(plain, runs, strict=True)]
    axis = Axis("study", [run.name for run in runs], labels, "study")
    at = chosen(axis)
    st.session_state["study-widget"] = axis.ids[at]
    st.selectbox(
        "Study", axis.ids, key="study-widget", format_func=lambda name: labels[axis.ids.index(name)], width=460,
        on_change=_take, help="Model, labelled texts and what was asked. Newest first.",
    )  # fmt: skip
    run = runs[at]
    with readable():
        modified = (run.path / "manifest.json").stat().st_mtime_ns
    return _study(str(run.path), modified)


def _take() -> None:
    state.take("study", "study-widget")
    for key in ("kind", "at", "layer", "show"):
        st.query_params.pop(key, None)


def empty(root: Path) -> None:
    """Say that there is no study, and which command makes one."""
    frame.heading("Nothing probed here yet")
    st.html(
        '<p class="ms-text">This page shows at which layer a model knows something, whether that is linear, and '
        f"whether the model uses it. The folder <code>{safe(root)}</code> holds no finished study of it. This asks the "
        "embedded model where it knows that a quotation is open; about a minute:</p>"
    )
    st.code(COMMAND, language="bash")
    unfinished(root)


def unfinished(root: Path) -> None:
    """Write which studies are not finished, and which cannot be opened, with the reason."""
    for run in find_runs(root, kind=KIND, finished=False):
        frame.note(f"{run.ref} is {run.status}; it is shown when it is finished.")
    for path, reason in damaged_runs(root):
        if path.parent.name == KIND:
            frame.problem(f"{KIND}/{path.name}: {reason}")


def facts(study: Study) -> None:
    """Write the headline numbers of a sweep: the best place, what it has to beat, and on how much."""
    found = study.run.summary

    def interval(name: str) -> str:
        low, high = found.get(f"{name}_low"), found.get(f"{name}_high")
        both = isinstance(low, int | float) and isinstance(high, int | float)
        write = number if name == "auc" else share
        return f"95 % {write(low)} to {write(high)}" if both else ""

    def value(name: str) -> float | None:
        one = found.get(name)
        return float(one) if isinstance(one, int | float) else None

    best = f"{found.get('best_site', 'unknown')}, position {found.get('best_position', '?')}"
    over, groups = value("over_baselines"), value("groups")
    items = [
        ("best AUC", number(value("auc")), interval("auc"), f"of all probes, at {best}"),
        ("accuracy there", share(value("accuracy")), interval("accuracy"), f"share of test texts told right at {best}"),
        ("over the best baseline", "–" if over is None else f"{100 * over:+.1f} points", best,
         "accuracy less that of the best of all baselines at the same place"),
        ("selectivity", share(value("selectivity")), "" if value("selectivity") is not None else "texts have no types",
         "accuracy less that on labels drawn at random for each type"),
        ("test texts", count(value("n_test")), f"{count(groups)} groups, {count(value('n_train'))} texts fitted on",
         "intervals are over groups, which are never divided"),
    ]  # fmt: skip
    drawn = "".join(
        f'<div title="{safe(why)}"><dt>{safe(name)}</dt><dd>{safe(said)}</dd>'
        f"<small>{safe(visible(more, spaces=False, limit=60))}</small></div>"
        for name, said, more, why in items
    )
    st.html(f'<dl class="ms-facts big">{drawn}</dl>')
    leaks = found.get("leaks")
    if isinstance(leaks, int) and leaks:
        frame.note(f"{count(leaks)} groups stand on both sides of the division: what they share helps the probe.")


def layer_of(study: Study, kind: str, position: str) -> int:
    """Return the layer that the address chooses, by default the one with the best AUC at this place."""
    here = [r for r in study.rows if r["kind"] == kind and r["position"] == position]
    layers = sorted({row["layer"] for row in here})
    scores = {row["layer"]: row["value"] for row in here if row["measure"] == "auc" and row["value"] is not None}
    best = max(scores, key=lambda layer: scores[layer], default=layers[0])
    axis = Axis(_BY_LAYER, [str(layer) for layer in layers], [str(layer) for layer in layers], "layer")
    return layers[chosen(axis, layers.index(best))]


def site(kind: str, layer: int) -> str:
    """Return the site, such as "resid_post.2"."""
    return f"{kind}.{layer}"


def editable(study: Study, kind: str) -> bool:
    """Return whether probes at this kind of site know where they were fitted, so that something can be put there."""
    try:
        Site.parse(f"{kind}.0")
    except ValueError:
        return False
    return any(name.startswith(f"probes/{kind}.") for name in study.run.files)


def footer(study: Study, root: Path) -> None:
    """Write where the numbers come from."""
    settings = study.run.config.get("settings")
    probe = settings.get("probe") if isinstance(settings, dict) else None
    seconds = study.run.summary.get("seconds")
    frame.facts_line(
        {
            "study": study.run.ref,
            "model": study.model,
            "texts": study.data,
            "probe": visible(str(probe or "unknown"), limit=30),
            "took": f"{number(seconds)} s" if isinstance(seconds, int | float) else "unknown",
            "folder": root,
        }
    )


def python(study: Study, name: str | None) -> list[str]:
    """Return the lines that open the study, and one of its probes, in Python."""
    lines = ["from interp.runs import open_run", "from probes import load_probe", ""]
    lines.append(f"run = open_run({study.run.ref!r}, root={str(study.run.root)!r})")
    tables = [file for file in study.run.files if file.endswith(".parquet")]
    lines += [f"run.table({tables[0]!r}).to_pandas()"] if tables else []
    return lines + ([f"probe = load_probe(run, {name!r})"] if name else [])
