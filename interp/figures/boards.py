"""Othello boards side by side, from probabilities: a disc's size is how likely it is there, its grey how likely white.

A board that is known is a board of probabilities 0 and 1. Squares that are marked as wrong have a frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from interp.figures.style import FAINT, ORANGE, figure

SQUARE, EDGE, DARK, LIGHT = "#dfe9e1", "#b9cabf", 32, 255
_ROW = 6
"""Boards in a row."""
_GAP = 1.4
"""Between two boards, in squares."""


def board_figure(
    boards: Float[np.ndarray, "board square state"],
    titles: Sequence[str],
    *,
    wrong: Bool[np.ndarray, "board square"] | None = None,
    square: int = 26,
) -> go.Figure:
    """Return boards side by side, six in a row; hovering says the probabilities.

    Args:
        boards: probabilities of empty, black, white.
        titles: one for each board, plain text.
        wrong: squares to frame.
        square: pixels of a square.

    Raises:
        ValueError: a number of squares that is no square number, or not one title for each board.
    """
    n = round(boards.shape[1] ** 0.5)
    if n * n != boards.shape[1] or boards.shape[2] != 3 or len(titles) != len(boards):
        raise ValueError(
            f"boards must be [board, side x side squares, 3 states] with a title each, got {list(boards.shape)} and "
            f"{len(titles)} titles."
        )
    columns = min(_ROW, len(boards))
    step, rows = n + _GAP, -(-len(boards) // columns)
    fig = figure(int(square * rows * step) + 16, showlegend=False, hovermode="closest", dragmode=False)
    fig.update_layout(width=int(square * columns * step) + 16, margin={"l": 4, "r": 4, "t": 4, "b": 4})
    for index in range(len(boards)):
        left, top = (index % columns) * step, -(index // columns) * step
        _board(fig, boards[index], n, left, top, square)
        text = {"text": _plain(titles[index]), "showarrow": False, "xanchor": "left", "yanchor": "bottom"}
        fig.add_annotation(x=left, y=top, font={"size": 12, "color": FAINT}, **text)
        for one in [] if wrong is None else np.flatnonzero(wrong[index]):
            x, y = left + one % n, top - one // n
            corners = {"x0": x + 0.06, "x1": x + 0.94, "y0": y - 0.94, "y1": y - 0.06}
            fig.add_shape(type="rect", line={"color": ORANGE, "width": 2}, **corners)
    fig.update_xaxes(visible=False, range=[-0.1, columns * step], constrain="domain")
    fig.update_yaxes(visible=False, range=[-rows * step + 0.3, _GAP - 0.4], scaleanchor="x")
    return fig


def _board(
    fig: go.Figure, board: Float[np.ndarray, "square state"], n: int, left: float, top: float, size: int
) -> None:
    """Add the squares and discs of one board."""
    fig.add_shape(
        type="rect", x0=left, x1=left + n, y0=top - n, y1=top, fillcolor=SQUARE, layer="below",
        line={"color": EDGE, "width": 1},
    )  # fmt: skip
    for line in range(1, n):
        for ends in (
            {"x0": left + line, "x1": left + line, "y0": top - n, "y1": top},
            {"x0": left, "x1": left + n, "y0": top - line, "y1": top - line},
        ):
            fig.add_shape(type="line", layer="below", line={"color": EDGE, "width": 1}, **ends)
    place = np.arange(n * n)
    occupied = board[:, 1] + board[:, 2]
    white = board[:, 2] / np.maximum(occupied, 1e-9)
    grey = np.round(DARK + (LIGHT - DARK) * white).astype(int)
    fig.add_scatter(
        x=left + place % n + 0.5,
        y=top - place // n - 0.5,
        mode="markers",
        marker={
            "size": 0.8 * size * np.sqrt(np.clip(occupied, 0, 1)),
            "color": [f"rgb({one},{one},{one})" for one in grey],
            "line": {"width": 1, "color": "#4a5866"},
            "opacity": 1.0,
        },
        customdata=board,
        text=[f"{chr(97 + one % n)}{one // n + 1}" for one in place],
        hovertemplate="%{text}: empty %{customdata[0]:.2f}, black %{customdata[1]:.2f}, white %{customdata[2]:.2f}"
        "<extra></extra>",
    )


def _plain(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
