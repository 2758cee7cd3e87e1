"""Games of Othello as tokens: id 0 begins and ends a game, the others are the squares that can be played.

Squares are numbered row by row with the four in the centre left out, so on the 8x8 board ids 1..60 are those of the
published OthelloGPT (Li et al. 2023), which has 0 as padding. There is no token for a pass. A game of T moves is
`<game> m1 ... mT <game>`, and position t of its tokens stands for the board after t moves.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from interp.data.othello import Games, bits, centre, square_names

GAME = "<game>"
"""Text of token 0, which stands before a game, after it, and as padding."""


def vocabulary(side: int) -> list[str]:
    """Return the text of every token: `<game>`, then the names of the squares that can be played."""
    taken = centre(side)
    return [GAME, *(name for square, name in enumerate(square_names(side)) if square not in taken)]


def token_squares(side: int) -> Int64[np.ndarray, " token"]:
    """Return the square (0..side²-1) of every token, -1 for token 0."""
    return np.array([-1, *(square for square in range(side * side) if square not in centre(side))])


def square_tokens(side: int) -> Int64[np.ndarray, " square"]:
    """Return the token of every square, -1 for the four in the centre."""
    tokens = np.full(side * side, -1)
    tokens[token_squares(side)[1:]] = np.arange(1, side * side - 3)
    return tokens


def game_tokens(games: Games) -> Int64[np.ndarray, "game position"]:
    """Return the tokens of `games`: 0, one for each move, and 0 after the end."""
    rows = np.zeros(games.legal.shape, dtype=np.int64)
    rows[:, 1:] = np.where(games.moves >= 0, square_tokens(games.side)[games.moves], 0)
    return rows


def token_moves(tokens: Int64[np.ndarray, "game position"], side: int) -> Int64[np.ndarray, "game move"]:
    """Return the squares of `game_tokens`, -1 after the end, as `interp.data.othello.replay` reads them.

    Raises:
        ValueError: a row does not begin with token 0, or a token is beyond the vocabulary.
    """
    squares = token_squares(side)
    if tokens.ndim != 2 or (tokens[:, 0] != 0).any():
        raise ValueError(f"tokens must be [game position], each row begun by {GAME} (token 0).")
    if tokens.min() < 0 or tokens.max() >= len(squares):
        wrong = tokens[(tokens < 0) | (tokens >= len(squares))][0]
        raise ValueError(f"Tokens of a board of side {side} lie in 0..{len(squares) - 1}, got {wrong}.")
    return squares[tokens[:, 1:]]


def legal_tokens(games: Games) -> Bool[np.ndarray, "game position token"]:
    """Return which tokens may come next: the legal squares, or token 0 where the game has just ended, later none."""
    allowed = np.zeros((*games.legal.shape, games.side**2 - 3), dtype=bool)
    allowed[..., 1:] = bits(games.legal, games.side)[..., token_squares(games.side)[1:]]
    ended = np.arange(games.legal.shape[1]) == games.lengths[:, None]
    allowed[..., 0] = ended & (games.legal == 0)
    return allowed
