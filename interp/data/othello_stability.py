"""Stable discs of Othello: those that no continuation of the game can turn.

A disc is turned along one of four axes (row, column, two diagonals), by a line of discs that begins at an empty square.
So it is safe along an axis if the whole line is occupied, or if on one side there is the edge of the board or a disc of
its own colour that is stable itself. A disc that is safe along all four axes is stable:

    S <- {d : along each axis a, line a through d is full, or a neighbour of d on a is outside or in S with d's colour}

`fixpoint` repeats this from S = {} until nothing is added; what comes out does not depend on the order of squares, and
no stable disc is ever turned. It is a lower bound: what is safe only because nobody can play there is not found.

`altjs` is the heuristic of published labels ("How GPT learns layer by layer", arXiv 2501.07108), for comparison:
occupied corners, then one sweep over the edges in growing order (a neighbour along the edge is marked), then one over
the inner squares (all eight neighbours are marked), colours aside. One sweep depends on the order of the squares, and
marks a disc of the other colour beside a stable one, which may well be turned.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Bool, UInt64

from interp.data.othello import Boards, bits, check_side
from interp.names import unknown

METHODS = ("fixpoint", "altjs")
AXES = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Steps (row, column) along the four axes."""
Squares = Bool[np.ndarray, "*games square"]


def stable_discs(mine: Boards, theirs: Boards, side: int, method: str = "fixpoint") -> Squares:
    """Return which squares hold a stable disc, of either colour.

    Args:
        mine: discs of one side, any shape.
        theirs: discs of the other, of the same shape.
        side: squares along an edge.
        method: `fixpoint` or `altjs`.

    Raises:
        ValueError: an unknown method, or a square that both sides hold.
    """
    check_side(side)
    if method not in METHODS:
        raise ValueError(unknown("method", str(method), METHODS))
    if (mine & theirs).any():
        raise ValueError("A square is held by both sides; mine and theirs must not overlap.")
    if method == "altjs":
        return _altjs(bits(mine | theirs, side), side)
    ours, others = _fixpoint(mine, theirs, side)
    return ours | others


def _fixpoint(mine: Boards, theirs: Boards, side: int) -> tuple[Squares, Squares]:
    """Return the stable discs of each side."""
    shape = (*mine.shape, side, side)
    full = [_full_lines(mine | theirs, axis, side).reshape(shape) for axis in range(len(AXES))]
    found = []
    for held in (bits(mine, side).reshape(shape), bits(theirs, side).reshape(shape)):
        stable = np.zeros_like(held)
        while True:
            safe = held.copy()
            for axis, step in enumerate(AXES):
                safe &= full[axis] | _beside(stable, step, side) | _beside(stable, (-step[0], -step[1]), side)
            if (safe == stable).all():
                break
            stable = safe
        found.append(stable.reshape(*mine.shape, side * side))
    return found[0], found[1]


def _beside(stable: Bool[np.ndarray, "*games row column"], step: tuple[int, int], side: int) -> np.ndarray:
    """Return whether the neighbour one step away is stable or outside of the board."""
    around = np.pad(stable, [(0, 0)] * (stable.ndim - 2) + [(1, 1), (1, 1)], constant_values=True)
    return around[..., 1 + step[0] : 1 + step[0] + side, 1 + step[1] : 1 + step[1] + side]


def _full_lines(occupied: Boards, axis: int, side: int) -> Squares:
    """Return whether every square of the line along `axis` through each square is occupied."""
    lines = _lines(side)[axis]
    return (occupied[..., None] & lines) == lines


@cache
def _lines(side: int) -> UInt64[np.ndarray, "axis square"]:
    """Return the squares of the line along each axis through each square, as bits."""
    found = np.zeros((len(AXES), side * side), dtype=np.uint64)
    for axis, (down, right) in enumerate(AXES):
        for square in range(side * side):
            row, column = divmod(square, side)
            on = [(row + k * down, column + k * right) for k in range(-side, side + 1)]
            inside = [r * side + c for r, c in on if 0 <= r < side and 0 <= c < side]
            found[axis, square] = sum(1 << one for one in inside)
    return found


def _altjs(occupied: Squares, side: int) -> Squares:
    last = side - 1
    marked = np.zeros_like(occupied)
    corners = [0, last, side * last, side * side - 1]
    marked[..., corners] = occupied[..., corners]
    inner = []
    for square in range(side * side):
        row, column = divmod(square, side)
        if square in corners:
            continue
        if row not in (0, last) and column not in (0, last):
            inner.append(square)
            continue
        step = 1 if row in (0, last) else side
        marked[..., square] = occupied[..., square] & (marked[..., square - step] | marked[..., square + step])
    for square in inner:
        around = [square + down * side + right for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
        marked[..., square] = occupied[..., square] & marked[..., around].all(-1)
    return marked
