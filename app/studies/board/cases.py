"""Squares to change: positions of games, one square of each, and what is legal before and after.

A change is made on the board, not in the game: the moves that were played stay, the square gets another state, and the
rules say what may be played then. Only changes that alter the legal moves, and leave one at least, can show anything;
the others are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from app.studies.board.positions import EMPTY, MINE, STATES, THEIRS, Positions
from interp.data.othello import bits, centre, legal_moves
from interp.data.othello_tokens import token_squares
from interp.names import unknown

FLIP, REMOVE = "flip", "remove"
CHANGES = {FLIP: "mine becomes theirs, theirs mine", REMOVE: "a disc is taken away"}
"""What is done to a square."""
TRIED = 8
"""Positions looked at for each one wanted."""
Legal = Bool[np.ndarray, "case token"]


@dataclass(frozen=True, eq=False)
class Cases:
    """Positions with a square to change."""

    tokens: Int[Tensor, "case position"]
    """What the model reads; what comes after `move` cannot reach it."""
    game: Int[np.ndarray, " case"]
    """The game of each, for intervals."""
    move: Int[np.ndarray, " case"]
    """The position: so many moves were played, and the token there is the last that counts."""
    square: Int[np.ndarray, " case"]
    """The square that changes."""
    source: Int[np.ndarray, " case"]
    """Its state, 0 empty, 1 mine, 2 theirs."""
    target: Int[np.ndarray, " case"]
    """What it becomes."""
    before: Legal
    """Legal tokens on the true board."""
    after: Legal
    """Legal tokens on the changed board."""

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.move)

    def take(self, chosen: Int[np.ndarray, " chosen"]) -> Cases:
        """Return some of the cases."""
        rows = {name: getattr(self, name)[chosen] for name in self.__dataclass_fields__ if name != "tokens"}
        return replace(self, tokens=self.tokens[torch.from_numpy(chosen)], **rows)


def legal_after(
    positions: Positions,
    rows: Int[np.ndarray, " case"],
    square: Int[np.ndarray, " case"],
    target: Int[np.ndarray, " case"],
) -> Legal:
    """Return which tokens are legal for the side to move when each row's square has the state `target`."""
    games = positions.games
    bit = np.uint64(1) << square.astype(np.uint64)
    mine, theirs = games.mine[positions.kept][rows] & ~bit, games.theirs[positions.kept][rows] & ~bit
    mine = np.where(target == MINE, mine | bit, mine)
    theirs = np.where(target == THEIRS, theirs | bit, theirs)
    found = np.zeros((len(rows), games.side**2 - 3), dtype=bool)
    found[:, 1:] = bits(legal_moves(mine, theirs, games.side), games.side)[:, token_squares(games.side)[1:]]
    return found


def cases_of(
    positions: Positions,
    rows: Int[np.ndarray, " case"],
    square: Int[np.ndarray, " case"],
    target: Int[np.ndarray, " case"],
) -> Cases:
    """Return the cases of given rows, squares and wanted states."""
    tiles = positions.games.relative()[positions.kept][rows]
    source = tiles[np.arange(len(rows)), square].astype(np.int64)
    return Cases(
        positions.tokens[torch.from_numpy(positions.game[rows])],
        positions.game[rows],
        positions.move[rows],
        square,
        source,
        target,
        legal_after(positions, rows, square, source),
        legal_after(positions, rows, square, target),
    )


def one_case(positions: Positions, row: int, square: int, target: int) -> Cases:
    """Return the change of one square of one row to the state `target`.

    Raises:
        ValueError: there is no such square or state, the square has that state, or it would be an empty centre.
    """
    side = positions.games.side
    if not 0 <= square < side * side or target not in range(len(STATES)):
        raise ValueError(
            f"square must lie in 0..{side * side - 1} and target in 0..{len(STATES) - 1}, got {square} and {target}."
        )
    if target == EMPTY and square in centre(side):
        raise ValueError("The four squares of the centre are never empty in a game; change the disc there instead.")
    found = cases_of(positions, np.array([row]), np.array([square]), np.array([target]))
    if found.source[0] == target:
        raise ValueError(f"The square is {STATES[target]} already; choose another state.")
    return found


def draw_cases(positions: Positions, among: Bool[np.ndarray, " row"], change: str, n: int, seed: int) -> Cases:
    """Return up to `n` cases, each of another row, drawn among the rows; fewer where there are not as many.

    Args:
        positions: the rows.
        among: which of them may be taken.
        change: `flip` or `remove`.
        n: cases at most.
        seed: of the draw.

    Raises:
        ValueError: an unknown change, or no row whose legal moves would change.
    """
    if change not in CHANGES:
        raise ValueError(unknown("change", change, CHANGES))
    rng = np.random.default_rng([seed, list(CHANGES).index(change)])
    rows = rng.permutation(np.flatnonzero(among))[: TRIED * n]
    tiles = positions.games.relative()[positions.kept][rows]
    allowed = tiles != EMPTY
    if change == REMOVE:
        allowed[:, centre(positions.games.side)] = False
    rows, tiles, allowed = rows[some := allowed.any(1)], tiles[some], allowed[some]
    square = np.where(allowed, rng.random(allowed.shape), -1.0).argmax(1)
    state = tiles[np.arange(len(rows)), square]
    target = np.where(change == FLIP, THEIRS + MINE - state, EMPTY).astype(np.int64)
    found = cases_of(positions, rows, square, target)
    useful = (found.before != found.after).any(1) & found.after.any(1)
    if not useful.any():
        raise ValueError("No square of these positions changes what is legal; take more games.")
    return found.take(np.flatnonzero(useful)[:n])


def wrong_moves(scores: Float[Tensor, "case token"], legal: Legal) -> Int[np.ndarray, " case"]:
    """Return how many moves are wrong among the N likeliest squares: not legal, or legal and missing; N are legal.

    Token 0 is no square and is not looked at.
    """
    squares = scores[:, 1:].float().cpu().numpy()
    wanted = legal[:, 1:]
    rank = np.argsort(np.argsort(-squares, axis=1, kind="stable"), axis=1)
    named = rank < wanted.sum(1, keepdims=True)
    return (named != wanted).sum(1)
