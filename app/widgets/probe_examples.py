"""The test texts of a study as the probe of one place sees them: surest right, surest wrong, least sure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import streamlit as st

from app.widgets import frame
from app.widgets.probe_studies import PLACE, Study
from app.widgets.questions import choose
from app.widgets.text import count, share, visible

GROUPS = {
    "wrong": ("Surest and wrong", "errors, the most confident first"),
    "unsure": ("Least sure", "those nearest to the boundary"),
    "right": ("Surest and right", "right answers, the most confident first"),
}
MOST = 200  # rows of the table


def examples(study: Study, kind: str, position: str, layer: int) -> None:
    """Draw the table of test texts at one place, with the probability of the true label at every layer."""
    every = study.table("predictions", *PLACE, "text", "label", "predicted", "score", "confidence", "label_probability")
    column = [r for r in every.to_pylist() if r["kind"] == kind and r["position"] == position]
    rows = [row for row in column if row["layer"] == layer]
    texts = study.table("texts", "text", "content")
    contents = dict(zip(texts["text"].to_pylist(), texts["content"].to_pylist(), strict=True))
    if not rows:
        frame.note("The study keeps no predictions of this place.")
        return
    wrong = [row for row in rows if row["label"] != row["predicted"]]
    frame.note(
        f"{count(len(wrong))} of {count(len(rows))} test texts are told wrong at layer {layer}. Told right: "
        f"{told_right(rows)}."
    )
    group = choose("show", "Texts", list(GROUPS), [title for title, _ in GROUPS.values()])
    chosen = pick(rows, group)[:MOST]
    if not chosen:
        frame.note("There is none: every test text is told right." if group == "wrong" else "There is none.")
        return
    layers = sorted({row["layer"] for row in column})
    paths = {(row["text"], row["layer"]): row["label_probability"] for row in column}
    known = any(value is not None for value in paths.values())
    table = {
        "text": [visible(str(contents.get(row["text"], "")), spaces=False, limit=300) for row in chosen],
        "label": [visible(str(row["label"]), limit=30) for row in chosen],
        "predicted": [visible(str(row["predicted"]), limit=30) for row in chosen],
        "sure": [_certainty(row) for row in chosen],
    }
    if known and len(layers) > 1:
        table["by layer"] = [[paths.get((row["text"], one)) or 0.0 for one in layers] for row in chosen]
    config = {
        "text": st.column_config.TextColumn(width="large"),
        "sure": st.column_config.NumberColumn(
            "p of the answer" if known else "|score|", format="percent" if known else "%.3g", width=110
        ),
        "by layer": st.column_config.LineChartColumn(
            f"p of the true label, layers {layers[0]} to {layers[-1]}", y_min=0.0, y_max=1.0, width=190
        ),
    }
    st.dataframe(
        pa.table(table), hide_index=True, column_config=config, row_height=30,
        height="content" if len(chosen) <= 10 else 340, alt=GROUPS[group][1], key="examples",
    )  # fmt: skip
    if len(chosen) == MOST:
        frame.note(f"The first {MOST} are shown; predictions.parquet has all.")


def pick(rows: Sequence[Mapping[str, Any]], group: str) -> list[Mapping[str, Any]]:
    """Return the rows of a group in its order."""
    ordered = sorted(rows, key=_certainty)
    if group == "unsure":
        return ordered
    return [row for row in reversed(ordered) if (row["label"] == row["predicted"]) == (group == "right")]


def _certainty(row: Mapping[str, Any]) -> float:
    """Return the probability of the answer; without one, how far the score is from the boundary."""
    found = row["confidence"] if row["confidence"] is not None else row["score"]
    return abs(float(found)) if isinstance(found, int | float) and math.isfinite(found) else 0.0


def told_right(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return in one line the share of each label's texts that was told right."""
    parts = []
    for label in sorted({str(row["label"]) for row in rows}):
        own = [row for row in rows if str(row["label"]) == label]
        parts.append(f"{visible(label, limit=30)} {share(sum(r['label'] == r['predicted'] for r in own) / len(own))}")
    return " · ".join(parts)
