"""What the Board page computes when it is asked: the probe's boards of a game, its latents, moves, and an intervention.

Discs are black and white here, whatever the probe's labels are: `mine` is turned into a colour by who moves, or by
counting, as the label says. Model libraries are imported inside of the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from app.widgets.loaded import changed, load_model_of, one_sentence
from interp.runs import Run, open_run

if TYPE_CHECKING:
    from interp.data.othello import Games

EMPTY, BLACK, WHITE = 0, 1, 2
"""States of a square on the page."""
TURN, PARITY, COLOUR = "turn", "parity", "colour"
LABELS = {TURN: "side to move", PARITY: "counting moves", COLOUR: "black and white"}
"""Labels of the study's probes, and what their choice is called."""
MODES = {"median": "to the usual margin", "negate": "to the same margin, reversed", "random": "a random direction"}
"""Edits that the page offers."""
SHOWN = 12
"""Latents listed."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A game as the model has it, at every position."""

    sites: list[str]
    """Where the probe reads."""
    boards: NDArray[np.float64]
    """[position site square state] probabilities; states are empty, black, white."""
    moves: NDArray[np.float64]
    """[position square] probability of each next move."""
    active: list[dict[int, float]]
    """{latent: value} of each position, strongest first; {} without a dictionary."""
    dictionary: str
    """Where the dictionary reads; "" without one."""


@dataclass(frozen=True, eq=False)
class Changed:
    """What the model makes of a changed square."""

    before: NDArray[np.float64]
    """[square] probability of each move without the edit."""
    after: NDArray[np.float64]
    """[square] the same with it."""
    legal_before: NDArray[np.bool_]
    """[square] legal on the true board."""
    legal_after: NDArray[np.bool_]
    """[square] legal on the changed board."""
    wrong: tuple[int, int, int]
    """Wrong moves: of the model on the true board; on the changed board without the edit; and with it."""
    share: dict[str, float]
    """Length of what was added at each site, as a share of the activation's."""


def states(label: str, games: Games) -> NDArray[np.int64]:
    """Return [position 3]: which class of a probe of `label` is empty, black, white at each position of one game."""
    n = games.legal.shape[1]
    if label == COLOUR:
        return np.tile([0, 1, 2], (n, 1))
    black = games.black_moves[0] if label == TURN else np.arange(n) % 2 == 0
    return np.where(black[:, None], [0, 1, 2], [0, 2, 1])


def read_game(run: Run, label: str, moves: Sequence[int]) -> Reading:
    """Return the reading of a game of `moves`.

    Raises:
        Unreadable: the model, the probe or the dictionary cannot be loaded; says what to do.
    """
    with one_sentence():
        return _read_game(str(run.root), run.ref, changed(run), label, tuple(moves))


def change_square(
    run: Run, label: str, moves: Sequence[int], square: int, target: int, sites: Sequence[str], mode: str
) -> Changed:
    """Return what the model says when the last position's square is turned into `target` (empty, black, white).

    Raises:
        Unreadable: as `read_game`, or the square has that state already.
    """
    with one_sentence():
        return _change(str(run.root), run.ref, changed(run), label, tuple(moves), square, target, tuple(sites), mode)


@cache
def _token_squares(side: int) -> NDArray[np.int64]:
    from interp.data.othello_tokens import token_squares

    return token_squares(side)[1:]


def _by_square(values: Any, side: int) -> Any:
    """Return [... square] of [... token], 0 in the centre."""
    found = np.zeros((*values.shape[:-1], side * side), dtype=values.dtype)
    found[..., _token_squares(side)] = values[..., 1:]
    return found


@st.cache_data(max_entries=64, show_spinner="Reading the game…")
def _read_game(root: str, ref: str, modified: int, label: str, moves: tuple[int, ...]) -> Reading:  # noqa: ARG001
    import torch

    from app.studies.board.saving import load_board, load_dictionary
    from interp.data.othello import replay
    from interp.data.othello_tokens import game_tokens
    from interp.hooks import capture

    run = open_run(ref, Path(root))
    side, probe = load_board(run, label)
    own = load_dictionary(run)
    model = load_model_of(run)
    games = replay(np.array([moves], dtype=np.int64).reshape(1, -1), side)
    tokens = torch.from_numpy(game_tokens(games))[:, : len(moves) + 1]
    wanted = [*probe.sites, *([own[0]] if own and own[0] not in probe.sites else [])]
    with torch.inference_mode():
        with capture(model, wanted) as cached:
            logits = model.logits(tokens)[0].float().cpu()
        x = torch.stack([cached[site][0].float().cpu() for site in probe.sites], 1)
        found = probe.probabilities(x).double().numpy()
        active = _active(own[1], cached[own[0]][0].float().cpu()) if own else [{}] * (len(moves) + 1)
    order = states(label, games)[: len(moves) + 1]
    boards = np.stack([found[t][..., order[t]] for t in range(len(order))])
    chances = logits.softmax(-1).double().numpy()
    return Reading(
        list(map(str, probe.sites)), boards, _by_square(chances, side), active, str(own[0]) if own else ""
    )  # fmt: skip


def _active(sae: Any, rows: Any) -> list[dict[int, float]]:
    found = []
    for row in sae.encode(rows).dense():
        order = row.abs().argsort(descending=True)
        found.append({int(i): float(row[i]) for i in order if float(row[i])})
    return found


@st.cache_data(max_entries=64, show_spinner="Changing the square…")
def _change(
    root: str, ref: str, modified: int, label: str, moves: tuple[int, ...], square: int, target: int,  # noqa: ARG001
    sites: tuple[str, ...], mode: str,
) -> Changed:  # fmt: skip
    from dataclasses import replace

    from app.studies.board.cases import one_case, wrong_moves
    from app.studies.board.intervening import Edit, Editor
    from app.studies.board.positions import Positions
    from app.studies.board.saving import load_board
    from interp.data.othello import replay
    from interp.sites import Site

    run = open_run(ref, Path(root))
    side, probe = load_board(run, label)
    model = load_model_of(run)
    games = replay(np.array([moves], dtype=np.int64), side)
    kept = np.zeros(games.legal.shape, dtype=bool)
    kept[0, len(moves)] = True
    rules, own = states(TURN, games)[len(moves)], states(label, games)[len(moves)]
    case = one_case(Positions(games, kept), 0, square, int(rules[target]))
    before = int(np.flatnonzero(rules == case.source[0])[0])
    edited = replace(case, source=own[[before]], target=own[[target]])
    editor = Editor(model, probe, edited)
    done = editor.run(Edit(mode, tuple(Site.parse(site) for site in sites)))
    wrong = [
        int(wrong_moves(logits, legal)[0])
        for logits, legal in (
            (editor.clean_logits, case.before), (editor.clean_logits, case.after), (done.logits, case.after)
        )
    ]  # fmt: skip
    clean, after = (logits[0].softmax(-1).double().numpy() for logits in (editor.clean_logits, done.logits))
    return Changed(
        _by_square(clean, side),
        _by_square(after, side),
        _by_square(case.before[0], side),
        _by_square(case.after[0], side),
        (wrong[0], wrong[1], wrong[2]),
        {str(site): float(value[0]) for site, value in done.shares.items()},
    )
