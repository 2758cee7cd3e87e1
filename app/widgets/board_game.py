"""The game on the Board page: typed or drawn, checked by the rules, stepped through move by move."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import streamlit as st

from app.widgets import frame, state
from app.widgets.text import visible
from interp.data.othello import Games, generate_games, replay, square_names

LONGEST = 400
"""Characters of a game."""
DRAWN = 1000
"""Games that the button draws among."""
_MOVE = re.compile(r"([a-z])([0-9])")


@dataclass(frozen=True, eq=False)
class Game:
    """A game, and the position that is looked at."""

    games: Games
    """The one game."""
    moves: list[int]
    """Squares played."""
    at: int
    """Moves played at the position looked at."""

    @property
    def names(self) -> list[str]:
        """Names of the squares."""
        return square_names(self.games.side)

    @property
    def black(self) -> bool:
        """Whether black is to move here."""
        return bool(self.games.black_moves[0, self.at])

    @property
    def over(self) -> bool:
        """Whether nobody is to move here."""
        return self.games.legal[0, self.at] == 0


def read_moves(text: str, side: int) -> list[int]:
    """Return the squares of a text such as "d5 e3" or "d5e3".

    Raises:
        ValueError: something in it is no square of this board, or a move is not legal, with which.
    """
    names = square_names(side)
    bare = re.sub(r"[\s,;.]+", "", text.strip().lower())
    found = [one.group(0) for one in _MOVE.finditer(bare)]
    if "".join(found) != bare or any(one not in names for one in found):
        wrong = next((one for one in found if one not in names), None)
        what = f"{wrong} is no square" if wrong else f"{visible(text, limit=30)!r} holds something that is no square"
        raise ValueError(f"{what} of this board; write moves as {names[0]} to {names[-1]}.")
    if len(found) > side * side - 4:
        raise ValueError(f"A game on this board has at most {side * side - 4} moves, got {len(found)}.")
    moves = [names.index(one) for one in found]
    try:
        replay(np.array([moves], dtype=np.int64).reshape(1, -1), side)
    except ValueError as error:
        raise ValueError(str(error).replace(" of game 0", "")) from error
    return moves


def game_text(moves: list[int], side: int) -> str:
    """Return moves as an address holds them: d5e3f2."""
    names = square_names(side)
    return "".join(names[move] for move in moves)


def drawn_game(side: int, number: int) -> list[int]:
    """Return the moves of the random game of this number."""
    moves = generate_games(1, side, [number, 11]).moves[0]
    return [int(move) for move in moves if move >= 0]


def choose_game(side: int) -> Game:
    """Draw the box of moves and the steps; return the game and the position of the address."""
    default = game_text(drawn_game(side, 0), side)
    found, strange = state.settle("game", lambda text: _legal(text, side), default, "a game of legal moves")
    if strange:
        frame.note(strange)
    moves = read_moves(str(found), side)
    _box(side, moves)
    games = replay(np.array([moves], dtype=np.int64).reshape(1, -1), side)
    return Game(games, moves, _step(moves))


def _legal(text: str, side: int) -> str | None:
    try:
        return game_text(read_moves(text[:LONGEST], side), side)
    except ValueError:
        return None


def _box(side: int, moves: list[int]) -> None:
    names = square_names(side)
    shown = " ".join(names[move] for move in moves)
    if st.session_state.get("_game_shown") != shown:
        st.session_state["game-text"] = st.session_state["_game_shown"] = shown
    with st.form("game-form", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(
            "Moves", key="game-text", max_chars=LONGEST, placeholder="d5 c5 b4 ...",
            help="Black begins. A pass is not written: who plays a move follows from the rules.",
        )  # fmt: skip
        st.form_submit_button("Take", on_click=_take, args=(side,))
        st.form_submit_button("Another game", on_click=_another, args=(side,), help="A random game")
    if wrong := st.session_state.pop("_game_wrong", None):
        frame.problem(wrong, "The game before it is still shown.")


def _take(side: int) -> None:
    """Take the moves of the box, or keep a sentence about what is wrong with them."""
    try:
        moves = read_moves(str(st.session_state.get("game-text") or ""), side)
    except ValueError as error:
        st.session_state["_game_wrong"] = str(error)
        return
    _put(moves, side, len(moves))


def _another(side: int) -> None:
    number = (st.session_state.get("_game_number", 0) + 1) % DRAWN
    st.session_state["_game_number"] = number
    moves = drawn_game(side, number)
    _put(moves, side, len(moves) // 2)


def _put(moves: list[int], side: int, at: int) -> None:
    state.put("game", game_text(moves, side))
    state.put("t", at)
    st.query_params.pop("sq", None)
    st.session_state.pop("_sq", None)


def _step(moves: list[int]) -> int:
    """Draw the steps through the game; return the position of the address."""
    last = len(moves)

    def read(text: str) -> int | None:
        return int(text) if text.isdecimal() and int(text) <= last else None

    kept = st.session_state.get("_t")
    if isinstance(kept, int) and kept > last:  # of a longer game
        st.session_state.pop("_t")
    at, strange = state.settle("t", read, last // 2, f"a number of moves (0 to {last})")
    if strange:
        frame.note(strange)
    if not last:
        return 0
    st.session_state["t-widget"] = at
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.button(
            "Back", icon=":material/chevron_left:", key="step-back", on_click=state.put, args=("t", max(at - 1, 0))
        )
        st.slider("Moves played", 0, last, key="t-widget", on_change=state.take, args=("t", "t-widget"))
        st.button(
            "On", icon=":material/chevron_right:", key="step-on", on_click=state.put, args=("t", min(at + 1, last))
        )
    return int(at)
