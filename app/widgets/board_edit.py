"""The Board page's boards: the true one, the probe's by layer, moves; what fires; and one square changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from app.widgets import frame, state
from app.widgets.board_drawing import Board, draw_boards
from app.widgets.board_game import Game
from app.widgets.board_live import BLACK, EMPTY, MODES, SHOWN, WHITE, Changed, Reading, change_square
from app.widgets.board_studies import BoardStudy, layer_label
from app.widgets.heat_map import Axis, chosen
from app.widgets.text import number, safe, share
from interp.data.othello import bits, centre

COLOURS = {EMPTY: "empty", BLACK: "black", WHITE: "white"}
Squares = NDArray[np.float64]


def colours(game: Game) -> NDArray[np.int64]:
    """Return the state of each square here: empty, black, white."""
    return game.games.absolute()[0, game.at].astype(np.int64)


def legal(game: Game) -> NDArray[np.bool_]:
    """Return the legal moves here."""
    return bits(game.games.legal[0, game.at : game.at + 1], game.games.side)[0]


def true_board(game: Game) -> Board:
    """Return the board by the rules, with the last move and the legal ones."""
    held, may = colours(game), legal(game)
    last = game.moves[game.at - 1] if game.at else -1
    marks = ["last" if i == last else "legal" if may[i] else "" for i in range(len(held))]
    tips = [
        f"{name}: {COLOURS[int(held[i])]}{', just played' if i == last else ', legal' if may[i] else ''}"
        for i, name in enumerate(game.names)
    ]
    who = "The game is over" if game.over else f"{'Black' if game.black else 'White'} to move"
    passed = ", after a pass" if bool(game.games.passed[0, game.at]) else ""
    return Board("The board", tips, (held > 0).astype(float), (held == WHITE).astype(float), None, marks,
                 aside=f"{who}{passed}")  # fmt: skip


def probe_boards(game: Game, reading: Reading) -> list[Board]:
    """Return the board as each layer's probe has it, wrong squares framed."""
    held, found = colours(game), []
    for index, site in enumerate(reading.sites):
        chances = reading.boards[game.at, index]
        wrong = chances.argmax(-1) != held
        occupied = chances[:, BLACK] + chances[:, WHITE]
        tips = [
            f"{name}: black {share(chances[i, BLACK])}, white {share(chances[i, WHITE])}, empty "
            f"{share(chances[i, EMPTY])}{'; it is ' + COLOURS[int(held[i])] if wrong[i] else ''}"
            for i, name in enumerate(game.names)
        ]
        white = chances[:, WHITE] / np.maximum(occupied, 1e-9)
        aside = "no square wrong" if not wrong.any() else f"{int(wrong.sum())} wrong"
        found.append(Board(layer_label(site), tips, occupied, white, wrong=wrong, aside=aside))
    return found


def move_board(title: str, chances: Squares, may: NDArray[np.bool_], game: Game) -> Board:
    """Return the probability of each move, with legal ones and what is wrong among the N likeliest."""
    order = np.argsort(-chances, kind="stable")[: int(may.sum())]
    named = np.zeros(len(may), dtype=bool)
    named[order] = True
    marks = ["legal" if may[i] and named[i] else "missing" if may[i] else "false" if named[i] else ""
             for i in range(len(may))]  # fmt: skip
    said = {"legal": ", legal", "missing": ", legal but not among the likeliest", "false": ", not legal", "": ""}
    tips = [f"{name}: {share(float(chances[i]))}{said[marks[i]]}" for i, name in enumerate(game.names)]
    wrong = int((named != may).sum())
    aside = f"{wrong if wrong else 'nothing'} wrong; legal {share(float(chances[may].sum()))}"
    peak = max(float(chances.max()), 1e-9)
    return Board(title, tips, None, None, chances / peak, marks, aside=aside)


def choose_square(game: Game) -> int:
    """Return the square of the address; -1 for none."""

    def read(text: str) -> str | None:
        return text if text in (*game.names, "none") else None

    found, strange = state.settle("sq", read, "none", f"a square of this board ({game.names[0]} to {game.names[-1]})")
    if strange:
        frame.note(strange)
    return game.names.index(str(found)) if found != "none" else -1


def pick(game: Game, square: int) -> None:
    """Write a clicked square into the address."""
    state.put("sq", game.names[square])


def latents(study: BoardStudy, game: Game, reading: Reading) -> None:
    """Write which latents of the study's dictionary are on here, and what each tells."""
    frame.heading("Latents that fire here", f"{reading.dictionary}; what each tells best among equally late positions")
    if not reading.dictionary:
        frame.note("This study trained no dictionary (--board.latents 0).")
        return
    on = list(reading.active[game.at].items())
    if not on:
        frame.note("No latent is on at this position.")
        return
    known, held, may = study.meanings(), colours(game), legal(game)
    rows = ""
    for latent, value in on[:SHOWN]:
        told = known.get(latent, [])
        first = "; ".join(_meaning(row) for row in told[:2]) or "silent in the study"
        holds = _holds(told[0], game, held, may) if told else None
        verdict = "" if holds is None else "true here" if holds else "not so here"
        rows += (
            f'<tr><td class="n">{latent}</td><td class="n">{number(value)}</td><td>{safe(first)}</td>'
            f'<td class="d">{verdict}</td></tr>'
        )
    head = '<tr><th class="n">latent</th><th class="n">value</th><th>what it tells</th><th></th></tr>'
    st.html(f'<div class="ms-scroll ms-narrow"><table class="ms-table">{head}{rows}</table></div>')
    if len(on) > SHOWN:
        frame.note(f"The {SHOWN} strongest of {len(on)}.")


def _meaning(row: dict) -> str:
    what = {"legal": "legal", "stable": "stable"}.get(row["family"], row["state"])
    area = "–" if row["within"] is None else f"{row['within']:.2f}"
    return f"{row['name']} {what} (AUROC {area})"


def _holds(row: dict, game: Game, held: NDArray[np.int64], may: NDArray[np.bool_]) -> bool | None:
    """Return whether what a latent tells best is so here; None for stability, which is not looked up."""
    if row["name"] not in game.names:
        return None
    square = game.names.index(row["name"])
    if row["family"] == "legal":
        return bool(may[square])
    mine = BLACK if game.black else WHITE
    wanted = {"empty": EMPTY, "mine": mine, "theirs": BLACK + WHITE - mine}.get(row["state"])
    return None if wanted is None else bool(held[square] == wanted)


def intervention(study: BoardStudy, game: Game, label: str, square: int) -> None:
    """Draw the controls of the change and what the model makes of it."""
    frame.heading("Change one square", "click a square on any board, then say what it becomes in the stream")
    if game.over or not game.at:
        frame.note("At this position there is nothing to ask: take one after the first move and before the end.")
        return
    if square < 0:
        frame.note("No square is chosen yet.")
        return
    held = int(colours(game)[square])
    targets = [state for state in (BLACK, WHITE, EMPTY) if state != held]
    if square in centre(game.games.side):
        targets = [state for state in targets if state != EMPTY]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="filters-edit"):
        usual = targets.index(BLACK + WHITE - held) if held != EMPTY else 0
        target = _choice("to", f"{game.names[square]} becomes", [COLOURS[one] for one in targets], usual)
        mode = _choice("how", "Move the probe's margin", list(MODES), 0, list(MODES.values()))
        sites = _layers(study)
    if not sites:
        frame.note("No layer is chosen.")
        return
    wanted = next(key for key, name in COLOURS.items() if name == target)
    found = change_square(study.run, label, game.moves[: game.at], square, wanted, sites, mode)
    if not found.legal_after.any():
        frame.note("On the changed board there is no legal move, so nothing can be compared.")
        return
    answer(game, found, square, target)


def _choice(key: str, title: str, ids: Sequence[str], default: int, labels: Sequence[str] | None = None) -> str:
    axis = Axis(key, list(ids), list(labels or ids), title)
    if st.query_params.get(key) not in axis.ids:  # another square has other states
        st.query_params.pop(key, None)
        st.session_state.pop(f"_{key}", None)
    at = chosen(axis, default)
    st.session_state[f"{key}-widget"] = axis.ids[at]
    st.segmented_control(
        title, axis.ids, key=f"{key}-widget", required=True, on_change=state.take, args=(key, f"{key}-widget"),
        format_func=lambda one: axis.labels[axis.ids.index(one)],
    )  # fmt: skip
    return axis.ids[at]


def _layers(study: BoardStudy) -> list[str]:
    """Draw the choice of layers; by default all but the embeddings and the last."""
    usual = study.sites[1:-1] or study.sites
    found = st.pills(
        "Layers", study.sites, selection_mode="multi", default=usual, key=f"layers-{study.run.id}",
        format_func=layer_label, help="Where the stream is changed, at the last position only.",
    )  # fmt: skip
    return [site for site in study.sites if site in (found or [])]


def answer(game: Game, found: Changed, square: int, target: str) -> None:
    """Draw moves before and after, and say how many are wrong on the changed board."""
    true, null, after = found.wrong
    name = game.names[square]
    st.html(
        f'<p class="ms-sentence">With {safe(name)} {safe(target)}, <b>{after}</b> wrong moves after the edit; '
        f"<b>{null}</b> if the model is left alone. On the true board it has {true}.</p>"
    )
    if (found.legal_before == found.legal_after).all():
        frame.note("This change leaves the legal moves as they are: the edit should change nothing, and tells little.")
    boards = [
        move_board("Before", found.before, found.legal_before, game),
        move_board("Before, by the changed board", found.before, found.legal_after, game),
        move_board("After the edit", found.after, found.legal_after, game),
    ]
    draw_boards("moves-after", boards, square, lambda i: pick(game, i), width=290)
    longest = max(found.share.items(), key=lambda one: one[1])
    frame.note(
        "Blue: how likely each move is. Rings: legal, and among as many likeliest moves as are legal; orange rings: "
        "legal and missing; crosses: among them and not legal. What is added is at most "
        f"{share(longest[1])} of the activation's length ({layer_label(longest[0])})."
    )
