"""Figures: what is drawn, where, and what a click or a hover brings back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from interp.figures import METRICS, activation_histogram, density_scatter, ticks, training_curves

EDGES = np.geomspace(0.1, 10, 21)


def table(n: int = 50) -> pa.Table:
    rng = np.random.default_rng(0)
    density = rng.uniform(1e-4, 0.05, n)
    density[0], density[1] = 0.0, 0.4
    top = rng.uniform(1, 9, n).astype(np.float32)
    return pa.table(
        {"latent": pa.array(range(n), pa.int32()), "density": density, "max": pa.array(top, mask=density == 0)}
    )


def test_the_histogram_draws_every_count_between_its_edges() -> None:
    counts = np.arange(20)
    bars = activation_histogram(counts, EDGES).data[0]
    assert list(bars.y) == list(range(1, 20))  # empty bins at the ends are left out
    left = np.array(bars.x) - np.array(bars.width) / 2
    right = np.array(bars.x) + np.array(bars.width) / 2
    assert (np.log10(EDGES[1:-1]) <= left + 1e-9).all()
    assert (right <= np.log10(EDGES[2:]) + 1e-9).all()


def test_the_marker_stands_at_its_value_and_the_axis_reaches_it() -> None:
    figure = activation_histogram(np.ones(20, np.int64), EDGES, marker=30.0, marker_label="<b>me")
    assert figure.layout.shapes[0].x0 == pytest.approx(np.log10(30))
    assert figure.layout.xaxis.range[1] > np.log10(30)
    assert figure.layout.annotations[0].text == "&lt;b&gt;me"
    assert not activation_histogram(np.ones(20, np.int64), EDGES).layout.shapes


def test_an_empty_histogram_is_drawn() -> None:
    assert activation_histogram(np.zeros(20, np.int64), EDGES).data[0].y.sum() == 0


def test_negative_activations_stand_mirrored_on_the_left() -> None:
    counts = np.full(20, 10)
    below = np.where(np.arange(20) < 5, 4, 0)
    left, right = activation_histogram(counts, EDGES, negative=below).data
    assert list(left.y) == list(below)
    assert list(right.y) == list(counts - below)
    assert np.array(left.x) == pytest.approx(-np.array(right.x))
    assert max(left.x) < 0 < min(right.x)
    assert left.marker.color != right.marker.color
    assert left.customdata[0].startswith("-0.1 to -0.126")


def test_a_marker_stands_on_the_side_of_its_sign() -> None:
    figures = [activation_histogram(np.full(20, 2), EDGES, negative=np.ones(20, int), marker=v) for v in (3.0, -3.0)]
    places = [figure.layout.shapes[0].x0 for figure in figures]
    assert places[0] == pytest.approx(-places[1])
    assert places[0] > 0
    one_sided = activation_histogram(np.full(20, 2), EDGES, negative=np.zeros(20, int), marker=3.0)
    assert len(one_sided.data) == 1
    assert one_sided.layout.shapes[0].x0 == pytest.approx(np.log10(3))


def test_negative_counts_beyond_the_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="negative must be a part of counts"):
        activation_histogram(np.ones(20, np.int64), EDGES, negative=np.full(20, 2))


@pytest.mark.parametrize(
    "edges", [EDGES[:-1], EDGES[::-1].copy(), np.concatenate([[0.0], EDGES[1:]])], ids=["short", "falling", "zero"]
)
def test_edges_that_are_none_are_refused(edges) -> None:
    with pytest.raises(ValueError, match="growing positive edges, one more than counts, got"):
        activation_histogram(np.ones(20, np.int64), edges)


def test_the_scatter_leaves_the_dead_out_and_tells_dense_apart() -> None:
    figure = density_scatter(table())
    sparse, dense = figure.data
    drawn = [row[0] for trace in figure.data for row in trace.customdata]
    assert sorted(drawn) == list(range(1, 50))
    assert [row[0] for row in dense.customdata] == [1]
    assert sparse.marker.symbol != dense.marker.symbol
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.clickmode == "event+select"


def test_what_is_not_shown_is_faint_and_answers_no_click() -> None:
    shown = np.zeros(50, bool)
    shown[[7, 9]] = True
    faint, colour = density_scatter(table(), shown=shown).data
    assert len(faint.x) == 47
    assert faint.hoverinfo == "skip"
    assert faint.customdata is None
    assert [row[0] for row in colour.customdata] == [7, 9]


def test_hover_text_is_no_markup() -> None:
    hover = ['<script>alert("1")</script>'] * 50
    traces = density_scatter(table(), hover=hover).data
    assert all(text == '&lt;script&gt;alert("1")&lt;/script&gt;' for trace in traces for text in trace.text)


def test_an_unknown_metric_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="got 'maxx'. There are: latent, density, max"):
        density_scatter(table(), "maxx")


def test_a_table_of_dead_latents_is_drawn() -> None:
    dead = pa.table(
        {"latent": pa.array([0, 1], pa.int32()), "density": [0.0, 0.0], "max": pa.array([None, None], pa.float32())}
    )
    assert len(density_scatter(dead).data) == 0


def test_many_points_are_left_to_webgl() -> None:
    assert density_scatter(table(200)).data[0].type == "scatter"
    assert density_scatter(table(6000)).data[0].type == "scattergl"


def test_training_curves_have_one_panel_for_each_metric_there_is() -> None:
    rows = [{"step": i, "tokens": 100 * i, "fvu": 1 / (i + 1), "l0": None if i == 2 else 32} for i in range(5)]
    figure = training_curves(rows, ("fvu", "l0", "dead_share"))
    assert [list(trace.x) for trace in figure.data] == [[0, 100, 200, 300, 400], [0, 100, 300, 400]]
    assert [note.text for note in figure.layout.annotations] == ["FVU", "L0"]
    assert len(training_curves([]).data) == 0


@pytest.mark.parametrize(("low", "high"), [(0.05, 20), (0.9, 1.2), (1e-5, 1), (3, 4), (1.1, 1.9)])
def test_ticks_lie_inside_and_are_few(low, high) -> None:
    found = ticks(low, high)
    assert all(low <= tick <= high for tick in found)
    assert len(found) <= 7


def test_every_metric_has_an_axis_title() -> None:
    assert density_scatter(table(), "max").layout.yaxis.title.text == METRICS["max"]
