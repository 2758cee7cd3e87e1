"""One patched cell: its effect at every prompt, and the pair of prompts that is looked at, position by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st
from numpy.typing import NDArray

from app.widgets import frame, state
from app.widgets.attention import SIDES, attention
from app.widgets.attributions import Scored, sentence, texts
from app.widgets.cell_maps import AXIS_NAMES
from app.widgets.method_strips import choose_prompt
from app.widgets.text import number, safe, share, tokens_html, visible
from interp.figures import prompt_values
from interp.figures.token_strip import shade
from interp.sites import WITH_HEADS

ATTENTION = (*WITH_HEADS, "attn_out")
"""Kinds whose cells have to do with attention."""


@dataclass(frozen=True)
class Spot:
    """A cell of a map of patching."""

    kind: str
    """Kind of site."""
    layer: int
    """Block."""
    parts: dict[str, int]
    """`pos` or `head`, or both."""

    @property
    def name(self) -> str:
        """Such as "head_out.3, head 2, position 5"."""
        parts = (f"{AXIS_NAMES[part]} {at}" for part, at in self.parts.items())
        return ", ".join([f"{self.kind}.{self.layer}", *parts])


def patched_cell(runs: Mapping[str, Scored], variant: str, spot: Spot) -> None:
    """Draw the drill-down of a cell: `runs` are the patching runs that have it, by variant."""
    one = runs[variant]
    frame.heading(spot.name, "what patching this cell does, prompt by prompt")
    numbers(runs, spot)
    found = {name: scored.values(spot.kind, spot.layer, **spot.parts) for name, scored in runs.items()}
    held = {name: values for name, values in found.items() if values is not None}
    if variant not in held or not one.prompts or len(one.prompts) != len(held[variant]):
        frame.note("This run does not hold its prompts, or no value of each.")
        return
    with st.container(key="split-patched"):
        left, right = st.columns([1.15, 1], gap="large")
    with left, frame.section():
        at = which_prompts(one.prompts, {variant: held[variant], **held})
    with right, frame.section():
        pair(one, spot, at, {name: float(values[at]) for name, values in held.items() if at < len(values)})
    if spot.kind in ATTENTION:
        with frame.section():
            attention(one, spot.layer, spot.parts.get("head"), at)


def numbers(runs: Mapping[str, Scored], spot: Spot) -> None:
    """Write the mean effect under each variant, with its error and its share of the whole."""
    items = ""
    for name, one in runs.items():
        score, error = (one.cell(spot.kind, spot.layer, spot.parts, column) for column in ("score", "stderr"))
        effect = one.effect
        part = share(score / effect) if score is not None and effect else "–"
        more = f"± {number(error)} · {part} of the effect" if error is not None else f"{part} of the effect"
        title = "mean over prompts, with its standard error"
        items += (
            f'<div title="{title}"><dt>{safe(name)}</dt><dd>{safe(number(score))}</dd><small>{safe(more)}</small></div>'
        )
    st.html(f'<dl class="ms-facts big">{items}</dl>')


def which_prompts(prompts: Sequence[Mapping[str, Any]], held: Mapping[str, NDArray[np.float64]]) -> int:
    """Draw the effect at each prompt, the largest first; return the prompt of the address."""
    first = next(iter(held.values()))
    at = choose_prompt(len(prompts))
    clean = [sentence(row, "clean") for row in prompts]
    groups = {name: values.tolist() for name, values in held.items() if len(values) == len(first)}
    frame.chart(
        prompt_values(groups, clean, "effect"), key="effects", on_select=_clicked,
        selection_mode="points", alt=f"Effect at each of {len(prompts)} prompts",
    )  # fmt: skip
    order = np.argsort(-first, kind="stable").tolist()
    table = pa.table(
        {
            "prompt": order,
            "effect": first[order].tolist(),
            "clean": [clean[i] for i in order],
            "right": [_words(prompts[i], "correct") for i in order],
            "wrong": [_words(prompts[i], "wrong") for i in order],
        }
    )
    config = {
        "prompt": st.column_config.NumberColumn(width=55),
        "effect": st.column_config.NumberColumn(format="%.3g", width=65),
        "clean": st.column_config.TextColumn(width="large"),
    }
    st.dataframe(
        table, hide_index=True, key="prompts", selection_mode="single-row", on_select=lambda: _row(order),
        row_height=30, height="content" if len(order) <= 10 else 340, column_config=config, alt="Prompts by effect",
    )  # fmt: skip
    return at


def _words(row: Mapping[str, Any], side: str) -> str:
    found = texts(row, side)
    return " ".join(visible(text, spaces=False, limit=16) for text in found[:4]) + (" …" if len(found) > 4 else "")


def _clicked() -> None:
    at = state.selected_latent(st.session_state.get("effects"))  # the point's customdata
    if at is not None:
        state.put("n", at)


def _row(order: Sequence[int]) -> None:
    at = state.selected_row(st.session_state.get("prompts"))
    if at is not None and at < len(order):
        state.put("n", order[at])


def pair(one: Scored, spot: Spot, at: int, effects: Mapping[str, float]) -> None:
    """Write the clean and the corrupted prompt under each other, the patched position framed."""
    row = one.prompts[at]
    clean, corrupt = texts(row, "clean"), texts(row, "corrupt")
    said = " · ".join(f"{name} {number(value)}" for name, value in effects.items())
    known = {title: row.get(f"{side}_value") for side, title in SIDES.items()}
    values = [f"metric {title} {number(value)}" for title, value in known.items() if value is not None]
    st.html(f'<p class="ms-note">Prompt {at}: {safe(" · ".join([said, *values]))}</p>')
    by_position = one.by_position(spot.kind, spot.layer, **{k: v for k, v in spot.parts.items() if k != "pos"})
    shades = by_position[at] if by_position is not None and by_position.shape[1] == len(clean) else None
    st.html(f'<div class="ms-scroll">{aligned(clean, corrupt, spot.parts.get("pos"), shades)}</div>')
    right, wrong = (texts(row, side) for side in ("correct", "wrong"))
    st.html(f'<p class="ms-note">Right answer {tokens_html(right[:6])} · wrong {tokens_html(wrong[:6])}</p>')


def aligned(
    clean: Sequence[str], corrupt: Sequence[str], position: int | None, shades: NDArray[np.float64] | None
) -> str:
    """Return a table with a column for each position: effect, clean token, corrupted token where it differs."""
    marked = ["on" if i == position else "" for i in range(len(clean))]
    lines = [("", [(f"{i}", "", "") for i in range(len(clean))])]
    if shades is not None:
        top = float(np.nanmax(np.abs(shades), initial=0.0))
        lines.append(("effect", [(number(float(v)), shade(float(v), top) if v else "", "e") for v in shades]))
    lines.append(("clean", [(visible(token, limit=24) or "∅", "", "t") for token in clean]))
    differ = [a != b for a, b in zip(clean, corrupt, strict=True)]
    looks = ["t d" if other else "t s" for other in differ]
    shown = [visible(token, limit=24) or "∅" for token in corrupt]
    lines.append(("corrupted", [(text, "", look) for text, look in zip(shown, looks, strict=True)]))
    body = ""
    for title, cells in lines:
        drawn = "".join(
            f'<td class="{look} {mark}" style="{style}">{safe(text)}</td>'
            for (text, style, look), mark in zip(cells, marked, strict=True)
        )
        body += f"<tr><th>{title}</th>{drawn}</tr>"
    return f'<table class="ms-align">{body}</table>'
