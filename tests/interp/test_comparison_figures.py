"""The figures of a comparison: what is drawn, in which colour, with which label, and what a click brings back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from interp.figures import STATES, Series, layer_curves, survival_bars, survival_scatter
from interp.figures.style import GREY

BAD = "<script>alert(1)</script>"


def layers(values, kind: str = "resid_post") -> pa.Table:
    n = len(values)
    return pa.table({"site": [f"{kind}.{i}" for i in range(n)], "layer": range(n), "kind": [kind] * n, "v": values})


def latents(**columns) -> pa.Table:
    base = {
        "latent": [3, 5, 8, 9, 11],
        "density_a": [0.01, 0.1, 0.001, 0.0, 0.02],
        "peak_a": [1.0, 2.0, 3.0, None, 5.0],
        "r": [0.95, 0.6, 0.1, 0.0, None],
        "state": ["kept", "blurred", "lost", "new", "rare"],
    }
    return pa.table(base | columns)


def test_a_line_goes_through_the_layers_in_their_order() -> None:
    table = layers([0.1, 0.3, 0.2]).take([2, 0, 1])
    figure = layer_curves([Series("b", table, "v")])
    assert figure is not None
    assert list(figure.data[0].x) == [0, 1, 2]
    assert list(figure.data[0].y) == [0.1, 0.3, 0.2]
    assert [note.text for note in figure.layout.annotations] == ["b"]


def test_only_sites_of_the_kind_are_drawn_and_the_site_says_it_where_no_column_does() -> None:
    both = pa.concat_tables([layers([1.0, 2.0]), layers([5.0, 6.0], "mlp_out")])
    figure = layer_curves([Series("b", both, "v"), Series("c", both.drop_columns("kind"), "v")], kind="mlp_out")
    assert figure is not None
    assert [list(line.y) for line in figure.data] == [[5, 6], [5, 6]]
    assert layer_curves([Series("b", both, "v")], kind="attn_out") is None


def test_missing_values_and_on_a_log_scale_what_is_not_positive_are_left_out() -> None:
    table = layers([0.0, None, 0.2, float("nan"), 0.4])
    plain, log = layer_curves([Series("b", table, "v")]), layer_curves([Series("b", table, "v")], log=True)
    assert plain is not None
    assert log is not None
    assert list(plain.data[0].x) == [0, 2, 4]
    assert list(log.data[0].x) == [2, 4]
    assert log.layout.yaxis.type == "log"
    assert layer_curves([Series("b", layers([0.0, 0.0]), "v")], log=True) is None


def test_nulls_are_grey_and_a_line_keeps_its_colour_where_another_is_missing() -> None:
    table = layers([1.0, 2.0])
    full = layer_curves([Series(n, table, "v") for n in "abc"] + [Series("noise", table, "v", null=True)])
    part = layer_curves([Series("a", None, "v"), Series("b", table, "v"), Series("c", table, "v")])
    assert full is not None
    assert part is not None
    colours = [line.line.color for line in full.data]
    assert len(set(colours)) == 4
    assert colours[3] == GREY
    assert [line.line.color for line in part.data] == colours[1:3]


@pytest.mark.parametrize("n", [2, 5, 8])
def test_labels_of_lines_that_end_together_stand_apart_and_inside(n) -> None:
    figure = layer_curves([Series(f"line {i}", layers([0.0, 1.0 + i * 1e-6]), "v") for i in range(n)], height=200)
    assert figure is not None
    places = sorted(note.y for note in figure.layout.annotations)
    low, high = figure.layout.yaxis.range
    assert len(places) == n
    assert min(np.diff(places)) * 140 / (high - low) >= 12.9  # pixels
    assert places[-1] <= high


def test_text_is_no_markup_and_long_labels_are_cut() -> None:
    figure = layer_curves([Series(BAD * 3, layers([1.0, 2.0]), "v")])
    assert figure is not None
    drawn = [figure.data[0].name, figure.data[0].text[0], figure.layout.annotations[0].text]
    assert not any("<script" in text for text in drawn)
    assert drawn[2].endswith("…")
    bars = survival_bars([(BAD, {"kept": 3})])
    points = survival_scatter(latents(), hover=[BAD] * 5)
    drawn = [*bars.layout.yaxis.ticktext, bars.data[0].customdata[0][0], *(t for d in points.data for t in d.text)]
    assert not any("<script" in text for text in drawn)


def test_figures_of_a_row_share_the_axis_of_layers() -> None:
    figure = layer_curves([Series("b", layers([1.0, 2.0]), "v")], span=12)
    assert figure is not None
    assert list(figure.layout.xaxis.range) == [-0.3, 11.3]


def test_a_constant_has_a_scale_and_a_column_that_is_not_there_is_refused() -> None:
    figure = layer_curves([Series("b", layers([1.0, 1.0]), "v")])
    assert figure is not None
    low, high = figure.layout.yaxis.range
    assert low < 1 < high
    with pytest.raises(ValueError, match="b has no column 'w'. There are: site, layer, kind, v"):
        layer_curves([Series("b", layers([1.0]), "w")])


def test_bars_add_up_to_the_active_features_and_new_ones_lie_beyond() -> None:
    figure = survival_bars([("x", {"kept": 6, "blurred": 3, "lost": 1, "new": 2}), ("none", {})], muted=[False, True])
    shares = {bar.name: bar.x[0] for bar in figure.data}
    assert shares == {"kept": 0.6, "blurred": 0.3, "lost": 0.1, "new": 0.2}
    assert [bar.name for bar in figure.data] == ["kept", "blurred", "lost", "new"]
    assert figure.data[0].marker.opacity == (1.0, 0.5)
    assert all(bar.x[1] == 0 for bar in figure.data)
    assert list(figure.layout.yaxis.range) == [1.5, -0.5]  # the first on top


def test_points_have_the_colour_of_their_state_and_say_which_feature_they_are() -> None:
    figure = survival_scatter(latents())
    found = {trace.name.split(",")[0]: trace for trace in figure.data}
    assert set(found) == {"kept", "blurred", "lost"}  # a new one has no density in a, a rare one here no r
    for name, trace in found.items():
        assert (trace.marker.color, trace.marker.symbol) == STATES[name][:2]
    assert list(found["lost"].customdata) == [[8]]
    assert isinstance(found["lost"].customdata[0], list | tuple)
    low, high = figure.layout.xaxis.range
    assert all(low <= np.log10(x) <= high for trace in figure.data for x in trace.x)


def test_the_scatter_can_be_filtered_and_turned_to_the_peak() -> None:
    figure = survival_scatter(latents(), "peak_a", shown=np.array([True, False, True, True, True]))
    assert [list(trace.x) for trace in figure.data] == [[1.0], [3.0]]
    with pytest.raises(ValueError, match="against must be a column of the table, got 'age'"):
        survival_scatter(latents(), "age")


def test_nothing_to_draw_is_an_empty_figure() -> None:
    figure = survival_scatter(latents(r=pa.array([None] * 5, pa.float64())))
    assert not figure.data
    assert figure.layout.xaxis.range is not None


def test_many_features_are_left_to_webgl() -> None:
    n = 4000
    table = pa.table({"latent": range(n), "density_a": np.full(n, 0.1), "r": np.ones(n), "state": ["kept"] * n})
    assert survival_scatter(table).data[0].type == "scattergl"
