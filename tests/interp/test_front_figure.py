"""Sparsity against quality: what is a point, what is a line, and what lies on the front."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from interp.figures import pareto


def row(rule: str, l0: float, value: float, **more: Any) -> dict[str, Any]:
    usual = {"run": f"evaluation/{rule}-{l0}-{value}", "sae_run": f"sae/{rule}-{l0}-{value}", "rule": rule, "l0": l0}
    usual |= {"variant": "", "args": f"k {l0:g}", "d_sae": 64, "trained": 1000, "repeat": f"{rule}{l0}"}
    return usual | {"fvu": value, "ce_recovered_mean": 1 - value, "dead_share": 0.5} | more


ROWS = [
    row("topk", 4, 0.40),
    row("topk", 4, 0.44, seed=1),
    row("topk", 16, 0.20),
    row("batch_topk", 8, 0.50),
    row("batch_topk", 32, 0.10),
]


def traces(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_a_rule_is_a_line_and_repeats_are_a_point_with_their_range() -> None:
    found = traces(pareto(pa.Table.from_pylist(ROWS)))
    assert list(found) == ["front", "batch_topk", "topk"]
    assert list(found["topk"].x) == [4, 16]
    assert list(found["topk"].y) == pytest.approx([0.42, 0.20])
    assert list(found["topk"].error_y.array) == pytest.approx([0.02, 0])
    assert list(found["topk"].error_y.arrayminus) == pytest.approx([0.02, 0])
    assert not found["batch_topk"].error_y.visible
    assert found["topk"].customdata[1][0] == "sae/topk-16-0.2"
    assert "0.42 (0.4 to 0.44, 2 seeds)" in found["topk"].text[0]
    assert found["topk"].marker.symbol[0] != found["batch_topk"].marker.symbol[0]
    assert found["topk"].marker.color != found["batch_topk"].marker.color


@pytest.mark.parametrize("metric", ["fvu", "ce_recovered_mean"])
def test_the_front_is_what_no_sparser_point_beats(metric: str) -> None:
    rng = np.random.default_rng(3)
    rows = [row("topk", float(l0), (1 + rng.random()) / (l0 + 3)) for l0 in rng.permutation(30) + 1]
    front = traces(pareto(pa.Table.from_pylist(rows), metric))["front"]
    sign = 1 if metric == "fvu" else -1
    expected = [
        (one["l0"], one[metric])
        for one in sorted(rows, key=lambda one: one["l0"])
        if all(sign * other[metric] > sign * one[metric] for other in rows if other["l0"] < one["l0"])
    ]
    assert 3 < len(expected) < 30
    np.testing.assert_allclose([front.x, front.y], np.array(expected).T)


def test_another_size_kind_or_training_is_another_line() -> None:
    more = [row("topk", 8, 0.3, d_sae=128), row("topk", 8, 0.3, variant="batch"), row("topk", 8, 0.3, trained=9000)]
    more = [one | {"repeat": str(i)} for i, one in enumerate(more)]
    found = traces(pareto(pa.Table.from_pylist([*ROWS, *more])))
    names = ["topk, 64 latents, 1k tokens", "topk, 128 latents, 1k tokens", "topk (batch), 64 latents, 1k tokens"]
    assert {*names, "topk, 64 latents, 9k tokens"} <= set(found)
    own = [trace for name, trace in found.items() if name.startswith("topk")]
    assert len({trace.line.color for trace in own}) == 1
    assert len({trace.line.dash for trace in own}) == 4


def test_what_was_not_evaluated_is_hollow() -> None:
    rows = [*ROWS, row("topk", 64, 0.05, run="sae/x")]
    found = traces(pareto(pa.Table.from_pylist(rows)))["topk"]
    assert [symbol.endswith("-open") for symbol in found.marker.symbol] == [False, False, True]
    assert "not evaluated" in found.text[2]


def test_a_rule_keeps_its_colour_when_others_are_missing() -> None:
    order = ["batch_topk", "topk"]
    both = traces(pareto(pa.Table.from_pylist(ROWS), rules=order))["topk"]
    alone = traces(pareto(pa.Table.from_pylist(ROWS[:3]), rules=order))["topk"]
    assert both.marker.color == alone.marker.color


def test_rows_without_a_place_are_left_out_and_the_axes_hold_the_rest() -> None:
    rows = [*ROWS, row("relu", 0.0, 0.9), row("relu", 5, float("nan")), row("gated", 6, 0.3, fvu=None)]
    figure = pareto(pa.Table.from_pylist(rows), at=10.0)
    assert {trace.name for trace in figure.data} == {"front", "topk", "batch_topk"}
    low, high = figure.layout.xaxis.range
    assert low < np.log10(4) < np.log10(32) < high
    assert figure.layout.yaxis.range[0] < 0.10 < 0.50 < figure.layout.yaxis.range[1]
    assert figure.layout.shapes[0].x0 == 10.0


def test_text_of_a_run_is_no_markup() -> None:
    figure = pareto(pa.Table.from_pylist([row("<b>x", 4, 0.3, args="<i>k")]))
    assert figure.data[0].name == "&lt;b&gt;x"
    assert "&lt;i&gt;k" in figure.data[0].text[0]


def test_an_empty_table_and_a_missing_column() -> None:
    empty = pa.Table.from_pylist(ROWS).slice(0, 0)
    assert not pareto(empty).data
    with pytest.raises(ValueError, match="must have a column 'kl'"):
        pareto(pa.Table.from_pylist(ROWS), "kl")
