"""How the predictions of two models part: the spread of the KL over tokens, and the blocks that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from app.widgets import frame
from app.widgets.artefacts import readable
from app.widgets.comparisons import Comparison
from app.widgets.headline import signed
from app.widgets.text import count, number, safe

QUANTILES = {0.5: "median", 0.75: "75%", 0.9: "90%", 0.95: "95%", 0.99: "99%", 0.999: "99.9%", 1.0: "largest"}
"""Quantile of the KL over tokens -> its column."""
BLOCKS = 10
"""Blocks that are listed, at most."""


def predictions(comparison: Comparison, shown: Sequence[Comparison], names: dict[str, str]) -> None:
    """Write the quantiles of the KL of all that is `shown`, and the blocks of `comparison` that changed most."""
    rows = [(one, found) for one in shown if (found := kl_quantiles(one))]
    if not rows:
        frame.note("The panel behaviour did not run.")
        return
    frame.heading("KL(a, b) over the tokens", "nats: half of the tokens lie below the median")
    lines = [
        (names[one.ref], [number(found.get(q)) for q in QUANTILES], "null" if one.null_of else "")
        for one, found in rows
    ]
    _table(["b", *QUANTILES.values()], lines)
    with frame.section():
        blocks(comparison)


def kl_quantiles(comparison: Comparison) -> dict[float, float]:
    """Return {quantile: KL} of those in `QUANTILES` that the run holds; nothing where behaviour did not run."""
    table = comparison.table("behaviour", "quantiles", "quantile", "kl")
    if table is None:
        return {}
    with readable():
        held = dict(zip(table["quantile"].to_pylist(), table["kl"].to_pylist(), strict=True))
        return {q: float(held[q]) for q in QUANTILES if held.get(q) is not None}


def blocks(comparison: Comparison) -> None:
    """Write the blocks of text whose predictions changed most."""
    table = comparison.table("behaviour", "blocks", "block", "tokens", "loss_a", "loss_b", "kl")
    if table is None or not table.num_rows:
        return
    with readable():
        rows = [row for row in table.to_pylist() if row["tokens"] and None not in row.values()]
        rows.sort(key=lambda row: -row["kl"])
    better = sum(row["loss_b"] < row["loss_a"] for row in rows)
    frame.heading("Blocks that changed most", f"b predicts {count(better)} of {count(len(rows))} blocks better than a")
    lines = [(count(row["block"]), _cells(row), "") for row in rows[:BLOCKS]]
    _table(["block", "tokens", "loss a", "loss b", "b − a", "KL"], lines)


def _cells(row: dict[str, Any]) -> list[str]:
    losses = [number(row["loss_a"]), number(row["loss_b"]), signed(row["loss_b"] - row["loss_a"])]
    return [count(row["tokens"]), *losses, number(row["kl"])]


def _table(heads: Sequence[str], lines: Sequence[tuple[str, Sequence[str], str]]) -> None:
    """Write lines of (label, cells, look)."""
    head = f"<th>{safe(heads[0])}</th>" + "".join(f'<th class="n">{safe(one)}</th>' for one in heads[1:])
    body = "".join(
        f'<tr class="{look}"><td>{safe(label)}</td>{"".join(f"<td class=n>{safe(cell)}</td>" for cell in cells)}</tr>'
        for label, cells, look in lines
    )
    table = f'<table class="ms-table ms-wide ms-narrow"><tr>{head}</tr>{body}</table>'
    st.html(f'<div class="ms-scroll">{table}</div>')
