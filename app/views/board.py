"""Board: what an Othello model holds of the board by layer, what fires, and what it does when a square is changed."""

from __future__ import annotations

import streamlit as st

from app.widgets import frame, state
from app.widgets.artefacts import Unreadable
from app.widgets.board_drawing import draw_boards
from app.widgets.board_edit import (
    choose_square,
    intervention,
    latents,
    legal,
    move_board,
    pick,
    probe_boards,
    true_board,
)
from app.widgets.board_game import Game, choose_game
from app.widgets.board_live import Reading, read_game
from app.widgets.board_studies import (
    BoardStudy,
    choose_study,
    curves,
    edit_table,
    empty,
    facts,
    footer,
    label_of,
    python,
    studies,
    unfinished,
)
from interp.runs import runs_root

SMALL, LARGE = 168, 320  # pixels of a board


def show() -> None:
    """Draw the page."""
    root = runs_root()
    runs = studies(root)
    if not runs:
        empty(root)
        return
    with frame.section():
        study = choose_study(runs)
        facts(study)
        game = choose_game(study.side)
        with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="filters"):
            label = label_of()
            live = st.toggle(
                "Read the game", value=False, key="live", bind="query-params",
                help="Loads the model and reads this game with the study's probe, dictionary and moves.",
            )  # fmt: skip
        square = choose_square(game)
        reading = None
        with st.container(key="split-board"):
            left, right = st.columns([5, 4] if live else [3, 5], gap="large")
        with left, frame.section():
            reading = rules(study, game, label, square, live=bool(live))
        with right, frame.section("At which layer", "share of squares that a linear probe tells right, other games"):
            squares = st.segmented_control(
                "Squares", ["all", "occupied"], default="all", required=True, key="squares", bind="query-params",
                label_visibility="collapsed", help="Empty squares are most of the board, and easy.",
            )  # fmt: skip
            curves(study, label, str(squares))
        if reading is not None:
            inside(study, game, label, square, reading)
        with frame.section("Interventions of the study", "one square flipped along the probe's direction"):
            edit_table(study)
        unfinished(root)
        state.keep_board()
        frame.python(python(study))
        footer(study, root)


def rules(study: BoardStudy, game: Game, label: str, square: int, *, live: bool) -> Reading | None:
    """Draw the true board, with the model's moves once it was asked; return what it was read as."""
    if not live:
        draw_boards("board-true", [true_board(game)], square, lambda i: pick(game, i), width=LARGE)
        frame.note("The model is loaded when the game is read: turn “Read the game” on.")
        return None
    try:
        reading = read_game(study.run, label, game.moves)
    except Unreadable:
        draw_boards("board-true", [true_board(game)], square, lambda i: pick(game, i), width=LARGE)
        raise
    both = [true_board(game)]
    if not game.over:
        both.append(move_board("Next moves", reading.moves[game.at], legal(game), game))
    draw_boards("board-true", both, square, lambda i: pick(game, i), width=LARGE)
    return reading


def inside(study: BoardStudy, game: Game, label: str, square: int, reading: Reading) -> None:
    """Draw the board as each layer has it, a square changed, and the latents that fire."""
    frame.heading("The board as probes have it", "size: occupied; grey: not sure of the colour; framed: wrong")
    draw_boards(
        "board-probes", probe_boards(game, reading), square, lambda i: pick(game, i), width=SMALL, names=False
    )  # fmt: skip
    if not game.at:
        frame.note("The start is in no game's rows: probes were not fitted on it.")
    with frame.section():
        intervention(study, game, label, square)
    with frame.section():
        latents(study, game, reading)


if __name__ == "__main__":
    show()
