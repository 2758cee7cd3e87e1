"""Rules side by side at one L0: each read off its own curve, with the run that lies nearest to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st

from app.widgets import frame, state
from app.widgets.artefacts import readable
from app.widgets.groups import METRICS, Group
from app.widgets.text import number, safe, share
from interp.figures.front import curve_name
from sae.pareto import CURVE, at_l0, curve_of

NEAR = 1.25
"""Largest ratio of two L0 at which a lone run stands for a curve that does not reach the wanted one."""
CHOICES = 25
"""L0 that can be chosen, at most."""
QUANTILES = (0.1, 0.5, 0.9)
"""Of the densities of the latents that fire."""
MEANINGS = {
    "fvu": "Fraction of variance unexplained; 0 is best, 1 is no better than the mean.",
    "ce_recovered_mean": "1 − (spliced − clean) / (mean ablated − clean) of the losses; 1 is best.",
    "ce_delta": "Loss with the reconstruction spliced in, minus that of the model as it is; nats a token.",
    "kl": "KL(clean ‖ spliced), nats a token.",
    "dead_share": "Share of the latents that never fired on the text of the evaluation.",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One rule at the chosen L0."""

    name: str
    """Rule, with what else tells its curve from another."""
    nearest: Row
    """Row of `sae.pareto.pareto` whose L0 is nearest."""
    numbers: dict[str, Row]
    """{metric: value, low, high, seeds}; nothing where the curve does not reach the L0 and no run is near."""
    on_curve: bool
    """Whether the numbers are read off the curve, or are those of the nearest run."""


def choices(points: pa.Table) -> list[float]:
    """Return the L0 that can be chosen: about those of the runs, no two closer than a tenth."""
    found: list[float] = []
    for value in sorted(row["l0"] for row in points.to_pylist() if row["l0"] and row["l0"] > 0):
        if not found or value > 1.1 * found[-1]:
            found.append(float(f"{value:.2g}"))
    return found[:: max(1, math.ceil(len(found) / CHOICES))]


def default_choice(points: pa.Table) -> int:
    """Return the index of the L0 that most curves reach; of several the middle one."""
    reach = [sum(row["seeds"] for row in at_l0(points, [l0], "l0").to_pylist()) for l0 in choices(points)]
    best = [i for i, n in enumerate(reach) if n == max(reach)]
    return best[len(best) // 2]


def sides(points: pa.Table, metrics: Sequence[str], l0: float) -> list[Side]:
    """Return what each curve has at `l0`, by the first of the metrics, those without numbers last."""
    rows = points.to_pylist()
    several = len({(row["d_sae"], row["trained"]) for row in rows}) > 1
    curves: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["l0"] and row["l0"] > 0:
            curves.setdefault(curve_of(row), []).append(row)
    read = {name: {curve_of(row): row for row in at_l0(points, [l0], name).to_pylist()} for name in metrics}
    made = [_side(key, found, read, l0, several) for key, found in curves.items()]
    return sorted(made, key=lambda side: side.numbers.get(metrics[0], {}).get("value", math.inf))


def _side(key: tuple[Any, ...], rows: Sequence[Row], read: dict[str, Any], l0: float, several: bool) -> Side:
    nearest = min(rows, key=lambda row: abs(math.log(row["l0"] / l0)))
    name = curve_name(dict(zip(CURVE, key, strict=True)), sizes=several)
    numbers = {metric: found[key] for metric, found in read.items() if key in found and found[key]["seeds"]}
    if numbers:
        return Side(name, nearest, numbers, on_curve=True)
    if max(nearest["l0"], l0) / min(nearest["l0"], l0) > NEAR:
        return Side(name, nearest, {}, on_curve=False)
    alike = [row for row in rows if row["repeat"] == nearest["repeat"]]
    return Side(name, nearest, {metric: _of_runs(alike, metric) for metric in read}, on_curve=False)


def _of_runs(rows: Sequence[Row], metric: str) -> Row:
    values = [row[metric] for row in rows if row.get(metric) is not None]
    if not values:
        return {"value": None, "low": None, "high": None, "seeds": 0}
    return {"value": sum(values) / len(values), "low": min(values), "high": max(values), "seeds": len(values)}


def densities(group: Group, ref: str) -> list[float]:
    """Return `QUANTILES` of the densities of the latents of a dictionary that fire; nothing where none are known."""
    run = group.evaluations.get(ref)
    name = "density.parquet"
    if run is None or name not in run.files:
        run, name = group.features.get(ref), "latents.parquet"
    if run is None or name not in run.files:
        return []
    with readable():
        found = run.table(name, columns=["density"])["density"].to_numpy()
    alive = found[found > 0]
    return [float(value) for value in np.quantile(alive, QUANTILES)] if alive.size else []


def table(group: Group, found: Sequence[Side], metrics: Sequence[str]) -> None:
    """Draw a line for each rule; the name is a link that chooses the nearest run."""
    heads = "".join(f'<span class="r" title="{safe(MEANINGS[name])}">{METRICS[name]}</span>' for name in metrics)
    with st.container(key="links-sides", gap=None):
        with st.container(horizontal=True, wrap=False, vertical_alignment="center", gap="small"):
            st.html('<div class="ms-side-name">rule</div>', width=170)
            st.html(f'<div class="ms-side head">{heads}{_HEADS}</div>')
        for side in found:
            with frame.section(), st.container(horizontal=True, wrap=False, vertical_alignment="center", gap="small"):
                address = {"g": group.key, "dict": group.by_ref[side.nearest["sae_run"]].name}
                st.page_link(state.DICTIONARIES_PAGE, label=side.name, width=170, query_params=address)
                st.html(f'<div class="ms-side">{_line(group, side, metrics)}</div>')


_HEADS = (
    '<span class="r" title="10%, 50% and 90% quantiles of the density of the latents that fire, in the nearest run">'
    'densities of the nearest run</span><span class="r" title="The run whose L0 is nearest, its arguments and its L0">'
    "nearest run</span>"
)


def _line(group: Group, side: Side, metrics: Sequence[str]) -> str:
    cells = "".join(f'<span class="r">{_cell(side.numbers.get(name), name)}</span>' for name in metrics)
    spread = densities(group, side.nearest["sae_run"])
    shown = " · ".join(share(value) for value in spread) or "–"
    near = f"{safe(side.nearest['args'] or side.nearest['rule'])}<small>L0 {number(side.nearest['l0'])}</small>"
    return f'{cells}<span class="r">{shown}</span><span class="r">{near}</span>'


def _cell(found: Row | None, metric: str) -> str:
    if found is None or found["value"] is None:
        return "–"
    write = share if metric == "dead_share" else number
    small = ""
    if found["seeds"] > 1:
        small = f"<small>{write(found['low'])} to {write(found['high'])}</small>"
    return f"{write(found['value'])}{small}"


def explain(found: Sequence[Side], l0: float) -> None:
    """Write how the numbers came about."""
    said = [f"At L0 {l0:g} each rule is read off its own curve: linear in log L0 between runs, never beyond its ends."]
    if any(row["seeds"] > 1 for side in found for row in side.numbers.values()):
        said.append("Small: the range over seeds.")
    lone = [side.name for side in found if side.numbers and not side.on_curve]
    if lone:
        said.append(f"Not read off a curve but of the nearest run, within {100 * (NEAR - 1):.0f}%: {', '.join(lone)}.")
    far = [side.name for side in found if not side.numbers]
    if far:
        said.append(f"No run near that L0: {', '.join(far)}.")
    frame.note(" ".join(said))
