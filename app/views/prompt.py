"""Prompt: a text as the model reads it: how surprised it is, which features fire where, and what it expects next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import streamlit as st

from app.widgets import frame, state
from app.widgets.dictionaries import (
    DICTIONARIES,
    Known,
    finished_dictionaries,
    in_order,
    known,
    model_name,
    models_of,
)
from app.widgets.firing import DEFAULT_DENSITY, DENSITIES, HEAD, ORDERS, Filter, counts, firing
from app.widgets.heat_map import Axis, chosen, heat_map
from app.widgets.loaded import TEXT_LENGTH, TOKENS, model_key
from app.widgets.reading import Reading, read_prompt
from app.widgets.strip_picker import strip_data, strip_picker
from app.widgets.text import count, number, safe, token_html, visible
from interp.config import digest
from interp.runs import Run, RunError, open_run, runs_root

MAPS = {"FVU": "unexplained", "features": "features"}
ASIDES = {"FVU": "what each dictionary leaves unexplained", "features": "how many features fire"}
LINES, OTHER_LINES = 12, 5  # latents listed for the chosen dictionary, and for each of the others
NAMED_COLUMNS = 40  # tokens above which the map's columns are numbered
EXAMPLE = "The old man looked at the sea and said nothing."


def show() -> None:
    """Draw the page."""
    root = runs_root()
    finished = finished_dictionaries(root)
    models = models_of(finished)
    if not models:
        empty(root)
        return
    with frame.section():
        model = choose_model(models, _of_selector(root))
        runs = in_order(finished, model)
        text = text_box()
        if text and st.session_state.get("_live"):
            reading = read_prompt(runs, text)
            read(reading, [one for one in known(runs, root) if one.run.ref in reading.coded])
            for ref, reason in reading.failed.items():
                frame.problem(f"{ref} is left out: {reason}")
        else:
            waiting(runs)
        left_out = sum(model_key(run.config) == model for run in finished) - len(runs)
        if left_out:
            frame.note(f"{left_out} older dictionaries of this model are left out; {DICTIONARIES} are read at once.")
        frame.python(python(runs, text))
        state.keep_prompt({"by": ORDERS[0], "dens": DEFAULT_DENSITY, "cell": next(iter(MAPS))})
        frame.facts_line({"model": model_name(model), "dictionaries": ", ".join(run.ref for run in runs), "runs": root})


def empty(root: Path) -> None:
    """Say that there is no dictionary, and which command makes one."""
    frame.heading("No dictionary here yet")
    st.html(
        f'<p class="ms-text">This page shows which features fire on a text of yours. The folder '
        f"<code>{safe(root)}</code> holds no finished dictionary. The whole job on the embedded model takes a few "
        "minutes:</p>"
    )
    st.code("mechscope demo", language="bash")


def _of_selector(root: Path) -> Run | None:
    """Return the dictionary of the features run that the selector of the bar shows."""
    name = st.session_state.get("_run")
    try:
        run = open_run(f"features/{name}", root) if name else None
        return open_run(str(run.config.get("sae_run") or run.parents[0]), root) if run else None
    except (RunError, IndexError):
        return None


def choose_model(models: Sequence[str], selected: Run | None) -> str:
    """Return the model of the address; a selector appears where the folder has dictionaries of several."""
    names = [digest(key)[:8] for key in models]
    mine = model_key(selected.config) if selected else ""
    if selected and st.session_state.get("_prompt_run") not in (None, selected.name):  # the bar's selector was moved
        state.put("sae", selected.name)
        if mine in models:
            state.put("m", names[models.index(mine)])
    st.session_state["_prompt_run"] = selected.name if selected else None
    if len(models) == 1:
        return models[0]
    axis = Axis("m", names, [model_name(key) for key in models], "Model")
    at = chosen(axis, models.index(mine) if mine in models else 0)
    st.session_state["m-widget"] = names[at]
    st.selectbox(
        "Model", names, key="m-widget", format_func=lambda name: axis.labels[names.index(name)],
        on_change=state.take, args=("m", "m-widget"), width=320,
    )  # fmt: skip
    return models[at]


def text_box() -> str:
    """Draw the box for the text; return what was run last."""
    text = state.keep_text(TEXT_LENGTH)
    if st.session_state.get("prompt") != text:
        st.session_state["prompt"] = text
    with st.form("prompt-form", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_area(
            "Text", key="prompt", max_chars=TEXT_LENGTH, height=76, label_visibility="collapsed",
            placeholder="Type or paste a few sentences",
        )  # fmt: skip
        st.form_submit_button("Run", type="primary", on_click=_run, help="Ctrl+Enter in the box does the same")
    return text


def _run() -> None:
    state.put_text("prompt")
    st.session_state["_live"] = True
    st.session_state.pop("_pos", None)
    st.query_params.pop("pos", None)


def waiting(runs: Sequence[Run]) -> None:
    """Say what Run will do, and offer a text."""
    sites = ", ".join(dict.fromkeys(visible(str(run.config.get("site"))) for run in runs))
    plural = "dictionary" if len(runs) == 1 else "dictionaries"
    frame.note(
        f"Run loads the model and reads up to {TEXT_LENGTH} characters ({TOKENS} tokens) through {len(runs)} {plural} "
        f"({sites}). Then each token shows the model's surprise, the features that fire on it, and what comes next."
    )
    if not st.session_state.get("_text"):
        st.button("Try an example", on_click=_example)


def _example() -> None:
    st.session_state["prompt"] = EXAMPLE
    _run()


def read(reading: Reading, layers: Sequence[Known]) -> None:
    """Draw the answer."""
    n = len(reading.tokens)
    shown = [f"{reading.start + i} {visible(t, limit=12)}" for i, t in enumerate(reading.tokens)]
    columns = Axis(
        "pos", [str(reading.start + i) for i in range(n)],
        [visible(t, limit=12) for t in reading.tokens] if n <= NAMED_COLUMNS else [s.split(" ")[0] for s in shown],
        "token",
    )  # fmt: skip
    at = chosen(columns, n - 1)
    strip(reading, columns, at)
    if not layers:
        frame.note("No dictionary of this model could read the text.")
        predictions(reading, at)
        return
    rows = Axis("sae", [one.run.name for one in layers], row_labels(layers), "dictionary")
    mine = st.session_state.get("_prompt_run")
    row = chosen(rows, rows.ids.index(mine) if mine in rows.ids else len(layers) - 1)
    wanted = controls()
    kind = st.session_state.get("cell") or next(iter(MAPS))
    with frame.section("Layer by layer", f"{ASIDES[kind]}; click a cell to choose its token and dictionary"):
        maps(kind, reading, layers, rows, columns, (row, at), wanted, shown)
    walk(columns, rows, at, row)
    with st.container(key="split-prompt"):
        left, right = st.columns([1.75, 1], gap="large")
    with right:
        predictions(reading, at)
    with left:
        frame.heading("Features", "at the chosen token, in the order of the model; open one to steer by it")
        st.html(HEAD)
        for i, one in enumerate(layers):
            lines = LINES if i == row else max(2, min(OTHER_LINES, 40 // len(layers)))
            key = "chosen" if i == row else f"other-{i}"
            firing(one, reading.coded[one.run.ref], at, wanted, lines, key)


def strip(reading: Reading, columns: Axis, at: int) -> None:
    """Draw the text shaded by surprise; a click chooses a token."""
    losses = [loss for loss in reading.loss if math.isfinite(loss)]
    scale = max([6.0, *losses])
    mean = sum(losses) / len(losses) if losses else math.nan
    frame.heading("Surprise", "loss of each token given what precedes it, in nats; click a token")
    tips = [
        f"{visible(token)} · id {i} · position {position} · "
        + (f"surprise {number(loss)}" if math.isfinite(loss) else "nothing precedes it")
        for token, i, position, loss in zip(reading.tokens, reading.ids, columns.ids, reading.loss, strict=True)
    ]
    with st.container(border=True, key="strip-box"):
        data = strip_data(reading.tokens, reading.loss, tips, at, scale, "Tokens, shaded by surprise")
        strip_picker("strip", data, lambda i: state.put("pos", columns.ids[i]))
    cut = f" Only the first {len(reading.tokens)} tokens were read." if reading.cut else ""
    st.html(
        f'<p class="ms-note">0<span class="ms-legend"></span>{number(scale)} nats · {count(len(reading.tokens))} '
        f"tokens, mean {number(mean)} nats, perplexity {number(math.exp(min(mean, 700)) if losses else None)}.{cut}</p>"
    )


def row_labels(layers: Sequence[Known]) -> list[str]:
    """Return a label for each dictionary: its site, with rule and size, or the hash, where that is not enough."""
    sae = [one.run.config.get("sae") or {} for one in layers]
    forms = [
        [one.site for one in layers],
        [f"{one.site} {s.get('rule', '?')} {s.get('d_sae', '?')}" for one, s in zip(layers, sae, strict=True)],
        [f"{one.site} {one.run.id}" for one in layers],
    ]
    repeated = [Counter(form) for form in forms]
    return [
        next((form[i] for form, n in zip(forms, repeated, strict=True) if n[form[i]] == 1), one.run.name)
        for i, one in enumerate(layers)
    ]


def controls() -> Filter:
    """Draw what decides which features are shown, and in which order."""
    choices = {"dens": DENSITIES, "by": ORDERS, "cell": list(MAPS)}
    for text in state.stray(list(choices), lambda key, value: value in choices[key]):
        frame.note(text)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="filters"):
        density = st.select_slider(
            "Hide features denser than", DENSITIES, value=DEFAULT_DENSITY, key="dens", bind="query-params", width=260,
            help="Density is the share of tokens on which a feature fires; the scale is cubic. Features whose density "
            "is not known are shown.",
        )  # fmt: skip
        order = st.segmented_control(
            "Sort by", ORDERS, default=ORDERS[0], required=True, key="by", bind="query-params",
            help="**activation / max**: relative to the largest activation seen when the features were described",
        )  # fmt: skip
        st.segmented_control(
            "Map shows", list(MAPS), default=next(iter(MAPS)), required=True, key="cell", bind="query-params",
            help="**FVU**: squared error of the reconstruction, relative to the spread of the text; a row's mean is "
            "the FVU on this text  \n**features**: how many fire and pass the filter",
        )  # fmt: skip
    return Filter(str(density), str(order))


def maps(
    kind: str,
    reading: Reading,
    layers: Sequence[Known],
    rows: Axis,
    columns: Axis,
    cell: tuple[int, int],
    wanted: Filter,
    names: Sequence[str],
) -> None:
    """Draw dictionary by token: how many features fire, or what the reconstruction misses."""
    coded = [reading.coded[one.run.ref] for one in layers]
    if kind == "FVU":
        values = np.stack([code.error for code in coded])
        largest = values[np.isfinite(values)].max(initial=0.0)
        limit = min(1.0, max(0.25, float(largest)))  # faint errors stay faint, and 1 is as bad as the mean
    else:
        values = np.stack([counts(one, code, wanted) for one, code in zip(layers, coded, strict=True)])
        limit = None
    lines = [[f"{label} · {name}" for name in names] for label in rows.labels]
    heat_map("map", values, rows, columns, cell=cell, value=MAPS[kind], limit=limit, hover=lines, boxes=False)


def walk(columns: Axis, rows: Axis, at: int, row: int) -> None:
    """Draw the keyboard's way: position, previous and next token, dictionary."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="walk"):
        st.html('<span class="ms-walk">Token</span>', width="content")
        st.session_state["pos-widget"] = int(columns.ids[at])
        st.number_input(
            "Position", int(columns.ids[0]), int(columns.ids[-1]), step=1, key="pos-widget", on_change=state.take,
            args=("pos", "pos-widget"), width=80, label_visibility="collapsed",
        )  # fmt: skip
        for name, step, icon in (("Left", -1, "chevron_left"), ("Right", 1, "chevron_right")):
            inside = 0 <= at + step < len(columns.ids)
            st.button(
                "Previous" if step < 0 else "Next", on_click=state.put, icon=f":material/{icon}:", shortcut=name,
                args=("pos", columns.ids[at + step] if inside else ""), disabled=not inside, key=f"go-{name}",
            )  # fmt: skip
        st.html('<span class="ms-walk">in</span>', width="content")
        st.session_state["sae-widget"] = rows.ids[row]
        names = dict(zip(rows.ids, rows.labels, strict=True))
        st.selectbox(
            "Dictionary", list(rows.ids), key="sae-widget", format_func=lambda name: str(names.get(name, name)),
            on_change=state.take, args=("sae", "sae-widget"), width=240, label_visibility="collapsed",
        )  # fmt: skip


def predictions(reading: Reading, at: int) -> None:
    """Write the most probable next tokens after the chosen one, and what really follows."""
    follows = reading.follows[at]
    frame.heading("Next token", "what the model expects after the chosen one")
    st.html(f'<p class="ms-note">{_before(reading, at)} → ?</p>')
    top = reading.likely[at][0][1] if reading.likely[at] else 1.0
    lines = "".join(
        f'<tr><td class="tok{" on" if follows and rank == follows[2] and text == follows[0] else ""}">'
        f"{token_html(text)}</td>"
        f'<td class="bar"><u style="width:{100 * p / (top or 1.0):.0f}%"></u></td>'
        f'<td class="n">{100 * p:.1f}%</td></tr>'
        for rank, (text, p) in enumerate(reading.likely[at], 1)
    )
    head = '<colgroup><col class="c1"><col><col class="c3"></colgroup>'
    st.html(f'<div class="ms-logits one"><table class="ms-table">{head}{lines}</table></div>')
    if follows:
        text, p, rank = follows
        st.html(
            f'<p class="ms-note">The text goes on with {token_html(text)}: probability '
            f"{100 * p:.2g}%, rank {count(rank)}, {number(-math.log(p) if p > 0 else math.inf)} nats.</p>"
        )


def _before(reading: Reading, at: int) -> str:
    """Return the chosen token and a few before it as boxes."""
    return " ".join(token_html(token) for token in reading.tokens[max(0, at - 3) : at + 1])


def python(runs: Sequence[Run], text: str) -> list[str]:
    """Return the lines that compute what the page shows, for the last of the dictionaries."""
    if not runs:
        return []
    run = runs[-1]
    return [
        "from interp.hooks import capture",
        "from interp.models import load_model",
        "from interp.runs import open_run",
        "from sae.model import load_sae",
        "",
        f"run = open_run({run.ref!r}, root={str(run.root)!r})",
        'model = load_model(run.config["model"]["name"])',
        "sae = load_sae(run)",
        f"tokens = model.tokens({text or EXAMPLE!r})",
        'with capture(model, run.config["site"]) as cache:',
        "    logits = model.logits(tokens)",
        'code = sae.encode(cache[run.config["site"]]).dense()  # [tokens, latents]',
    ]


if __name__ == "__main__":
    show()
