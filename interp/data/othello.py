"""Othello on bitboards: legal moves, flips, passes and the game's end, for thousands of games at once.

A board of even side n <= 8 is two 64-bit numbers, the discs of the side to move and those of the other; bit n * row +
column is a square. In each of the eight directions the run of enemy discs beside a set S of squares grows by
run <- run | (shift(run) & theirs), n - 3 times from shift(S) & theirs. The empty squares just behind runs from one's
own discs are the legal moves; runs from the move that end at one's own disc are flipped. A side without a legal move
passes; when neither has one the game is over.

Black moves first. As in Li et al. 2023 (Emergent world representations) passes are no moves: a game is the sequence of
squares, and who plays each follows from the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Int, Int8, UInt64

SIDES = (4, 6, 8)
"""Sides of the boards that there are."""

Boards = UInt64[np.ndarray, "*games"]
Choice = Callable[[int, Boards], np.ndarray]


@dataclass(frozen=True)
class Games:
    """Games move by move. Position 0 is the start, position t the board after t moves; a game that is over stays."""

    side: int
    """Squares along an edge."""
    moves: Int8[np.ndarray, "game move"]
    """Square played (row-major, 0..side²-1), -1 after the end."""
    mine: UInt64[np.ndarray, "game position"]
    """Discs of the side to move; after the end, of the side that did not move last."""
    theirs: UInt64[np.ndarray, "game position"]
    """Discs of the other side."""
    black_moves: Bool[np.ndarray, "game position"]
    """Whether the side to move is black, passes counted."""
    legal: UInt64[np.ndarray, "game position"]
    """Legal squares of the side to move; 0 is the end of the game."""

    @property
    def lengths(self) -> Int[np.ndarray, " game"]:
        """Moves of each game."""
        return (self.moves >= 0).sum(axis=1)

    @property
    def passed(self) -> Bool[np.ndarray, "game position"]:
        """Whether a side had to pass just before this position (False at the start and after the end)."""
        turned = np.zeros(self.legal.shape, dtype=bool)
        turned[:, 1:] = (self.black_moves[:, 1:] == self.black_moves[:, :-1]) & (self.legal[:, 1:] != 0)
        return turned

    def relative(self, turn: str = "actual") -> Int8[np.ndarray, "game position square"]:
        """Return 0 empty, 1 mine, 2 theirs for every square, seen by the side to move.

        `turn="parity"` takes black for the side to move after an even number of moves, as published work does; it is
        wrong after an odd number of passes.
        """
        if turn not in ("actual", "parity"):
            raise ValueError(f"turn must be 'actual' or 'parity', got {turn!r}.")
        labels = bits(self.mine, self.side).astype(np.int8) + np.int8(2) * bits(self.theirs, self.side)
        if turn == "parity":
            black = np.arange(self.mine.shape[1]) % 2 == 0
            swapped = np.where(labels > 0, 3 - labels, 0).astype(np.int8)
            labels = np.where((self.black_moves != black)[..., None], swapped, labels)
        return labels

    def absolute(self) -> Int8[np.ndarray, "game position square"]:
        """Return 0 empty, 1 black, 2 white for every square."""
        black = np.where(self.black_moves, self.mine, self.theirs)
        white = np.where(self.black_moves, self.theirs, self.mine)
        return bits(black, self.side).astype(np.int8) + np.int8(2) * bits(white, self.side)


def check_side(side: int) -> int:
    """Return `side`, or raise ValueError unless it is one of `SIDES`."""
    if side not in SIDES:
        raise ValueError(f"The side of an Othello board must be {', '.join(map(str, SIDES))}, got {side}.")
    return side


def start(side: int) -> tuple[np.uint64, np.uint64]:
    """Return (black, white) discs at the start; black moves first. White holds the centre's main diagonal."""
    low, high = check_side(side) // 2 - 1, side // 2
    black, white = ((low, high), (high, low)), ((low, low), (high, high))
    return tuple(np.uint64(sum(1 << (row * side + column) for row, column in pair)) for pair in (black, white))  # type: ignore[return-value]


def centre(side: int) -> list[int]:
    """Return the four squares that are taken from the start and never played."""
    low, high = check_side(side) // 2 - 1, side // 2
    return [row * side + column for row in (low, high) for column in (low, high)]


def square_names(side: int) -> list[str]:
    """Return a1, b1, ..., a2, ...: the column as a letter, the row as a number, in the order of the squares."""
    return [f"{chr(ord('a') + column)}{row + 1}" for row in range(check_side(side)) for column in range(side)]


def bits(boards: Boards, side: int) -> Bool[np.ndarray, "*games square"]:
    """Return each square of `boards` as a truth value."""
    raw = np.ascontiguousarray(boards, dtype="<u8").view(np.uint8).reshape(*np.shape(boards), 8)
    return np.unpackbits(raw, axis=-1, bitorder="little", count=side * side).astype(bool)


def legal_moves(mine: Boards, theirs: Boards, side: int) -> Boards:
    """Return the squares on which the side that holds `mine` may play."""
    found = np.zeros_like(mine)
    empty = _full(side) & ~(mine | theirs)
    for shift, by, inside in _directions(side):
        run = shift(mine, by) & inside & theirs
        for _ in range(side - 3):
            run |= shift(run, by) & inside & theirs
        found |= np.bitwise_or.reduce(shift(run, by) & inside & empty, axis=0)
    return found


def flips(mine: Boards, theirs: Boards, move: Boards, side: int) -> Boards:
    """Return the discs of `theirs` that turn when `mine` plays the square whose bit is `move`; none if illegal."""
    found = np.zeros_like(mine)
    for shift, by, inside in _directions(side):
        run = shift(move, by) & inside & theirs
        for _ in range(side - 3):
            run |= shift(run, by) & inside & theirs
        closed = (shift(run, by) & inside & mine) != 0
        found |= np.bitwise_or.reduce(np.where(closed, run, np.uint64(0)), axis=0)
    return found


def generate_games(n: int, side: int = 8, seed: int | list[int] = 0) -> Games:
    """Return `n` games in which every move is uniform among the legal ones; a pure function of its arguments."""
    if n < 1:
        raise ValueError(f"n must be 1 game or more, got {n}.")
    rng = np.random.default_rng(seed)

    def choose(_: int, legal: Boards) -> np.ndarray:
        table = bits(legal, side)
        counts = table.sum(axis=1)
        wanted = rng.integers(0, np.maximum(counts, 1))
        nth = np.cumsum(table, axis=1) == wanted[:, None] + 1
        return np.where(counts > 0, (nth & table).argmax(axis=1), -1)

    return _play(n, side, choose)


def replay(moves: Int[np.ndarray, "game move"], side: int) -> Games:
    """Return the games that `moves` (squares, -1 after the end) are; a game may stop before its end.

    Raises:
        ValueError: naming game, move and square of the first move that is not legal.
    """
    given = np.full((len(moves), check_side(side) ** 2 - 4), -1)
    if moves.ndim != 2 or moves.shape[1] > given.shape[1] or not len(moves):
        raise ValueError(f"moves must be [game move] with at most {given.shape[1]} moves, got {list(moves.shape)}.")
    given[:, : moves.shape[1]] = moves

    def choose(turn: int, legal: Boards) -> np.ndarray:
        squares = given[:, turn]
        known = (squares >= 0) & (squares < side * side)
        allowed = bits(legal, side)[np.arange(len(squares)), np.where(known, squares, 0)] & known
        after = (given[:, turn:] >= 0).any(axis=1)
        wrong = np.flatnonzero(~allowed & after)
        if len(wrong):
            square = squares[wrong[0]]
            name = square_names(side)[square] if known[wrong[0]] else str(square)
            raise ValueError(f"Move {turn + 1} of game {wrong[0]}, {name}, is not legal on this board.")
        return np.where(allowed, squares, -1)

    return _play(len(moves), side, choose)


def _play(n: int, side: int, choose: Choice) -> Games:
    """Return `n` games whose t-th move is `choose(t, legal)`, -1 where a game goes on no longer."""
    black, white = start(side)
    mine, theirs = np.full(n, black), np.full(n, white)
    turn, legal = np.ones(n, dtype=bool), legal_moves(np.full(n, black), np.full(n, white), side)
    length = side * side - 4
    moves = np.full((n, length), -1, dtype=np.int8)
    history = [(mine, theirs, turn, legal)]
    for step in range(length):
        square = choose(step, legal)
        going = square >= 0
        moves[:, step] = square
        bit = np.where(going, np.uint64(1) << np.maximum(square, 0).astype(np.uint64), np.uint64(0))
        turned = flips(mine, theirs, bit, side)
        next_mine, next_theirs = theirs & ~turned, mine | turned | bit
        options = legal_moves(next_mine, next_theirs, side)
        again = legal_moves(next_theirs, next_mine, side)
        passes = (options == 0) & (again != 0)
        next_mine, next_theirs = np.where(passes, next_theirs, next_mine), np.where(passes, next_mine, next_theirs)
        mine, theirs = np.where(going, next_mine, mine), np.where(going, next_theirs, theirs)
        turn = np.where(going, turn == passes, turn)
        legal = np.where(going, np.where(passes, again, options), legal)
        history.append((mine, theirs, turn, legal))
    fields = (np.stack(field, axis=1) for field in zip(*history, strict=True))
    return Games(side, moves, *fields)


def _full(side: int) -> np.uint64:
    return np.uint64((1 << (side * side)) - 1)


@cache
def _directions(side: int) -> list[tuple[np.ufunc, np.ndarray, np.ndarray]]:
    """Return (shift, amounts [4 1], squares [4 1] that a disc can come to) of four directions and their opposites."""
    columns = [sum(1 << (row * side + column) for row in range(side)) for column in range(side)]
    full = int(_full(side))
    west_ok, east_ok = full & ~columns[side - 1], full & ~columns[0]  # what went west is not in the last column

    def column(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.uint64)[:, None]

    amounts = column([1, side - 1, side, side + 1])  # left: east, south-west, south, south-east
    return [
        (np.left_shift, amounts, column([east_ok, west_ok, full, east_ok])),
        (np.right_shift, amounts, column([west_ok, east_ok, full, west_ok])),
    ]
