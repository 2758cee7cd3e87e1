"""A dictionary in a card: what it is, how good, how it learned, and the way to its features."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app.widgets import frame, state, theme
from app.widgets.text import count, number, place_of, safe, share
from interp.figures import training_curves
from interp.runs import Run, RunError


def card(run: Run, runs: Sequence[Run]) -> None:
    """Draw a dictionary: what it is, how good, how it learned, and the way to its features."""
    made = [other for other in runs if run.ref in other.parents and other.finished]
    evaluation = next((other for other in made if other.kind == "evaluation"), None)
    features = next((other for other in made if other.kind == "features"), None)
    measured = _measured(run, evaluation)
    items = "".join(f"<div><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>" for name, value in measured.items())
    st.html(
        f'<div class="ms-run"><div class="name">{safe(run.name)}</div><div class="dim">{safe(_about(run))}</div>'
        f"<dl>{items}</dl>{_sparkline(run)}</div>"
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        if features is not None:
            st.page_link(
                state.FEATURES_PAGE, label="Open features", icon=":material/scatter_plot:",
                query_params={"run": features.name},
            )  # fmt: skip
        if rows := run.metrics():
            with st.popover("Training", icon=":material/show_chart:"):
                chart = training_curves(rows)
                frame.chart(chart, key=f"curves-{run.id}", width=640)
    wanted = [name for name, there in (("evaluate", evaluation), ("features", features)) if there is None]
    if wanted:
        lines = "\n".join(f"mechscope {name} --sae {run.ref}" for name in wanted)
        st.code(lines, language="bash", wrap_lines=True)


def _about(run: Run) -> str:
    sae, model = run.config.get("sae") or {}, run.info.get("model") or run.config.get("model") or {}
    name = model.get("name", "unknown model") if isinstance(model, dict) else str(model)
    parts = [Path(str(name)).name, place_of(run.config)]
    if sae:
        arguments = ", ".join(f"{k} {v}" for k, v in (sae.get("rule_args") or {}).items())
        parts.append(f"{sae.get('rule', '?')}{f' ({arguments})' if arguments else ''}")
        parts.append(f"{count(sae.get('d_in'))} → {count(sae.get('d_sae'))}")
    if isinstance(run.info.get("seed"), int):
        parts.append(f"seed {run.info['seed']}")
    return " · ".join(parts)


def _measured(run: Run, evaluation: Run | None) -> dict[str, str]:
    """Return the headline figures: of the evaluation where there is one, else of the end of training."""
    numbers = dict(run.summary)
    if evaluation is not None:
        try:
            numbers |= {k: v for k, v in evaluation.json("metrics.json").items() if v is not None}
        except (RunError, AttributeError):
            numbers |= evaluation.summary
    written = {
        "FVU": ("fvu", number),
        "L0": ("l0", number),
        "dead": ("dead_share", share),
        "CE recovered (mean)": ("ce_recovered_mean", number),
        "CE delta": ("ce_delta", number),
        "tokens": ("tokens", count),
    }
    found = {name: write(_float(numbers.get(key))) for name, (key, write) in written.items()}
    found["tokens"] = count(_float(run.summary.get("tokens")))
    return found


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _sparkline(run: Run) -> str:
    """Return FVU over training as a small picture; "" where nothing was logged. An image, since `st.html` drops SVG."""
    points = [(i, row["fvu"]) for i, row in enumerate(run.metrics()) if isinstance(row.get("fvu"), int | float)]
    if len(points) < 2:
        return ""
    width, height, last = 360, 44, points[-1][0] or 1
    top = max(min(value, 2.0) for _, value in points) or 1.0
    path = " ".join(
        f"{x / last * width:.1f},{height - 2 - min(y, top) / top * (height - 6):.1f}" for x, y in points[-4000:]
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
        f'<polyline points="{path}" fill="none" stroke="#0072B2" stroke-width="1.6" '
        'vector-effect="non-scaling-stroke"/>'
        f'<line x1="0" y1="{height - 1}" x2="{width}" y2="{height - 1}" stroke="#c9d1d9" stroke-width="1"/></svg>'
    )
    data = base64.b64encode(theme.colours(svg).encode()).decode()
    first, final = number(points[0][1]), number(points[-1][1])
    return (
        f'<figure><img alt="FVU over training, from {first} to {final}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption><span>FVU over training</span><span>{first} → {final}</span></figcaption></figure>"
    )
