"""The panel layers of a comparison as small figures."""

from __future__ import annotations

import math

import pyarrow as pa

from app.widgets.layer_panel import multiples_of


def test_each_measure_has_the_lines_of_both_models() -> None:
    place = {"family": "stream", "measure": "norm"}
    rows = [
        {**place, "part": part, "layer": layer, "value_a": 1.0 + layer, "low_a": None, "high_a": None,
         "value_b": 2.0 + layer if layer < 2 else None, "low_b": 1.5, "high_b": 2.5}
        for part in ("mean", "95%")
        for layer in (2, 0, 1)
    ]  # fmt: skip
    rows.append(rows[0] | {"family": "geometry", "measure": "rank", "part": ""})
    titles = [
        {"family": "stream", "measure": "norm", "label": "norm of the stream", "unit": "length", "note": "It grows."},
        {"family": "stream", "measure": "none", "label": "not measured", "unit": "", "note": ""},
        {"family": "geometry", "measure": "rank", "label": "rank", "unit": "", "note": ""},
    ]
    (found,) = multiples_of(pa.Table.from_pylist(rows), pa.Table.from_pylist(titles), "stream")
    assert (found.title, found.unit, found.note) == ("norm of the stream", "length", "It grows.")
    assert [(line.part, line.model) for line in found.lines] == [("mean", 0), ("95%", 0), ("mean", 1), ("95%", 1)]
    a, b = found.lines[0], found.lines[2]
    assert (list(a.layers), list(a.values)) == ([0, 1, 2], [1.0, 2.0, 3.0])
    assert math.isnan(b.values[2])
    assert list(b.low) == [1.5] * 3
