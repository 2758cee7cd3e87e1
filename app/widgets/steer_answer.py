"""What a steering run found: KL by position, next tokens before and after, a continuation each way; from its files."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from typing import Any

import streamlit as st

from app.widgets import frame
from app.widgets.artefacts import readable
from app.widgets.text import count, number, safe, share, token_html, visible
from interp.figures import figure
from interp.figures.style import BLUE
from interp.runs import Run

LABELLED = 40  # tokens above which the axis is numbered
SIDES = {"before": "before", "after": "after", "gained": "became likelier", "lost": "became less likely"}
NEWLINES = 1500  # characters of a continuation that are shown


def title(run: Run) -> str:
    """Return what was done, in a line: way, value, positions, text."""
    config = run.config
    value = "" if config["value"] is None else f" {number(config['value'])}"
    text = visible(str(config["text"]), spaces=False, limit=60)
    return f"{config['how']}{value} · {places(config['positions'])} · “{text}”"


def places(positions: Sequence[int] | None) -> str:
    """Return in words where the latent was changed."""
    if positions is None:
        return "all"
    if list(positions) == [-1]:
        return "last"
    whole = len(positions) > 1 and list(positions) == list(range(positions[0], positions[-1] + 1))
    return f"from {positions[0]}" if whole else f"at {', '.join(map(str, positions))}"


def answer(run: Run, peak: float | None) -> None:
    """Draw the answer of a steering run; `peak` is the latent's largest |activation|, None if it never fired."""
    with readable():
        positions = run.table("positions.parquet").to_pylist()
        tokens = run.table("next_tokens.parquet").to_pylist()
        continued = run.json("continuations.json")
        st.html(f'<p class="ms-note">{sentence(run, peak)}</p>')
        chart(positions)
        last = f"{token_html(positions[-1]['text'] or str(positions[-1]['token_id']))}"
        st.html(f'<p class="ms-note">What follows {last}, the last token of the text:</p>')
        st.html(f'<div class="ms-logits ms-steer">{"".join(_list(tokens, side) for side in SIDES)}</div>')
        if continued:
            said = "".join(_continued(run, name, continued[name]) for name in ("before", "after"))
            st.html(f'<dl class="ms-said">{said}</dl>')
        with st.expander(f"{run.ref}: the command"):
            st.code(command(run), language="bash", wrap_lines=True)


def sentence(run: Run, peak: float | None) -> str:
    """Return what was done and how much it changed, as HTML."""
    config, told = run.config, run.summary
    value = config["value"]
    times = f" ({number(value / peak)} × its largest activation)" if value is not None and peak else ""
    done = {
        "clamp": f"Held at {number(value)}{times}",
        "ablate": "Held at 0",
        "add": f"Pushed by {number(value)}{times}",
    }[config["how"]]
    changed = f"{count(told['top1_changed'])} of {count(told['tokens'])} positions expect another token most"
    own = (
        f"by itself it fires at {count(told['active'])} of them ({number(told['value_low'])} to "
        f"{number(told['value_high'])})"
        if told["active"]
        else "by itself it is silent on this text"
    )
    nothing = " So removing it changes nothing." if not told["active"] and config["how"] == "ablate" else ""
    return (
        f"{done}, positions: {places(config['positions'])}. KL(before ‖ after) is {number(told['kl_mean'])} nats a "
        f"token on average, {number(told['kl_last'])} at the last; {changed}; {own}.{nothing}"
    )


def chart(positions: Sequence[dict[str, Any]]) -> None:
    """Draw KL by position, the tokens below."""
    texts = [visible(row["text"] if row["text"] is not None else str(row["token_id"]), limit=14) for row in positions]
    fig = figure(170, bargap=0.15, showlegend=False)
    hover = [
        f"position {row['position']} · {escape(text, quote=False)}<br>KL {number(row['kl'])} nats<br>"
        f"its value {number(row['value_before'])} → {number(row['value_after'])}"
        for row, text in zip(positions, texts, strict=True)
    ]
    at = list(range(len(positions)))
    fig.add_bar(
        x=at, y=[row["kl"] for row in positions], marker={"color": BLUE, "line": {"width": 0}}, customdata=hover,
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    if len(positions) <= LABELLED:
        fig.update_xaxes(tickvals=at, ticktext=[escape(text, quote=False) for text in texts], tickangle=-40)
    else:
        fig.update_xaxes(title_text="position")
    fig.update_yaxes(title_text="KL, nats", rangemode="tozero", nticks=4)
    if not any(row["kl"] for row in positions):
        fig.update_yaxes(range=[0, 1])
    frame.chart(fig, key="steer-kl", alt="KL of the predictions by position")


def _list(tokens: Sequence[dict[str, Any]], side: str) -> str:
    """Return one of the four lists: token, bar (probability, or how much it changed), probability before and after."""
    rows = [row for row in tokens if row["side"] == side]
    sizes = [abs(row["after"] - row["before"]) if side in ("gained", "lost") else row[side] for row in rows]
    top, colour = max(sizes, default=0.0) or 1.0, "neg" if side == "lost" else "pos"
    lines = "".join(
        f'<tr><td class="tok">{token_html(row["text"] if row["text"] is not None else str(row["token_id"]))}</td>'
        f'<td class="bar"><u class="{colour}" style="width:{100 * size / top:.0f}%"></u></td>'
        f'<td class="n">{share(row["before"])} → {share(row["after"])}</td></tr>'
        for row, size in zip(rows, sizes, strict=True)
    )
    none = '<tr><td colspan="3" class="d">none</td></tr>'
    return f'<table class="ms-table">{_COLUMNS}<tr><th colspan="3">{SIDES[side]}</th></tr>{lines or none}</table>'


_COLUMNS = '<colgroup><col style="width:38%"><col><col style="width:118px"></colgroup>'


def _continued(run: Run, name: str, found: dict[str, Any]) -> str:
    prompt = visible(str(run.config["text"])[-60:], spaces=False, limit=NEWLINES)
    said = visible(str(found["text"]), spaces=False, limit=NEWLINES)
    return f"<div><dt>{name}</dt><dd><span>…{safe(prompt)}</span>{safe(said)}</dd></div>"


def command(run: Run) -> str:
    """Return the command line that makes (or finds) the run."""
    config = run.config
    parts = [
        "mechscope",
        "steer",
        "--sae",
        config["sae_run"],
        "--latent",
        str(config["latent"]),
        "--how",
        config["how"],
    ]
    if config["value"] is not None:
        parts += ["--value", repr(config["value"])]
    if config["positions"] is not None:
        parts += ["--positions", *map(str, config["positions"])]
    parts += ["--text", str(config["text"]), "--new-tokens", str(config["new_tokens"])]
    return shlex.join(parts)
