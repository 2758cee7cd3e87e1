"""The heat map figure: what is drawn where, what a click brings back, which labels are written."""

from __future__ import annotations

import numpy as np
import pytest

from interp.figures import heat_map


def made(rows: int, columns: int, **options):
    values = np.random.default_rng(0).normal(size=(rows, columns))
    labels = [f"row {i}" for i in range(rows)], [f"c{i}" for i in range(columns)]
    return values, heat_map(values, *labels, **options)


def test_every_cell_is_coloured_and_can_be_clicked() -> None:
    values, figure = made(6, 10)
    colours, points = figure.data
    np.testing.assert_array_equal(colours.z, values)
    assert colours.hoverinfo == "skip"  # a heat map that answers hovering takes the clicks, and reports none
    assert [list(data) for data in points.customdata] == [[r, c] for r in range(6) for c in range(10)]
    assert [(y, x) for x, y in zip(points.x, points.y, strict=True)] == [(r, c) for r, c in points.customdata]
    assert points.marker.opacity == points.selected.marker.opacity == points.unselected.marker.opacity == 0
    assert isinstance(points.customdata[0], list | tuple)  # an array comes back from the browser as an object
    assert figure.layout.clickmode == "event+select"
    assert figure.layout.dragmode is False
    assert figure.layout.hoverdistance == -1


def test_the_nearest_point_answers_anywhere_in_a_cell() -> None:
    """Points of Plotly compete by distance only beyond their radius, so it has to be small."""
    assert made(6, 10)[1].data[1].marker.size <= 6


def test_the_first_row_is_on_top_and_the_axes_end_at_the_cells() -> None:
    layout = made(6, 10)[1].layout
    assert list(layout.yaxis.range) == [5.5, -0.5]
    assert list(layout.xaxis.range) == [-0.5, 9.5]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (6, 10), (48, 128), (200, 700)])
def test_labels_are_as_many_as_can_be_read(rows, columns) -> None:
    figure = made(rows, columns)[1]
    across, down = figure.layout.xaxis, figure.layout.yaxis
    assert 1 <= len(across.ticktext) <= 40
    assert [f"c{i}" for i in across.tickvals] == list(across.ticktext)
    assert [f"row {i}" for i in down.tickvals] == list(down.ticktext)
    pixels = (figure.layout.height - 84) / len(down.ticktext)
    assert pixels >= 11
    assert figure.layout.height <= 1000
    if rows <= 48:
        assert len(down.ticktext) == rows
    if columns <= 40:
        assert len(across.ticktext) == columns


def test_a_signed_scale_is_centred_at_nought() -> None:
    values, figure = made(6, 10, signed=True)
    colours = figure.data[0]
    assert colours.zmax == -colours.zmin == np.abs(values).max()
    middle = next(color for at, color in colours.colorscale if at == 0.5)
    assert middle.lower() == "#ffffff"


def test_an_unsigned_scale_begins_at_nought() -> None:
    figure = heat_map([[2.0, 8.0]], ["r"], ["a", "b"])
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0, 8)
    assert heat_map([[2.0, 8.0]], ["r"], ["a", "b"], limit=4.0).data[0].zmax == 4
    assert heat_map([[-1.0, 8.0]], ["r"], ["a", "b"]).data[0].zmin == -1


@pytest.mark.parametrize("value", [0.0, np.nan, -3.0])
@pytest.mark.parametrize("signed", [True, False])
def test_a_map_of_one_value_has_a_scale(value, signed) -> None:
    colours = heat_map([[value]], ["r"], ["c"], signed=signed).data[0]
    assert colours.zmax > colours.zmin


def test_what_is_missing_says_so() -> None:
    figure = heat_map([[np.nan, 1.0]], ["r"], ["a", "b"], titles=("", "", "loss"))
    assert [text.split("<br>")[1] for text in figure.data[1].text] == ["loss –", "loss 1"]


def test_text_is_no_markup_and_long_labels_are_cut() -> None:
    bad = "<script>alert(1)</script>" * 4
    figure = heat_map([[1.0]], [bad], [bad], titles=(bad, bad, bad), hover=[[bad]])
    texts = [*figure.layout.xaxis.ticktext, *figure.layout.yaxis.ticktext, *figure.data[1].text]
    texts += [figure.layout.xaxis.title.text, figure.layout.yaxis.title.text]
    assert all("<script" not in text for text in texts)
    assert figure.layout.xaxis.ticktext[0].endswith("…")
    assert "<script" not in (figure.data[0].colorbar.title.text or "")


def test_the_selected_cell_is_framed() -> None:
    shapes = made(6, 10, selected=(2, 7))[1].layout.shapes
    assert {(s.x0, s.x1, s.y0, s.y1) for s in shapes} == {(6.5, 7.5, 1.5, 2.5)}
    assert not made(6, 10)[1].layout.shapes


def test_many_cells_are_left_to_webgl() -> None:
    assert made(6, 10)[1].data[1].type == "scatter"
    assert made(48, 128)[1].data[1].type == "scattergl"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values \[rows columns\] = \[2, 1\], not empty, got \[1, 1\]"):
        heat_map([[1.0]], ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="not empty"):
        heat_map(np.zeros((0, 0)), [], [])
    with pytest.raises(ValueError, match="one line for each of the 1 x 1 cells"):
        heat_map([[1.0]], ["a"], ["c"], hover=[["x", "y"]])
    with pytest.raises(ValueError, match=r"within 1 rows and 1 columns, got \(0, 1\)"):
        heat_map([[1.0]], ["a"], ["c"], selected=(0, 1))
