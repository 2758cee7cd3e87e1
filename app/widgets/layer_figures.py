"""The figures of the Layers page: small multiples of each family, matrices layer by layer, tables of the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from numpy.typing import NDArray

from app.widgets import frame
from app.widgets.artefacts import readable
from app.widgets.profiles import Shown
from app.widgets.text import number, safe
from interp.figures import heat_map, layer_multiples
from interp.layers.result import Measure, curves, multiples

COLUMNS = 4
ABOUT = {
    "stream": "what attention and MLP add to the residual stream",
    "geometry": "the shape of the cloud of activations",
    "similarity": "each layer against the one before",
    "depth": "what later layers and the output lose without a block",
    "importance": "which blocks matter, by many measures",
    "lens": "what the model would predict if it stopped here",
    "attention": "what heads look at",
    "spectra": "spectra of the weights",
    "coding": "coding rates and sparsity",
    "gradients": "gradients of the loss by each block's matrices",
    "readout": "weights and contributions read as tokens",
    "selective": "components that serve one task and not another",
}
"""Family -> what it is about, in a few words; others are shown without."""
MATRICES = {
    "similarity": ("pairs", "layer_a", "layer_b", ("cka", "procrustes", "knn"), "",
                   "how alike every two layers are; -1 is the embeddings"),
    "depth": ("skips", "skipped", "affected", ("mean", "p95", "max"), "way",
              "change of what each later block adds, without the block of the row"),
}  # fmt: skip
"""Family -> (table, rows, columns, values, which of them is chosen first, what it shows)."""


OVERVIEW = {
    "stream": ("share", "cosine"),
    "geometry": ("participation_ratio", "anisotropy"),
    "depth": ("later", "output"),
    "importance": ("skip_loss", "influence"),
    "lens": ("kl", "agreement"),
    "attention": ("entropy", "induction"),
    "coding": ("rate", "active"),
    "readout": ("dla", "neuron_share"),
}
"""Family -> the measures that the overview shows; of others the first."""
ALL = "overview"


@st.cache_data(max_entries=96, show_spinner=False)
def _figure(key: tuple[str, int, str, int], family: str, _shown: Sequence[Shown]) -> go.Figure:  # noqa: ARG001
    profiles = [one.profile for one in _shown]
    if family != ALL:
        found = multiples(profiles, [family])
    else:
        found = []
        for name in known_families(_shown):
            wanted = OVERVIEW.get(name) or tuple(measure.name for measure in measures_of(_shown, name)[:1])
            found += [replace(one, group=ALL) for one in multiples(profiles, [name], wanted)]
    return layer_multiples(found, [one.label for one in _shown], columns=COLUMNS, headings=False)


def family_figure(shown: Sequence[Shown], family: str) -> go.Figure:
    """Return the small multiples of a family, or of `ALL` the overview, made once for each pair of runs."""
    a, b = shown[0], shown[-1]
    return _figure((str(a.run.path), a.modified, str(b.run.path), b.modified), family, list(shown))


def known_families(shown: Sequence[Shown]) -> list[str]:
    """Return the families of any of the profiles, in order."""
    return list(dict.fromkeys(name for one in shown for name in one.profile.parts))


def measures_of(shown: Sequence[Shown], family: str) -> list[Measure]:
    """Return the measures of a family, those of any of the profiles."""
    found: dict[str, Measure] = {}
    for one in shown:
        if family in one.profile.parts:
            found |= {measure.name: measure for measure in one.profile.parts[family].measures}
    return list(found.values())


def family_table(shown: Sequence[Shown], family: str, layer: int) -> None:
    """Draw every value of a family, a row for each measure and part, a column for each layer, with what it means."""
    for letter, one in zip("ab", shown, strict=False):
        if family not in one.profile.parts:
            continue
        table = one.profile.parts[family].result.layers
        layers = sorted({int(at) for at in table["layer"].to_pylist()})
        heads = "".join(
            f'<th class="n{" on" if at == layer else ""}">{at if at >= 0 else "emb."}</th>' for at in layers
        )
        start = f"{letter}: {one.label}" if len(shown) > 1 else ""
        rows = [f'<tr><th title="">{safe(start)}</th><th></th>{heads}</tr>']
        for measure in measures_of([one], family):
            for part, (at, values, _, _) in curves(table, measure.name).items():
                held = dict(zip(at, values, strict=True))
                cells = "".join(
                    f'<td class="n{" on" if place == layer else ""}">{_number(held.get(place))}</td>'
                    for place in layers
                )
                unit = f" <span class='dim'>{safe(measure.unit)}</span>" if measure.unit else ""
                rows.append(
                    f'<tr><td title="{safe(measure.note)}">{safe(measure.label)}{unit}</td><td class="k">{safe(part)}'
                    f"</td>{cells}</tr>"
                )
        st.html(f'<div class="ms-scroll"><table class="ms-table ms-wide ms-layers">{"".join(rows)}</table></div>')


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else number(value)


def at_layer(shown: Sequence[Shown], families: Sequence[str], layer: int) -> None:
    """Draw what every measure says at one layer, in both models; of models of different depth, at the same depth."""
    depths = [one.profile.n_layers for one in shown]
    places = [layer] + [max(-1, round((layer + 1) / depths[0] * n) - 1) for n in depths[1:]]
    heads = "".join(
        f'<th class="n">{safe(_head(one, at, len(shown)))}</th>' for one, at in zip(shown, places, strict=True)
    )
    cells = []
    for family in families:
        for measure in measures_of(shown, family):
            found = [
                {part: dict(zip(at, values, strict=True)) for part, (at, values, _, _) in
                 curves(one.profile.parts[family].result.layers, measure.name).items()}
                if family in one.profile.parts else {}
                for one in shown
            ]  # fmt: skip
            for part in dict.fromkeys(part for one in found for part in one):
                values = [one.get(part, {}).get(at) for one, at in zip(found, places, strict=True)]
                if any(value is not None for value in values):
                    written = "".join(f'<td class="n">{_number(value)}</td>' for value in values)
                    cells.append(
                        f'<tr><td class="k">{safe(family)}</td><td title="{safe(measure.note)}">{safe(measure.label)}'
                        f'</td><td class="k">{safe(part)}</td>{written}<td class="d">{safe(measure.unit)}</td></tr>'
                    )
    head = f"<tr><th>family</th><th>measure</th><th>part</th>{heads}<th></th></tr>"
    st.html(f'<div class="ms-scroll"><table class="ms-table ms-narrow ms-layers">{head}{"".join(cells)}</table></div>')


def _head(one: Shown, layer: int, n: int) -> str:
    return f"{one.label}, layer {layer}" if n > 1 else f"layer {layer}"


def matrix(shown: Sequence[Shown], family: str) -> None:
    """Draw the family's table of pairs of layers as a map for each model, where there is one."""
    if family not in MATRICES:
        return
    name, row, column, values, choice, what = MATRICES[family]
    held = [(one, one.profile.parts[family].result.tables.get(name)) for one in shown if family in one.profile.parts]
    held = [(one, table) for one, table in held if table is not None and table.num_rows]
    if not held:
        return
    frame.heading("Every two layers" if family == "similarity" else "Block by block", what)
    with readable(), st.container(horizontal=True, gap="medium"):
        there = [value for value in values if value in held[0][1].column_names]
        value = st.segmented_control(
            "Value", there, default=there[0], required=True, key=f"{family}-value", label_visibility="collapsed"
        )
        chosen = None
        if choice and choice in held[0][1].column_names:
            ways = list(dict.fromkeys(held[0][1][choice].to_pylist()))
            chosen = st.segmented_control(
                "Which", ways, default=ways[0], required=True, key=f"{family}-which", label_visibility="collapsed"
            )
    with st.container(key=f"split-curves-{family}"):
        places = st.columns(max(2, len(held)), gap="medium")
    for i, (place, (one, table)) in enumerate(zip(places, held, strict=False)):
        with place, st.container(gap=None), readable():
            rows = [r for r in table.to_pylist() if chosen is None or r[choice] == chosen]
            down, across, grid = _grid(rows, row, column, str(value))
            st.html(f'<p class="ms-curve">{safe(value)}<span>{safe(one.label)}</span></p>')
            figure = heat_map(
                grid, [str(at) for at in down], [str(at) for at in across], titles=(row.replace("_", " "),
                column.replace("_", " "), str(value)), signed=bool(np.nanmin(grid, initial=0.0) < -0.05),
            )  # fmt: skip
            frame.chart(figure, key=f"{family}-matrix-{i}", alt=f"{value} of {row} and {column}")


def _grid(rows: Sequence[Any], row: str, column: str, value: str) -> tuple[list[int], list[int], NDArray[np.float64]]:
    down, across = (sorted({int(one[key]) for one in rows}) for key in (row, column))
    grid = np.full((len(down), len(across)), np.nan)
    for one in rows:
        grid[down.index(int(one[row])), across.index(int(one[column]))] = np.nan if one[value] is None else one[value]
    return down, across, grid


__all__ = ["ABOUT", "ALL", "at_layer", "family_figure", "family_table", "known_families", "matrix", "measures_of"]
