"""What two models differ by in each layer, and how deep each of them settles: small figures with one axis of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import streamlit as st

from app.widgets import frame
from app.widgets.artefacts import readable
from app.widgets.comparisons import Comparison
from app.widgets.headline import signed
from app.widgets.text import number, safe
from interp.figures import Series, heat_map, layer_curves
from interp.sites import KINDS, Site

CURVES = (
    ("drift", "relative_error", "relative drift", "size of b − a relative to a", False),
    ("drift", "cosine", "cosine", "of the activations in a and b, mean over tokens", False),
    ("drift", "sqnr_db", "SQNR", "signal to noise, dB: 20 less is ten times the drift", False),
    (
        "drift",
        "first_relative_error",
        "drift at position 0",
        "of the first token of a block, left out elsewhere",
        False,
    ),
    ("drift", "first_cosine", "cosine at position 0", "of that token's activations in a and b", False),
    ("cka", "cka", "CKA", "alike up to a rotation: 1; unbiased", False),
    ("lens", "kl_ab", "lens KL", "nats between what the layer predicts in a and in b", False),
    ("lens", "top1_agreement", "lens agreement", "tokens with the same top-1 at that layer", True),
)
DEPTHS = (
    ("top1_final", "top-1 is final", "tokens whose final top-1 stands there already", True),
    ("kl_final", "KL to the end", "nats from the final prediction", False),
    ("entropy", "entropy", "nats of what the layer predicts", False),
)
LOGGED = ("relative_error", "first_relative_error", "kl_ab")


def layers(shown: Sequence[Comparison], names: dict[str, str]) -> None:
    """Draw the curves over the layers, small multiples with one axis."""
    found = {panel: [_rows(one, panel) for one in shown] for panel in ("drift", "cka", "lens")}
    first = next((t for t in (found["drift"][0], found["cka"][0], found["lens"][0]) if t is not None), None)
    if first is None:
        frame.note("None of the panels drift, cka and lens ran.")
        return
    kinds = _kinds([table for tables in found.values() for table in tables if table is not None])
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        if len(kinds) > 1:
            kind = st.segmented_control(
                "Sites", kinds, default=kinds[0], required=True, key="sites", bind="query-params",
                label_visibility="collapsed",
            )  # fmt: skip
        else:
            kind = kinds[0]
        log = st.toggle("log scale for drift and KL", key="log", bind="query-params")
    span = 1 + max(int(max(t["layer"].to_pylist(), default=0)) for ts in found.values() for t in ts if t is not None)
    curves = []
    for panel, column, title, aside, percent in CURVES:
        series = [
            Series(names[one.ref], _with(table, column), column, bool(one.null_of))
            for one, table in zip(shown, found[panel], strict=True)
        ]
        figure = layer_curves(series, kind=str(kind), log=log and column in LOGGED, span=span, percent=percent)
        if figure is not None:
            curves.append((f"{panel}-{column}", title, aside, figure))
    draw(curves, "layers")
    if not curves:
        frame.note(f"Nothing was measured at {kind}.")


def draw(curves: Sequence[tuple[str, str, str, Any]], key: str) -> None:
    """Draw figures side by side, three a row on a wide screen."""
    if not curves:
        return
    with st.container(key=f"split-curves-{key}"):
        places = st.columns(len(curves), gap="medium")
    for place, (name, title, aside, figure) in zip(places, curves, strict=True):
        with place, st.container(gap=None):
            st.html(f'<p class="ms-curve">{safe(title)}<span>{safe(aside)}</span></p>')
            frame.chart(figure, key=f"{key}-{name}", alt=title)


def _rows(one: Comparison, panel: str) -> Any:
    return one.table(panel, "layers", "site", "layer")


def _with(table: Any, column: str) -> Any:
    """Return `table`, None where it lacks `column`: runs of other versions hold other columns."""
    return table if table is not None and column in table.column_names else None


def cross_layers(comparison: Comparison) -> None:
    """Draw the CKA of every layer of a with every layer of b."""
    table = comparison.table("cka", "cross", "site_a", "site_b", "cka")
    if table is None or not table.num_rows:
        return
    with readable():
        rows = table.to_pylist()
        down, across = (sorted({Site.parse(row[key]) for row in rows}) for key in ("site_a", "site_b"))
        values = np.full((len(down), len(across)), np.nan)
        for row in rows:
            at = down.index(Site.parse(row["site_a"])), across.index(Site.parse(row["site_b"]))
            values[at] = np.nan if row["cka"] is None else row["cka"]
    frame.heading(
        "CKA across layers", f"{down[0].kind}, layers of a down, layers of b across; 1: alike up to a rotation"
    )
    figure = heat_map(
        values, [str(site.layer) for site in down], [str(site.layer) for site in across], limit=1.0,
        titles=("layer of a", "layer of b", "CKA"),
    )  # fmt: skip
    with st.container(width=520):
        frame.chart(figure, key="cka-cross", alt="CKA of layers of a with layers of b")


def _kinds(tables: Sequence[Any]) -> list[str]:
    sites = {str(site).rpartition(".")[0] for table in tables for site in table["site"].to_pylist()}
    order = ["resid_post", *[kind for kind in KINDS if kind != "resid_post"]]
    return sorted(sites, key=lambda kind: order.index(kind) if kind in order else len(order)) or ["resid_post"]


def depth(comparison: Comparison, beside: Sequence[Comparison]) -> None:
    """Write how deep the final prediction is found, and draw what the lens says in a and in b."""
    table = _rows(comparison, "lens")
    if table is None:
        frame.note("The panel lens did not run.")
        return
    a, b, shift = (comparison.number("lens", f"depth_{key}") for key in ("a", "b", "delta"))
    if shift is not None:
        frame.note(
            f"On average the logit lens finds the final top-1 token after {number(a)} blocks in a and {number(b)} in b "
            f"({signed(shift)})."
        )
    span = 1 + int(max(table["layer"].to_pylist(), default=0))
    others = [(f"b: {one.change}", _rows(one, "lens")) for one in beside]
    curves = []
    for column, title, aside, percent in DEPTHS:
        if f"{column}_a" not in table.column_names:
            continue
        series = [Series("b" if not others else f"b: {comparison.change}", table, f"{column}_b")]
        series += [Series(name, rows, f"{column}_b") for name, rows in others]
        series.append(Series("a", table, f"{column}_a", null=True))
        figure = layer_curves(series, kind=_kinds([table])[0], span=span, percent=percent)
        if figure is not None:
            curves.append((column, title, aside, figure))
    draw(curves, "depth")
