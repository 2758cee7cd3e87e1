"""The rules of Othello: published counts, a slow engine with loops, symmetry, and what a game record promises."""

from __future__ import annotations

import numpy as np
import pytest

from interp.data.othello import (
    SIDES,
    Games,
    bits,
    centre,
    flips,
    generate_games,
    legal_moves,
    replay,
    square_names,
    start,
)
from interp.data.othello_tokens import (
    game_tokens,
    legal_tokens,
    square_tokens,
    token_moves,
    token_squares,
    vocabulary,
)

EMPTY, BLACK, WHITE = ".", "x", "o"
STEPS = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]


class SlowGame:
    """A game on a list of lists, straight from the rules; the reference."""

    def __init__(self, side: int) -> None:
        self.side, self.turn = side, BLACK
        self.board = [[EMPTY] * side for _ in range(side)]
        low, high = side // 2 - 1, side // 2
        self.board[low][low] = self.board[high][high] = WHITE
        self.board[low][high] = self.board[high][low] = BLACK

    def turned(self, row: int, column: int, colour: str) -> list[tuple[int, int]]:
        if self.board[row][column] != EMPTY:
            return []
        found = []
        for down, right in STEPS:
            line, r, c = [], row + down, column + right
            while 0 <= r < self.side and 0 <= c < self.side and self.board[r][c] not in (EMPTY, colour):
                line.append((r, c))
                r, c = r + down, c + right
            if 0 <= r < self.side and 0 <= c < self.side and self.board[r][c] == colour:
                found += line
        return found

    def legal(self, colour: str | None = None) -> list[int]:
        squares = range(self.side**2)
        return [s for s in squares if self.turned(s // self.side, s % self.side, colour or self.turn)]

    def play(self, square: int) -> None:
        row, column = divmod(square, self.side)
        for r, c in [*self.turned(row, column, self.turn), (row, column)]:
            self.board[r][c] = self.turn
        other = WHITE if self.turn == BLACK else BLACK
        if self.legal(other) or not self.legal():
            self.turn = other

    def copy(self) -> SlowGame:
        twin = SlowGame(self.side)
        twin.turn, twin.board = self.turn, [list(row) for row in self.board]
        return twin


def slow_perft(game: SlowGame, depth: int) -> int:
    if depth == 0:
        return 1
    total = 0
    for square in game.legal():
        following = game.copy()
        following.play(square)
        total += slow_perft(following, depth - 1)
    return total


def perft(side: int, depth: int) -> list[int]:
    """Return the number of games of 1..depth moves, walked breadth first through `replay`'s own step."""
    black, white = start(side)
    mine, theirs, counts = np.array([black]), np.array([white]), []
    for _ in range(depth):
        game, square = np.nonzero(bits(legal_moves(mine, theirs, side), side))
        bit = np.uint64(1) << square.astype(np.uint64)
        turned = flips(mine[game], theirs[game], bit, side)
        mine, theirs = theirs[game] & ~turned, mine[game] | turned | bit
        stuck = (legal_moves(mine, theirs, side) == 0) & (legal_moves(theirs, mine, side) != 0)
        mine, theirs = np.where(stuck, theirs, mine), np.where(stuck, mine, theirs)
        counts.append(len(mine))
    return counts


@pytest.fixture(scope="module", params=SIDES)
def games(request: pytest.FixtureRequest) -> Games:
    return generate_games(300, request.param, seed=5)


def test_the_number_of_games_is_the_published_one() -> None:
    assert perft(8, 6) == [4, 12, 56, 244, 1396, 8200]


@pytest.mark.parametrize(("side", "depth"), [(4, 6), (6, 5)])
def test_the_number_of_games_is_the_slow_one(side: int, depth: int) -> None:
    assert perft(side, depth) == [slow_perft(SlowGame(side), d) for d in range(1, depth + 1)]


def test_every_position_is_the_slow_one(games: Games) -> None:
    absolute = games.absolute()
    legal = bits(games.legal, games.side)
    for game in range(12):
        slow = SlowGame(games.side)
        for position in range(games.lengths[game] + 1):
            said = [".xo"[label] for label in absolute[game, position]]
            assert said == [cell for row in slow.board for cell in row]
            assert np.flatnonzero(legal[game, position]).tolist() == slow.legal()
            if position < games.lengths[game]:
                assert games.black_moves[game, position] == (slow.turn == BLACK)
                slow.play(int(games.moves[game, position]))
        assert not slow.legal(BLACK)
        assert not slow.legal(WHITE)


def test_a_move_adds_a_disc_and_only_turns_others(games: Games) -> None:
    discs = (games.absolute() > 0).sum(axis=-1)
    assert (discs[:, 0] == 4).all()
    assert np.array_equal(np.diff(discs, axis=1), games.moves >= 0)
    assert not (games.mine & games.theirs).any()
    assert not (games.legal & (games.mine | games.theirs)).any()


def test_moves_are_legal_and_uniform() -> None:
    games = generate_games(20_000, 6, seed=1)
    allowed = bits(games.legal, 6)[:, :-1]
    played = games.moves >= 0
    chosen = np.take_along_axis(allowed, np.maximum(games.moves, 0)[..., None].astype(int), axis=-1)[..., 0]
    assert chosen[played].all()
    assert np.array_equal(allowed.any(axis=-1), played)
    for n in (3, 4, 5):  # the place of the move among n legal ones
        there = played & (allowed.sum(axis=-1) == n)
        squares = games.moves[there][:, None]
        place = (allowed[there] & (np.arange(36) < squares)).sum(axis=-1)
        shares = np.bincount(place, minlength=n) / len(place)
        assert np.abs(shares - 1 / n).max() < 5 * (1 / n / len(place)) ** 0.5


def test_games_are_a_pure_function_of_their_seed() -> None:
    one, same, other = (generate_games(50, 6, seed) for seed in ([3, 7], [3, 7], [3, 8]))
    assert np.array_equal(one.moves, same.moves)
    assert not np.array_equal(one.moves, other.moves)


def test_published_shares_of_long_games_and_passes() -> None:
    games = generate_games(4000, 8, seed=0)
    counts = bits(games.legal, 8).sum(axis=-1)[:, 1:-1]
    counts = counts[games.moves[:, 1:] >= 0]
    assert (games.lengths == 60).mean() == pytest.approx(0.9899, abs=0.008)
    assert games.passed.any(axis=1).mean() == pytest.approx(0.347, abs=0.03)
    assert counts.mean() == pytest.approx(8.64, abs=0.06)
    assert np.log(counts).mean() == pytest.approx(2.012, abs=0.008)


def test_replay_gives_the_same_games(games: Games) -> None:
    again = replay(games.moves, games.side)
    for name in ("moves", "mine", "theirs", "black_moves", "legal"):
        assert np.array_equal(getattr(again, name), getattr(games, name)), name
    short = replay(games.moves[:, :5], games.side)
    assert np.array_equal(short.legal[:, :6], games.legal[:, :6])
    assert np.array_equal(short.legal[:, 5:], np.repeat(games.legal[:, 5:6], games.legal.shape[1] - 5, axis=1))


def test_mirrored_moves_mirror_the_boards(games: Games) -> None:
    """Both diagonals and the half turn keep the start, so they keep everything."""
    side = games.side
    grid = np.arange(side * side).reshape(side, side)
    for image in (grid.T, grid[::-1, ::-1], grid[::-1, ::-1].T):
        where = np.empty(side * side, dtype=int)
        where[image.reshape(-1)] = grid.reshape(-1)
        mirrored = replay(np.where(games.moves >= 0, where[games.moves], -1), side)
        assert np.array_equal(mirrored.absolute()[..., where], games.absolute())
        assert np.array_equal(bits(mirrored.legal, side)[..., where], bits(games.legal, side))


def test_after_a_pass_parity_takes_the_wrong_side() -> None:
    games = generate_games(400, 6, seed=2)
    actual, parity = games.relative(), games.relative("parity")
    live = np.arange(actual.shape[1]) < games.lengths[:, None]
    odd = (np.cumsum(games.passed, axis=1) % 2 == 1) & live
    assert odd.any()
    swapped = np.array([0, 2, 1])[actual]
    assert np.array_equal(parity[odd], swapped[odd])
    assert np.array_equal(parity[live & ~odd], actual[live & ~odd])
    absolute = games.absolute()
    as_black = np.where(games.black_moves[..., None], absolute, np.array([0, 2, 1])[absolute])
    assert np.array_equal(actual, as_black)
    with pytest.raises(ValueError, match="turn must be 'actual' or 'parity', got 'black'"):
        games.relative("black")


def test_tokens_are_the_published_ones_and_come_back(games: Games) -> None:
    side = games.side
    names = vocabulary(side)
    assert len(names) == side * side - 3
    assert [square_names(side)[s] for s in token_squares(side)[1:]] == names[1:]
    if side == 8:  # ids of the published model, from the square
        for square in set(range(64)) - set(centre(8)):
            published = square + 1 if square < 27 else square - 1 if square < 35 else square - 3
            assert square_tokens(8)[square] == published
    tokens = game_tokens(games)
    assert (tokens[:, 0] == 0).all()
    assert np.array_equal(token_moves(tokens, side), games.moves)
    assert (square_tokens(side)[centre(side)] == -1).all()


def test_legal_tokens_hold_what_comes_next(games: Games) -> None:
    tokens, allowed = game_tokens(games), legal_tokens(games)
    following = np.concatenate([tokens[:, 1:], np.zeros((len(tokens), 1), dtype=int)], axis=1)
    until_end = np.arange(tokens.shape[1]) <= games.lengths[:, None]
    chosen = np.take_along_axis(allowed, following[..., None], axis=-1)[..., 0]
    assert np.array_equal(chosen, until_end)
    assert np.array_equal(allowed[..., 1:].sum(axis=-1), bits(games.legal, games.side).sum(axis=-1))
    assert np.array_equal(allowed[..., 0].sum(axis=1), np.ones(len(tokens)))


def test_clear_refusals() -> None:
    with pytest.raises(ValueError, match="must be 4, 6, 8, got 5"):
        generate_games(1, 5)
    with pytest.raises(ValueError, match="n must be 1 game or more, got 0"):
        generate_games(0, 6)
    moves = generate_games(3, 8, 0).moves.astype(int)
    moves[1, 4] = moves[1, 2]
    with pytest.raises(ValueError, match=rf"Move 5 of game 1, {square_names(8)[moves[1, 2]]}, is not legal"):
        replay(moves, 8)
    with pytest.raises(ValueError, match="Move 1 of game 0, 64, is not legal"):
        replay(np.array([[64]]), 8)
    with pytest.raises(ValueError, match="at most 12 moves"):
        replay(np.zeros((1, 13), dtype=int), 4)
    with pytest.raises(ValueError, match=r"lie in 0..12, got 13"):
        token_moves(np.array([[0, 13]]), 4)
    with pytest.raises(ValueError, match="each row begun by <game>"):
        token_moves(np.array([[1, 2]]), 4)
