"""Stable discs: boards checked by hand, a slow reference from the definition, and that none is ever turned."""

from __future__ import annotations

import numpy as np
import pytest

from interp.data.othello import bits, generate_games, square_names
from interp.data.othello_stability import stable_discs


def board(side: int, rows: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (discs marked x, discs marked o) of rows separated by spaces."""
    text = rows.replace(" ", "")
    assert len(text) == side * side
    return tuple(
        np.array([sum(1 << square for square, mark in enumerate(text) if mark == which)], dtype=np.uint64)
        for which in "xo"
    )  # type: ignore[return-value]


def named(side: int, rows: str, method: str = "fixpoint") -> set[str]:
    marks = stable_discs(*board(side, rows), side, method)[0]
    return {name for name, mark in zip(square_names(side), marks, strict=True) if mark}


def slow(mine: int, theirs: int, side: int) -> set[int]:
    """The definition, disc by disc, until nothing is added."""
    colour = {s: "m" if mine >> s & 1 else "t" for s in range(side * side) if (mine | theirs) >> s & 1}
    stable: set[int] = set()
    grown = True
    while grown:
        grown = False
        for square, own in colour.items():
            if square in stable:
                continue
            row, column = divmod(square, side)
            axes = 0
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                line = [(row + k * down, column + k * right) for k in range(-side, side + 1)]
                line = [r * side + c for r, c in line if 0 <= r < side and 0 <= c < side]
                safe = all(one in colour for one in line)
                for sign in (1, -1):
                    r, c = row + sign * down, column + sign * right
                    inside = 0 <= r < side and 0 <= c < side
                    safe |= not inside or (r * side + c in stable and colour[r * side + c] == own)
                axes += safe
            if axes == 4:
                stable.add(square)
                grown = True
    return stable


def test_a_corner_is_stable_and_makes_its_row_stable_from_either_end():
    assert named(4, "x... .xo. .ox. ....") == {"a1"}
    assert named(4, "xxx. .xo. .ox. ....") == {"a1", "b1", "c1"}
    assert named(4, ".xxx .xo. .ox. ....") == {"b1", "c1", "d1"}


def test_a_disc_of_the_other_colour_beside_a_stable_one_is_not_stable():
    assert named(4, "xo.. .xo. .ox. ....") == {"a1"}
    assert named(4, "xoo. .xo. .ox. ....") == {"a1"}


def test_a_full_edge_is_stable_whatever_its_colours():
    assert named(4, "xoxo .xo. .ox. ....") == {"a1", "b1", "c1", "d1"}


def test_an_inner_disc_needs_all_four_axes():
    # b2 lies beside a2, b1 and a1; along its other diagonal, c1-b2-a3, it needs a stable neighbour or a full line.
    assert "b2" not in named(4, "xx.. xx.. .... ....")
    assert "b2" in named(4, "xxx. xx.. x... ....")
    assert "b2" in named(4, "xxo. xxo. o.xx ....")  # the diagonal c1, b2, a3 is full
    assert named(4, "xoxo oxox xoxo oxox") == set(square_names(4))


def test_the_published_sweep_depends_on_order_and_colour():
    assert named(4, "xoo. .xo. .ox. ....", "altjs") == {"a1", "b1", "c1"}  # b1 may be turned by d1 and c1
    # Down the left edge a sweep in growing order carries on from the top ...
    assert named(4, "x... x... x... ....", "altjs") == {"a1", "a2", "a3"}
    # ... and from the bottom only one square far, since a2 was passed before a3 was marked.
    assert named(4, ".... x... x... x...", "altjs") == {"a3", "a4"}
    assert named(4, ".... x... x... x...") == {"a2", "a3", "a4"}


@pytest.mark.parametrize("side", [4, 6, 8])
def test_the_fixpoint_is_that_of_the_slow_reference(side: int):
    games = generate_games(6, side, seed=3)
    fast = stable_discs(games.mine, games.theirs, side)
    for game in range(len(games.mine)):
        for position in range(0, games.mine.shape[1], 5):
            wanted = slow(int(games.mine[game, position]), int(games.theirs[game, position]), side)
            assert set(np.flatnonzero(fast[game, position])) == wanted


def test_no_stable_disc_is_ever_turned_and_the_sweep_marks_some_that_are():
    games = generate_games(100, 6, seed=1)
    colour = games.absolute()
    turned = {}
    for method in ("fixpoint", "altjs"):
        marks = stable_discs(games.mine, games.theirs, 6, method)
        assert marks.any()
        later = (colour[:, 1:] != colour[:, :-1]) & marks[:, :-1]
        turned[method] = int(later.sum())
        if method == "fixpoint":
            assert not (marks[:, :-1] & ~marks[:, 1:]).any()  # once stable, always stable
    assert turned["fixpoint"] == 0
    assert turned["altjs"] > 0


def test_colours_and_mirror_images_change_nothing():
    games = generate_games(40, 6, seed=2)
    marks = stable_discs(games.mine, games.theirs, 6)
    assert (stable_discs(games.theirs, games.mine, 6) == marks).all()

    def mirrored(boards: np.ndarray) -> np.ndarray:
        squares = bits(boards, 6).reshape(*boards.shape, 6, 6)[..., ::-1].reshape(*boards.shape, 36)
        return (squares.astype(np.uint64) << np.arange(36, dtype=np.uint64)).sum(-1, dtype=np.uint64)

    image = stable_discs(mirrored(games.mine), mirrored(games.theirs), 6).reshape(*marks.shape[:2], 6, 6)
    assert (image[..., ::-1].reshape(marks.shape) == marks).all()


def test_a_finished_board_is_stable_everywhere_and_only_discs_are():
    games = generate_games(40, 6, seed=2)
    marks = stable_discs(games.mine, games.theirs, 6)
    discs = bits(games.mine | games.theirs, 6)
    assert not (marks & ~discs).any()
    full = discs.all(-1)
    assert full.any()
    assert marks[full].all()


def test_refused():
    x = np.array([3], dtype=np.uint64)
    with pytest.raises(ValueError, match="Unknown method 'sweep'"):
        stable_discs(x, x << np.uint64(2), 6, "sweep")
    with pytest.raises(ValueError, match="held by both"):
        stable_discs(x, x, 6)
    with pytest.raises(ValueError, match="side of an Othello board"):
        stable_discs(x, x << np.uint64(2), 5)
