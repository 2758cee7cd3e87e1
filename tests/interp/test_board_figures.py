"""Boards as a figure: discs where they are, as large and as grey as they are likely."""

from __future__ import annotations

import numpy as np
import pytest

from interp.figures import board_figure


def test_discs_sizes_and_greys_follow_the_probabilities() -> None:
    boards = np.zeros((2, 16, 3))
    boards[:, :, 0] = 1.0
    boards[0, 5] = [0, 1, 0]
    boards[0, 6] = [0, 0, 1]
    boards[1, 3] = [0.75, 0.125, 0.125]
    wrong = np.zeros((2, 16), dtype=bool)
    wrong[1, 3] = True
    fig = board_figure(boards, ["one", "<b>two</b>"], wrong=wrong, square=20)
    first, second = fig.data
    size = np.array(first.marker.size)
    assert size[[5, 6]] == pytest.approx([16.0, 16.0])
    assert size[[0, 1]] == pytest.approx([0.0, 0.0])
    assert first.marker.color[5] == "rgb(32,32,32)"
    assert first.marker.color[6] == "rgb(255,255,255)"
    assert np.array(second.marker.size)[3] == pytest.approx(16.0 * 0.5)  # a quarter of the area
    assert (first.x[5] - first.x[0], first.y[5] - first.y[0]) == (1, -1)
    assert first.text[6] == "c2"
    frames = [shape for shape in fig.layout.shapes if shape.line.color == "#D55E00"]
    assert [(frame.x0, frame.y1) for frame in frames] == [pytest.approx((5.4 + 3.06, -0.06))]
    assert [note.text for note in fig.layout.annotations] == ["one", "&lt;b>two&lt;/b>"]


def test_more_than_six_stand_in_rows() -> None:
    boards = np.zeros((7, 16, 3))
    boards[:, :, 0] = 1.0
    fig = board_figure(boards, list("abcdefg"))
    assert fig.data[6].x[0] == fig.data[0].x[0]
    assert fig.data[6].y[0] < fig.data[0].y[0]


def test_what_is_no_board_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[1, 15, 3\]"):
        board_figure(np.zeros((1, 15, 3)), ["a"])
    with pytest.raises(ValueError, match="2 titles"):
        board_figure(np.zeros((1, 16, 3)), ["a", "b"])
