"""How far to trust the methods: what their scores add up to, how they agree, and estimates against the measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import streamlit as st

from app.widgets import frame
from app.widgets.artefacts import readable
from app.widgets.attributions import PATCHING, Scored, sound
from app.widgets.text import count, number, safe
from interp.attribution.agreement import correlation_table, paired, pearson
from interp.figures import agreement_matrix, conservation_curve, estimate_scatter
from interp.sites import STREAM


def conservation(methods: Sequence[Scored]) -> None:
    """Draw what the scores of each layer add up to; patching, whose effects need not add up, is left out."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for one in methods:
        with readable():
            for row in one.found.completeness.to_pylist() if one.method != PATCHING else []:
                fits = row["kind"] in STREAM and row["part"] == "all" and row["total"]
                if fits and all(math.isfinite(row[key]) for key in ("explained", "total")):
                    kinds.setdefault(row["kind"], []).append(row | {"method": one.method})
    if not kinds:
        frame.note("None of these methods scores the residual stream, where the sum of scores can be checked.")
        return
    kind = max(kinds, key=lambda name: len(kinds[name]))
    rows = [{key: value for key, value in row.items() if key != "kind"} for row in kinds[kind]]
    frame.chart(
        conservation_curve(rows, share=True), key="conservation",
         alt="Sum of scores of each layer as a share of what it should be, a line for each method",
    )  # fmt: skip
    frame.note(
        f"Scores of {kind}, all positions together. 100%: they add up to the effect (estimates) or to the metric "
        "(LRP); the rest went to biases or was lost by the method."
    )


def agreement(methods: Mapping[str, Scored], kind: str) -> None:
    """Draw the correlations of the methods on one kind."""
    held = {name: one.found for name, one in methods.items() if kind in one.found.kinds}
    if len(held) < 2:
        frame.note("Agreement needs a second method on these prompts.")
        return
    with sound():
        table = correlation_table(held, kind)
    frame.chart(
        agreement_matrix(list(held), table), key="agreement",
         alt="Correlation of every two methods",
    )  # fmt: skip
    truth = f" {PATCHING} is the truth: its row says how well each method stands in for it." if PATCHING in held else ""
    frame.note(f"Pearson correlation over the cells of {kind} that both score.{truth}")


def fidelity(by_kind: Mapping[str, Mapping[str, Scored]]) -> None:
    """Write the correlation of each method with patching, for each kind of site: {kind: {method: run}}."""
    shown = {kind: methods for kind, methods in by_kind.items() if PATCHING in methods and len(methods) > 1}
    if not shown:
        return
    head = "".join(f'<th class="n">{safe(kind)}</th>' for kind in shown)
    lines = ""
    for name in dict.fromkeys(name for methods in shown.values() for name in methods if name != PATCHING):
        cells = ""
        for kind, methods in shown.items():
            with sound():
                r, n = pearson(methods[PATCHING].found, methods[name].found, kind) if name in methods else (math.nan, 0)
            cells += f'<td class="n" title="{count(n)} cells">{f"{r:.3f}" if math.isfinite(r) else "–"}</td>'
        lines += f"<tr><td>{safe(name)}</td>{cells}</tr>"
    frame.heading("Correlation with patching", "by kind of site, over all its cells")
    table = f'<table class="ms-table ms-wide ms-narrow"><tr><th>method</th>{head}</tr>{lines}</table>'
    st.html(f'<div class="ms-scroll">{table}</div>')


def against_measured(methods: Mapping[str, Scored], kind: str) -> None:
    """Draw estimates of effects against measured ones: a patching run's map, else the checked cells of each."""
    truth = methods.get(PATCHING)
    estimates = {name: one for name, one in methods.items() if name != PATCHING and one.variant}
    points: dict[str, dict[tuple[int, ...], tuple[float, float]]] = {}
    for name, one in estimates.items():
        if kind in one.found.kinds:
            points[name] = _pairs(one, truth, kind)
    points = {name: found for name, found in points.items() if found}
    if not points:
        frame.note("No estimate of these effects has been checked by patching at this kind of site.")
        return
    # A cell has one measured value where patching made the map; checks of single methods are told apart by the method.
    keys = sorted({(name if truth is None else "", cell) for name, found in points.items() for cell in found})
    measured, groups = [], {name: [] for name in points}
    for owner, cell in keys:
        holders = [name for name in points if cell in points[name] and owner in ("", name)]
        measured.append(points[holders[0]][cell][0])
        for name, values in groups.items():
            values.append(points[name][cell][1] if name in holders else math.nan)
    lines = [f"{kind}.{cell[0]} {' '.join(map(str, cell[1:]))}" for _, cell in keys]
    frame.chart(
        estimate_scatter(measured, groups, lines), key="estimates",
         alt="Estimated effects against measured ones",
    )  # fmt: skip
    source = "the patching run" if truth is not None and kind in truth.found.kinds else "each method's own check"
    frame.note(f"Cells of {kind}; measured by {source}. On the dotted line an estimate is right.{_checks(estimates)}")


def _pairs(one: Scored, truth: Scored | None, kind: str) -> dict[tuple[int, ...], tuple[float, float]]:
    """Return {cell: (measured, estimated)}."""
    if truth is not None and kind in truth.found.kinds:
        with sound():
            x, y, cells = paired(truth.found, one.found, kind)
        return {cell: (float(a), float(b)) for cell, a, b in zip(cells, x, y, strict=True)}
    with sound():
        score, measured = one.found.map(kind), one.found.map(kind, "measured")
    at = np.argwhere(np.isfinite(score) & np.isfinite(measured))
    return {tuple(cell): (float(measured[tuple(cell)]), float(score[tuple(cell)])) for cell in at.tolist()}


def _checks(estimates: Mapping[str, Scored]) -> str:
    """Return what the methods' own checks say, over all kinds."""
    said = [
        f"{name} {number(one.found.values['check_pearson'])} ({count(one.found.values.get('check_cells'))} cells)"
        for name, one in estimates.items()
        if "check_pearson" in one.found.values
    ]
    return f" Correlation with the cells that each run checked, all kinds together: {', '.join(said)}." if said else ""
