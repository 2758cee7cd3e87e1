"""Runs of kind board: which there are, what they hold, which one the page shows. Reading needs pyarrow only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app.widgets import frame, state
from app.widgets.artefacts import Unreadable, readable
from app.widgets.board_live import COLOUR, LABELS, PARITY, TURN
from app.widgets.dictionaries import model_name
from app.widgets.heat_map import Axis, chosen
from app.widgets.loaded import model_key
from app.widgets.text import count, number, safe, share, visible
from interp.data.othello import SIDES
from interp.figures import ProbeCurve, probe_curves
from interp.runs import Run, damaged_runs, find_runs
from interp.sites import Site

KIND = "board"
COMMAND = "mechscope probe othello6 --study board"
PAGE_KEYS = ("board", "label", "game", "t", "sq", "to", "how")
"""What the address of the page holds."""
NAMES = {TURN: "mine/theirs, by turn", PARITY: "mine/theirs, counted", COLOUR: "black/white"}


class BoardStudy:
    """One finished board study; tables are read when they are asked for."""

    def __init__(self, run: Run) -> None:
        """Read the records of `run`.

        Raises:
            Unreadable: they do not describe a board.
        """
        self.run = run
        with readable():
            about = run.json("board.json")
        held = about if isinstance(about, dict) else {}
        side, sites = held.get("side"), held.get("sites")
        if side not in SIDES or not isinstance(sites, list) or not all(map(_is_site, sites)) or not sites:
            raise Unreadable(f"{run.ref}/board.json does not describe a board; make the study again.")
        self.side: int = side
        self.sites: list[str] = sites

    def table(self, name: str, *columns: str) -> list[dict[str, Any]]:
        """Return the rows of a table that has `columns`; [] where the study has no such part.

        Raises:
            Unreadable: it is damaged, or lacks one.
        """
        if f"{name}.parquet" not in self.run.files:
            return []
        with readable():
            found = self.run.table(f"{name}.parquet")
        lacking = [column for column in columns if column not in found.column_names]
        if lacking:
            raise Unreadable(f"{self.run.ref}/{name}.parquet lacks {', '.join(lacking)}; make the study again.")
        return found.to_pylist()

    def meanings(self) -> dict[int, list[dict[str, Any]]]:
        """Return what the latents of the study's own dictionary tell best, {latent: rows}."""
        found: dict[int, list[dict[str, Any]]] = {}
        columns = ("source", "latent", "rank", "family", "name", "state", "within")
        for row in self.table("latents", *columns):
            if row["source"] == "dictionary":
                found.setdefault(row["latent"], []).append(row)
        return found


def _is_site(text: object) -> bool:
    try:
        Site.parse(str(text))
    except ValueError:
        return False
    return True


def layer_label(site: str) -> str:
    """Return what the page calls a place in the stream: embeddings, after block 1, ..."""
    place = Site.parse(site)
    return "embeddings" if place.kind == "resid_pre" else f"after block {place.layer + 1}"


def studies(root: Path) -> list[Run]:
    """Return the finished studies of the folder `root`, newest first."""
    return find_runs(root, kind=KIND, finished=True)


def empty(root: Path) -> None:
    """Say that there is no study, and which command makes one."""
    frame.heading("No board here yet")
    st.html(
        '<p class="ms-text">This page shows what a model that reads moves of Othello holds of the board, and what it '
        f"does when that is changed. The folder <code>{safe(root)}</code> holds no finished study of it. This makes "
        "one of the embedded model; about two minutes:</p>"
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


def choose_study(runs: Sequence[Run]) -> BoardStudy:
    """Draw the selector of studies where there are several; return the one of the address.

    Raises:
        Unreadable: it does not describe a board.
    """
    labels = [f"{_model(run)} · {count(run.summary.get('games'))} games ({run.id})" for run in runs]
    axis = Axis("board", [run.name for run in runs], labels, "study")
    at = chosen(axis)
    if len(runs) > 1:
        st.session_state["board-widget"] = axis.ids[at]
        st.selectbox(
            "Study", axis.ids, key="board-widget", format_func=lambda name: labels[axis.ids.index(name)], width=460,
            on_change=_take, help="Newest first.",
        )  # fmt: skip
    return BoardStudy(runs[at])


def _take() -> None:
    state.take("board", "board-widget")
    for key in PAGE_KEYS[1:]:
        st.query_params.pop(key, None)


def _model(run: Run) -> str:
    key = model_key(run.config)
    return model_name(key) if key else "unknown model"


def facts(study: BoardStudy) -> None:
    """Write the headline numbers: what probes read, what they have to beat, what an intervention does."""
    found = study.run.summary

    def value(name: str) -> float | None:
        one = found.get(name)
        return float(one) if isinstance(one, int | float) and math.isfinite(one) else None

    def both(name: str) -> tuple[str, str]:
        return share(value(name)), f"{share(value(name + '_occupied'))} of occupied squares"

    def wrong(name: str) -> str:
        one = value(f"wrong_{name}")
        return "–" if one is None else number(one)

    items = [
        ("top-1 legal", share(value("top1_legal")), "of positions", "the likeliest move is a legal one"),
        ("mine and theirs", *both("turn"), "squares that a linear probe tells right at the best layer"),
        ("counting moves", *both("parity"), "the same, taking black for the side to move after an even number"),
        ("black and white", *both("colour"), "the same for colours, at the best layer"),
        ("shuffled weights", *both("turn_shuffled"), "the best a probe does on the model with its weights shuffled"),
        ("wrong moves, one square flipped", wrong("median"), f"{wrong('none')} without the edit, "
         f"{wrong('random')} in a random direction", "on the changed board, at the best layers for each"),
    ]  # fmt: skip
    drawn = "".join(
        f'<div title="{safe(why)}"><dt>{safe(name)}</dt><dd>{safe(said)}</dd><small>{safe(more)}</small></div>'
        for name, said, more, why in items
    )
    st.html(f'<dl class="ms-facts big">{drawn}</dl>')


def curves(study: BoardStudy, label: str, squares: str) -> None:
    """Draw the accuracy over the layers, beside shuffled weights and the commonest states."""
    columns = ("subject", "layer", "label", "squares", "positions", "accuracy", "low", "high")
    rows = [row for row in study.table("accuracy", *columns) if row["squares"] == squares and row["positions"] == "all"]
    if not rows:
        frame.note("This study holds no accuracies.")
        return
    drawn = []
    for name, said in NAMES.items():
        drawn.append(_curve(said, [r for r in rows if r["subject"] == "model" and r["label"] == name]))
    here = [row for row in rows if row["label"] == label]
    drawn.append(_curve("shuffled weights", [r for r in here if r["subject"] == "shuffled weights"], beside=True))
    layers = drawn[0].layers
    for row in here:
        if row["layer"] is None:
            drawn.append(ProbeCurve(str(row["subject"]), layers, [_finite(row["accuracy"])] * len(layers), beside=True))
    if not any(math.isfinite(one) for curve in drawn for one in curve.values):
        frame.note("This study holds no accuracies.")
        return
    frame.chart(probe_curves(drawn, title="squares told right"), key="board-curves", alt="accuracy by layer")


def _curve(label: str, rows: Sequence[dict[str, Any]], *, beside: bool = False) -> ProbeCurve:
    rows = sorted((row for row in rows if row["layer"] is not None), key=lambda row: row["layer"])
    ends = ([_finite(row[name]) for row in rows] for name in ("accuracy", "low", "high"))
    return ProbeCurve(label, [row["layer"] for row in rows], *ends, beside=beside)


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def edit_table(study: BoardStudy) -> None:
    """Write the wrong moves after edits of each kind, by layer."""
    columns = ("change", "mode", "scale", "reach", "first", "cases", "wrong", "low", "high")
    rows = [row for row in study.table("edits", *columns) if row["change"] == "flip"]
    if not rows:
        frame.note("This study holds no interventions.")
        return
    known = {row["mode"]: row for row in rows if row["mode"] in ("none", "true board")}
    modes = sorted({(row["mode"], row["scale"] or 0.0) for row in rows if row["mode"] not in known}, key=_order)
    head = "".join(f'<th class="n">{safe(_mode_name(*one))}</th>' for one in modes)
    body = ""
    for reach, said in (("one", "there only"), ("onward", "there and at all later ones")):
        for site in study.sites:
            cells = [next((r for r in rows if (r["reach"], r["first"], r["mode"], r["scale"] or 0.0)
                           == (reach, site, *one)), None) for one in modes]  # fmt: skip
            if any(cells):
                told = "".join(f'<td class="n" title="{_span(cell)}">{_wrong(cell)}</td>' for cell in cells)
                body += f'<tr><td>{safe(layer_label(site))}</td><td class="d">{safe(said)}</td>{told}</tr>'
    st.html(
        f'<div class="ms-scroll"><table class="ms-table"><tr><th>edited</th><th></th>{head}</tr>{body}</table></div>'
    )
    null, true = (known.get(name) for name in ("none", "true board"))
    frame.note(
        f"Mean wrong moves on the board with one square flipped, {count(rows[0]['cases'])} positions. Without an edit "
        f"{_wrong(null)}; of the model on the true board {_wrong(true)}."
    )


def _order(one: tuple[str, float]) -> tuple[int, float]:
    known = ("median", "negate", "add", "random")
    return (known.index(one[0]) if one[0] in known else len(known), one[1])


def _mode_name(mode: str, scale: float) -> str:
    return visible(f"add {number(scale)}" if mode == "add" else mode, spaces=False, limit=20)


def _wrong(row: dict[str, Any] | None) -> str:
    return "–" if row is None or row["wrong"] is None else f"{row['wrong']:.2f}"


def _span(row: dict[str, Any] | None) -> str:
    known = row is not None and row["low"] is not None and row["high"] is not None
    return f"95 % {row['low']:.2f} to {row['high']:.2f}" if row is not None and known else ""


def footer(study: BoardStudy, root: Path) -> None:
    """Write where the page's numbers come from."""
    run = study.run
    facts = {"study": run.ref, "model": _model(run), "rows": count(run.summary.get("rows")), "runs": root}
    made = str(run.info.get("finished") or run.info.get("created", ""))[:16].replace("T", " ")
    frame.facts_line(facts | {"made": f"{made} UTC"})


def python(study: BoardStudy) -> list[str]:
    """Return the lines that open the study in Python."""
    return [
        "from app.studies.board.saving import load_board",
        "from interp.runs import open_run",
        "",
        f"run = open_run({study.run.ref!r}, {str(study.run.root)!r})",
        'print(run.table("accuracy.parquet").to_pandas())',
        "side, probe = load_board(run)",
    ]


def label_of(default: str = TURN) -> str:
    """Draw the choice of what the probe tells apart; return the one of the address."""
    ids = list(LABELS)
    axis = Axis("label", ids, list(LABELS.values()), "label")
    at = chosen(axis, ids.index(default))
    st.session_state["label-widget"] = ids[at]
    st.segmented_control(
        "The probe tells apart", ids, key="label-widget", required=True, format_func=LABELS.__getitem__,
        on_change=state.take, args=("label", "label-widget"),
        help="Mine and theirs by the side to move; by counting moves, which passes upset; or black and white.",
    )  # fmt: skip
    return ids[at]
