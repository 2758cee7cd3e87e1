"""Positions as rows, probes of planted boards, and what is legal after a change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.studies.board.accuracy import COMMONEST, COMMONEST_BY_MOVE, MODEL, Scorer, layer_of
from app.studies.board.cases import cases_of, draw_cases, one_case, wrong_moves
from app.studies.board.positions import (
    COLOUR,
    EMPTY,
    LABELS,
    MINE,
    PARITY,
    THEIRS,
    TURN,
    Positions,
    all_labels,
    columns_of,
    even_rows,
    make_positions,
    read,
    rows_of,
    side_of,
    stream_sites,
)
from interp.data.othello import centre, replay, square_names
from interp.data.othello_tokens import vocabulary
from interp.hooks import capture
from interp.models import ModelHandle
from probes.board import BoardProbe
from tests.othello_models import othello_handle

SIDE = 4


@pytest.fixture(scope="module")
def handle() -> ModelHandle:
    """A random model of the board of 4x4 squares."""
    return othello_handle(SIDE)


@pytest.fixture(scope="module")
def positions() -> Positions:
    return make_positions(60, SIDE, 0)[0]


def game_with_a_pass(positions: Positions) -> int:
    return int(np.flatnonzero(positions.games.passed.any(axis=1))[0])


def test_rows_are_the_positions_at_which_somebody_is_to_move(positions: Positions):
    games = positions.games
    wanted = [(g, t) for g in range(60) for t in range(1, games.lengths[g]) if games.legal[g, t]]
    assert list(zip(positions.game, positions.move, strict=True)) == wanted
    assert len(positions) == len(wanted)


def test_labels_of_a_game_replayed_by_hand():
    names = square_names(SIDE)
    # Black d3... on 4x4 black may begin at a2, b1, c4, d3; here b1, then white a1.
    moves = np.array([[names.index(one) for one in ("b1", "a1")]])
    rows = rows_of(replay(moves, SIDE))
    held = dict(zip(names, rows.labels(COLOUR)[0], strict=True))
    assert {name for name, state in held.items() if state == 1} == {"b1", "b2", "c2", "b3"}
    assert {name for name, state in held.items() if state == 2} == {"c3"}
    turn = dict(zip(names, rows.labels(TURN)[0], strict=True))  # white is to move
    assert turn["c3"] == MINE
    assert turn["b1"] == THEIRS
    assert turn["d4"] == EMPTY


def test_counting_moves_differs_from_the_turn_after_an_odd_number_of_passes_only(positions: Positions):
    turn, parity = positions.labels(TURN), positions.labels(PARITY)
    differ = (turn != parity).any(axis=1)
    assert (differ == (positions.passes % 2 == 1)).all()
    assert differ.any()
    swapped = np.array([0, 2, 1])[turn[differ]]
    assert (swapped == parity[differ]).all()


def test_the_label_after_a_forced_pass_is_that_of_the_side_that_moves(positions: Positions):
    game = game_with_a_pass(positions)
    games = positions.games
    at = int(np.flatnonzero(games.passed[game])[0])
    row = int(np.flatnonzero((positions.game == game) & (positions.move == at))[0])
    black_moves = bool(games.black_moves[game, at])
    assert black_moves == bool(games.black_moves[game, at - 1])  # the same side moves twice
    wanted = positions.labels(COLOUR)[row] == (1 if black_moves else 2)
    assert ((positions.labels(TURN)[row] == MINE) == wanted).all()
    assert ((positions.labels(PARITY)[row] == THEIRS) == wanted).all()  # counting has it the wrong way round


def test_rows_of_equal_length_hold_the_same_moves_of_each_game(positions: Positions):
    part = even_rows(positions, np.arange(60) >= 30, 12)
    counts = np.bincount(part.game)
    assert len(set(counts)) == 1
    assert len(counts) <= 12
    moves = part.move.reshape(len(counts), -1)
    assert (moves == moves[0]).all()
    kept = positions.games.moves[np.arange(60) >= 30]
    assert all(any((game == one).all() for one in kept) for game in part.games.moves)


def test_reading_is_a_plain_forward_of_each_game(handle: ModelHandle, positions: Positions):
    sites = stream_sites(handle)
    assert [layer_of(str(site)) for site in sites] == [0, 1, 2]
    found = read(handle, sites, positions, batch=7)
    for row in (0, 17, len(positions) - 1):
        tokens = positions.tokens[positions.game[row], : positions.move[row] + 1]
        with capture(handle, sites) as cache:
            handle.forward(tokens)
        for index, site in enumerate(sites):
            assert torch.allclose(found[row, index], cache[site][0, -1], atol=1e-5)


def test_a_model_without_a_board_is_refused(gpt2: ModelHandle, handle: ModelHandle):
    assert side_of(handle) == SIDE
    with pytest.raises(ValueError, match=r"tokens are <game> and the squares .* as othello6"):
        side_of(gpt2)
    with pytest.raises(ValueError, match="no tokenizer"):
        side_of(othello_handle(SIDE, tokenizer=False))
    with pytest.raises(ValueError, match="layers must lie in 0..1"):
        stream_sites(handle, (2,))


def test_a_vocabulary_of_another_side_is_that_side(handle: ModelHandle):
    assert handle.vocabulary() == vocabulary(4) != vocabulary(6)


def test_nan_is_named(handle: ModelHandle, positions: Positions):
    broken = othello_handle(SIDE)
    with torch.no_grad():
        broken.module.transformer.h[1].mlp.c_proj.bias[3] = torch.nan  # type: ignore[index,union-attr]
    with pytest.raises(ValueError, match=r"not finite at resid_post.1, so"):
        read(broken, stream_sites(broken), positions)


def planted(positions: Positions, seed: int) -> torch.Tensor:
    """Activations that are the board, one-hot, times a random matrix."""
    tiles = positions.labels(TURN)
    hot = np.eye(3)[tiles].reshape(len(tiles), -1)
    mixed = hot @ np.random.default_rng(seed).normal(size=(hot.shape[1], 64))
    return torch.from_numpy(mixed).float()[:, None]


def test_a_planted_board_is_read_without_an_error():
    positions, test_games = make_positions(150, SIDE, 1)
    test = test_games[positions.game]
    X, Y = planted(positions, 0), all_labels(positions)
    probe = BoardProbe("ridge", alpha=1e-6).fit(X[torch.from_numpy(~test)], Y[~test])
    rows = Scorer(positions, test, 0).probe_rows(probe, X[torch.from_numpy(test)], MODEL, ["resid_pre.0"])
    by = {(row["label"], row["squares"], row["positions"]): row for row in rows}
    assert by[TURN, "all", "all"]["accuracy"] == 1.0
    assert by[TURN, "occupied", "all"]["accuracy"] == 1.0
    assert by[TURN, "all", "counting is wrong"]["accuracy"] == 1.0
    # Counting moves and naming colours need what is not there: whose turn it is.
    assert by[PARITY, "occupied", "before a pass"]["accuracy"] > by[PARITY, "occupied", "counting is wrong"]["accuracy"]
    assert by[COLOUR, "occupied", "all"]["accuracy"] < 0.8
    whole = by[TURN, "all", "all"]
    assert (whole["games"], whole["counted"]) == (30, 16 * int(test.sum()))
    assert by[TURN, "occupied", "all"]["counted"] == int((positions.labels(TURN)[test] != EMPTY).sum())


def test_the_commonest_state_is_what_loops_give():
    positions, test_games = make_positions(60, SIDE, 2)
    test = test_games[positions.game]
    rows = Scorer(positions, test, 0).commonest_rows(~test)
    tiles, move = positions.labels(TURN), positions.move
    for subject, by_move in ((COMMONEST, False), (COMMONEST_BY_MOVE, True)):
        hits = []
        for row in np.flatnonzero(test):
            known = ~test & ((move == move[row]) | (not by_move))
            for square in range(SIDE * SIDE):
                counts = np.bincount(tiles[known, square], minlength=3)
                hits.append(counts.argmax() == tiles[row, square])
        key = (subject, TURN, "all", "all")
        wanted = [r for r in rows if (r["subject"], r["label"], r["squares"], r["positions"]) == key]
        assert wanted[0]["accuracy"] == pytest.approx(np.mean(hits))
        assert wanted[0]["low"] < wanted[0]["accuracy"] < wanted[0]["high"]


def test_each_label_has_its_own_columns(positions: Positions):
    Y = all_labels(positions)
    for which in LABELS:
        assert (Y[:, columns_of(which, SIDE * SIDE)] == positions.labels(which)).all()


def test_legal_moves_after_a_change_are_those_of_the_changed_board(positions: Positions):
    for change in ("flip", "remove"):
        cases = draw_cases(positions, np.ones(len(positions), bool), change, 20, 3)
        for index in range(len(cases)):
            tiles = positions.games.relative()[cases.game[index], cases.move[index]].copy()
            assert tiles[cases.square[index]] == cases.source[index] != EMPTY
            assert slow_legal(tiles) == set(np.flatnonzero(cases.before[index]))
            tiles[cases.square[index]] = cases.target[index]
            assert slow_legal(tiles) == set(np.flatnonzero(cases.after[index]))
            assert cases.after[index].any()
            assert (cases.before[index] != cases.after[index]).any()
            wanted = EMPTY if change == "remove" else 3 - cases.source[index]
            assert cases.target[index] == wanted
        if change == "remove":
            assert not set(cases.square) & set(centre(SIDE))


def slow_legal(tiles: np.ndarray) -> set[int]:
    """Legal tokens for the side that holds 1, by walking."""
    board = tiles.reshape(SIDE, SIDE)
    found = set()
    names = vocabulary(SIDE)
    for row in range(SIDE):
        for column in range(SIDE):
            if board[row, column]:
                continue
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    r, c, run = row + down, column + right, 0
                    while (down or right) and 0 <= r < SIDE and 0 <= c < SIDE and board[r, c] == THEIRS:
                        r, c, run = r + down, c + right, run + 1
                    if run and 0 <= r < SIDE and 0 <= c < SIDE and board[r, c] == MINE:
                        name = square_names(SIDE)[row * SIDE + column]
                        if name in names:
                            found.add(names.index(name))
    return found


def test_wrong_moves_are_false_ones_and_missing_ones():
    legal = np.array([[0, 1, 1, 0, 0]], dtype=bool)
    scores = torch.tensor([[9.0, 4.0, 3.0, 2.0, 1.0]])  # token 0 is no square, however likely
    assert wrong_moves(scores, legal).tolist() == [0]
    assert wrong_moves(torch.tensor([[9.0, 4.0, 1.0, 2.0, 3.0]]), legal).tolist() == [2]  # one false, one missing
    assert wrong_moves(torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]), legal).tolist() == [4]


def test_one_case_and_what_is_refused(positions: Positions):
    row = 5
    square = int(np.flatnonzero(positions.labels(TURN)[row] == THEIRS)[0])
    assert (one_case(positions, row, square, MINE).before == cases_of(
        positions, np.array([row]), np.array([square]), np.array([MINE])
    ).before).all()  # fmt: skip
    with pytest.raises(ValueError, match="theirs already"):
        one_case(positions, row, square, THEIRS)
    with pytest.raises(ValueError, match=r"square must lie in 0..15"):
        one_case(positions, row, 16, MINE)
    with pytest.raises(ValueError, match="never empty"):
        one_case(positions, row, centre(SIDE)[0], EMPTY)
    with pytest.raises(ValueError, match="Unknown change 'turn'"):
        draw_cases(positions, np.ones(len(positions), bool), "turn", 3, 0)
    with pytest.raises(ValueError, match="take more games"):
        draw_cases(positions, np.zeros(len(positions), bool), "flip", 3, 0)
