"""Studies that are no curve over layers (transfer, alignment quality, selection, latents): their tables as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st

from app.widgets import frame
from app.widgets.heat_map import Axis, chosen, heat_map
from app.widgets.probe_studies import Study
from app.widgets.text import number, safe, visible

ABOUT = {
    "transfer": "A probe fitted on one set of texts, measured on another: does one direction serve both?",
    "quality": "How far apart the classes lie at each layer, by indices of clusters, beside permuted labels.",
    "selection": "Texts ranked by how much their dictionary codes are like those of a class.",
    "latents": "Single latents against probes: the best latent for each class, beside neurons and a null.",
    "board": "The board in a model of Othello: the Board page shows it square by square.",
}
"""Study -> what it asks."""
MOST = 500  # rows of a table


def other_study(study: Study) -> None:
    """Draw the headline numbers and every table of the study."""
    frame.heading(study.label, ABOUT.get(study.study, ""))
    headline(study.run.summary)
    names = sorted(file.removesuffix(".parquet") for file in study.run.files if file.endswith(".parquet"))
    if not names:
        frame.note(f"{study.run.ref} holds no table.")
    for name in names:
        with frame.section(visible(name, limit=40)):
            table = study.table(name)
            square = matrix(table)
            if square is not None:
                transfer_map(*square)
            st.dataframe(_plain(table.slice(0, MOST)), hide_index=True, height="content" if len(table) <= 12 else 380,
                         key=f"table-{name}", alt=f"Table {name}")  # fmt: skip
            if len(table) > MOST:
                frame.note(f"The first {MOST} of {len(table):,} rows are shown; {name}.parquet has all.")


def headline(summary: Mapping[str, Any]) -> None:
    """Write the numbers of the run's summary."""
    items = ""
    for key, value in summary.items():
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            said = visible(value if isinstance(value, str) else number(value), limit=40)
            name = visible(str(key).replace("_", " "), limit=30)
            items += f"<div><dt>{safe(name)}</dt><dd>{safe(said)}</dd></div>"
    if items:
        st.html(f'<dl class="ms-facts">{items}</dl>')


def matrix(table: pa.Table) -> tuple[list[str], list[str], np.ndarray] | None:
    """Return (fitted on, measured on, accuracy of the first kind of probe), None where the table is no transfer."""
    wanted = ("fitted_on", "measured_on", "accuracy")
    if not set(wanted) <= set(table.column_names) or not table.num_rows:
        return None
    rows = table.to_pylist()
    first = rows[0].get("probe")
    rows = [row for row in rows if row.get("probe") == first]
    down, across = (list(dict.fromkeys(str(row[name]) for row in rows)) for name in wanted[:2])
    values = np.full((len(down), len(across)), np.nan)
    for row in rows:
        if isinstance(row["accuracy"], int | float):
            values[down.index(str(row["fitted_on"])), across.index(str(row["measured_on"]))] = row["accuracy"]
    return down, across, values


def transfer_map(down: list[str], across: list[str], values: np.ndarray) -> None:
    """Draw the accuracy of each set's probe on each set."""
    rows, columns = Axis("from", down, down, "fitted on"), Axis("to", across, across, "measured on")
    cell = chosen(rows), chosen(columns)
    with st.container(width=620):
        heat_map("transfer", values, rows, columns, cell=cell, value="accuracy", limit=1.0, boxes=False)


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with text made visible: names of files and sets come from strangers."""
    for i, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            shown = [None if v is None else visible(v, spaces=False, limit=300) for v in table[i].to_pylist()]
            table = table.set_column(i, field.name, pa.array(shown, pa.string()))
    return table
