"""Where a mark lies over a chart."""

from __future__ import annotations

import pytest

from app.widgets.mark import cell_spot, point_spot
from interp.figures.style import figure


def test_a_cell_is_its_share_of_the_map() -> None:
    spot = cell_spot((1, 2), (4, 5))
    assert (spot.x0, spot.x1, spot.y0, spot.y1, spot.round) == (0.4, 0.6, 0.25, 0.5, False)


def test_a_point_lies_by_the_ranges_of_the_axes_logarithms_included() -> None:
    fig = figure(100)
    fig.update_xaxes(type="log", range=[-3, 1])
    fig.update_yaxes(range=[-1, 1])
    spot = point_spot(fig, 0.1, 0.5)
    assert spot is not None
    assert (spot.x0, spot.y0) == pytest.approx((0.5, 0.25))
    assert spot.round


def test_a_point_outside_of_the_axes_has_no_mark() -> None:
    fig = figure(100)
    fig.update_xaxes(range=[0, 1])
    fig.update_yaxes(range=[0, 1])
    assert point_spot(fig, 2.0, 0.5) is None
    assert point_spot(fig, 0.5, -0.1) is None
