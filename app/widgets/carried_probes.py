"""What probes say of two models: those of a on a, carried over to b, and fitted anew on b."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from app.widgets import frame
from app.widgets.comparisons import Comparison
from app.widgets.layer_lines import draw
from app.widgets.text import number, safe
from interp.figures import Series, layer_curves

CURVES = (("auc", "AUC", "area under the ROC curve on the test texts"), ("accuracy", "accuracy", "of the test texts"))
POINTS = (("jump", "jumping point"), ("converging", "converging point"), ("best_layer", "layer of the best AUC"))
BASELINES = {"majority": "commonest", "shuffled_labels": "shuffled", "random_weights": "random weights",
             "bag_of_tokens": "bag of tokens", "position_only": "length"}  # fmt: skip


def carried_probes(comparison: Comparison, beside: Sequence[Comparison]) -> None:
    """Draw the curves over the layers, and the table with intervals and controls."""
    table = comparison.table("probes", "layers", "site", "kind", "layer")
    if table is None or not table.num_rows:
        frame.note(
            "No labelled texts were given, so nothing was probed. This asks both models for the tense of a text:"
        )
        st.code("mechscope compare tiny --recipe int4 --probe-data tense", language="bash")
        return
    rows = table.to_pylist()
    frame.note(_sentence(comparison))
    kind = str(rows[0]["kind"])
    others = [(one.change, one.table("probes", "layers", "site", "kind", "layer")) for one in beside]
    curves = []
    for column, title, aside in CURVES:
        series = [Series(f"on {comparison.change}", table, f"{column}_transfer")]
        series.append(Series("fitted anew", table, f"{column}_retrained"))
        series += [Series(f"on {name}", other, f"{column}_transfer") for name, other in others if other is not None]
        series.append(Series("on a", table, f"{column}_a", null=True))
        figure = layer_curves(series, kind=kind, span=1 + max(int(row["layer"]) for row in rows))
        if figure is not None:
            curves.append((column, title, aside, figure))
    draw(curves, "probes")
    _table(rows)
    _depths(comparison)


def _sentence(comparison: Comparison) -> str:
    summary = comparison.summaries.get("probes", {})
    return (
        f"{summary.get('texts', '?')} texts with the labels {summary.get('labels', '?')}, read at position "
        f"{summary.get('position', '?')}. Where the probe of a fails on b and one fitted on b does not, a direction "
        "has moved; where both fail, b has lost it."
    )


def _table(rows: Sequence[dict[str, Any]]) -> None:
    """Write a row for each layer."""
    there = {name: title for name, title in BASELINES.items() if name in rows[0]}
    heads = [
        ("AUC of a", "probe fitted on a, measured on a"),
        ("on b", "the same probe on the activations of b"),
        ("fitted on b", "a probe fitted on b, measured on b"),
        ("reader loses", "AUC of a less that on b, paired over the same texts"),
        ("b has lost", "AUC of a less that fitted on b, paired over the same texts"),
        ("cosine", "of the directions of the two probes"),
        ("accuracy of a", "beside it the accuracies that it has to beat"),
        *((title, "accuracy of this baseline") for title in there.values()),
    ]
    head = "".join(f'<th class="n" title="{safe(why)}">{safe(title)}</th>' for title, why in heads)
    lines = []
    for row in rows:
        cells = [_spread(row, name) for name in ("auc_a", "auc_transfer", "auc_retrained", "transfer_drop", "drop")]
        cells += [number(row[name]) for name in ("cosine", "accuracy_a", *there)]
        lines.append(
            f"<tr><td>{safe(str(row['site']))}</td>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"
        )
    frame.heading("Probes by layer", "in brackets 95 % of a bootstrap over groups of texts")
    table = f'<table class="ms-table ms-wide"><tr><th></th>{head}</tr>{"".join(lines)}</table>'
    st.html(f'<div class="ms-scroll">{table}</div>')


def _spread(row: dict[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    held = f" [{number(low)}, {number(high)}]" if low is not None and low == low and high is not None else ""
    return f"{number(row.get(name))}{held}"


def _depths(comparison: Comparison) -> None:
    """Write the depths of both models."""
    lines = []
    for key, title in POINTS:
        values = (comparison.number("probes", f"{key}_{side}") for side in "ab")
        a, b = (_point(value, key == "best_layer") for value in values)
        lines.append(f'<tr><td>{safe(title)}</td><td class="n">{a}</td><td class="n">{b}</td></tr>')
    frame.heading("Depth", "points as shares of the layers; a dash: the curve has none")
    head = '<tr><th></th><th class="n">a</th><th class="n">b</th></tr>'
    table = f'<table class="ms-table ms-narrow">{head}{"".join(lines)}</table>'
    st.html(f'<div class="ms-scroll">{table}</div>')


def _point(value: float | None, whole: bool) -> str:
    return "–" if value is None else f"{value:.0f}" if whole else number(value)
