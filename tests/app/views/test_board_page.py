"""Board: a game by the rules, boards by probes, a square changed; what is wrong with a game or a run is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.studies.board.positions import COLOUR, PARITY, TURN, read, rows_of
from app.studies.board.saving import load_board
from app.widgets.artefacts import Unreadable
from app.widgets.board_drawing import Board
from app.widgets.board_game import drawn_game, game_text, read_moves
from app.widgets.board_live import change_square, read_game, states
from interp.data.othello import bits, generate_games, replay, square_names
from interp.data.othello_tokens import game_tokens, token_squares
from interp.models import ModelHandle
from interp.runs import Run
from tests.board_runs import OPTIONS, save_othello_folder, write_board_run

SIDE = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ModelHandle]:
    """A study whose model can be loaded; not to be changed."""
    folder = tmp_path_factory.mktemp("othello")
    return write_board_run(folder / "runs", save_othello_folder(folder / "model"))


@pytest.fixture
def root(made: tuple[Run, ModelHandle]) -> Path:
    return made[0].root


def drawn(at, key: str) -> dict:
    """Return what the board component of this key draws."""
    found = [one.proto for one in at.get("bidi_component") if key in one.proto.id]
    assert found, key
    return json.loads(found[0].json if found[0].json else found[0].mixed.json)


def pages_boards(at) -> list[dict]:
    """Return every board of the page, in their order."""
    boards = []
    for one in at.get("bidi_component"):
        data = json.loads(one.proto.json or one.proto.mixed.json)
        boards += data.get("boards", [])
    return boards


def test_moves_are_read_with_and_without_spaces_and_refused_with_a_sentence() -> None:
    names = square_names(6)
    moves = drawn_game(6, 3)
    assert read_moves(" ".join(names[move] for move in moves), 6) == moves
    assert read_moves(game_text(moves, 6).upper(), 6) == moves
    assert read_moves("", 6) == []
    for text, said in (
        ("d5 h9", "h9 is no square"),
        ("d5 g1", "g1 is no square"),
        ("hello", "holds something that is no square"),
        ("d5 d5", "Move 2, d5, is not legal"),
        ("a1", "Move 1, a1, is not legal"),
        ("d5" * 40, "at most 32 moves"),
    ):
        with pytest.raises(ValueError, match=said):
            read_moves(text, 6)


def test_the_page_opens_without_the_model_and_shows_the_board_of_the_rules(root: Path, open_page, text_of) -> None:
    at = open_page(root, "board")
    assert not at.exception
    assert "ms-problem" not in text_of(at)
    boards = pages_boards(at)
    assert [board["title"] for board in boards] == ["The board"]
    moves = drawn_game(SIDE, 0)
    t = int(at.query_params["t"][0]) if isinstance(at.query_params["t"], list) else int(at.query_params["t"])
    games = replay(np.array([moves]), SIDE)
    held = games.absolute()[0, t]
    squares = boards[0]["squares"]
    assert [one["size"] for one in squares] == (held > 0).astype(float).tolist()
    assert [one["white"] for one in squares] == (held == 2).astype(float).tolist()
    legal = bits(games.legal[0, t : t + 1], SIDE)[0]
    assert [one["mark"] == "legal" for one in squares] == legal.tolist()
    assert [one["mark"] == "last" for one in squares].index(True) == moves[t - 1]


def test_the_game_read_shows_every_layer_and_marks_what_is_wrong(made: tuple[Run, ModelHandle], open_page) -> None:
    at = open_page(made[0].root, "board", live="true", t=4)
    assert not at.exception
    boards = pages_boards(at)
    assert [board["title"] for board in boards] == [
        "The board", "Next moves", "embeddings", "after block 1", "after block 2",
    ]  # fmt: skip
    reading = read_game(made[0], TURN, drawn_game(SIDE, 0))
    held = replay(np.array([drawn_game(SIDE, 0)]), SIDE).absolute()[0, 4]
    for index, board in enumerate(boards[2:]):
        wrong = reading.boards[4, index].argmax(-1) != held
        assert [one["wrong"] for one in board["squares"]] == wrong.tolist()
        said = "no square wrong" if not wrong.any() else f"{wrong.sum()} wrong"
        assert board["aside"] == said


def test_the_reading_is_that_of_probe_model_and_dictionary(made: tuple[Run, ModelHandle]) -> None:
    run, handle = made
    moves = drawn_game(SIDE, 1)
    games = replay(np.array([moves]), SIDE)
    reading = read_game(run, TURN, moves)
    side, probe = load_board(run)
    assert side == SIDE
    positions = rows_of(games)
    wanted = probe.probabilities(read(handle, probe.sites, positions)).numpy()
    for row, t in enumerate(positions.move):
        black = games.black_moves[0, t]
        order = [0, 1, 2] if black else [0, 2, 1]
        np.testing.assert_allclose(reading.boards[t], wanted[row][..., order], atol=1e-5)
    logits = handle.logits(torch.from_numpy(game_tokens(games)))[0].softmax(-1)
    squares = token_squares(SIDE)[1:]
    for t in range(len(moves) + 1):
        np.testing.assert_allclose(reading.moves[t][squares], logits[t, 1:].numpy(), atol=1e-5)
    assert all(len(on) <= OPTIONS.active for on in reading.active)
    assert any(reading.active)


def test_states_follow_the_turn_the_count_or_the_colour() -> None:
    many = generate_games(200, SIDE, 0)
    game = int(np.flatnonzero(many.passed.any(1))[0])
    games = replay(many.moves[[game]].astype(np.int64), SIDE)
    for t in range(games.legal.shape[1]):
        held = games.absolute()[0, t]
        for label, found in ((TURN, games.relative()), (PARITY, games.relative("parity")), (COLOUR, games.absolute())):
            order = states(label, games)[t]
            assert (np.argsort(order)[found[0, t]] == held).all()
    assert (states(TURN, games) != states(PARITY, games)).any()


def test_a_changed_square_is_that_of_the_study(made: tuple[Run, ModelHandle]) -> None:
    run = made[0]
    moves = drawn_game(SIDE, 0)[:5]
    games = replay(np.array([moves]), SIDE)
    held = games.absolute()[0, 5]
    square = int(np.flatnonzero(held == 1)[0])
    found = change_square(run, TURN, moves, square, 2, ["resid_post.0"], "median")
    plain = read_game(run, TURN, moves)
    np.testing.assert_allclose(found.before, plain.moves[5], atol=1e-6)
    assert np.abs(found.after - found.before).max() > 1e-6
    assert (found.legal_before == bits(games.legal[0, 5:6], SIDE)[0]).all()
    assert list(found.share) == ["resid_post.0"]
    # Black and white are told apart along another direction than mine and theirs.
    assert not np.allclose(change_square(run, COLOUR, moves, square, 2, ["resid_post.0"], "median").after, found.after)
    with pytest.raises(Unreadable, match="already"):
        change_square(run, TURN, moves, square, 1, ["resid_post.0"], "median")


def test_a_chosen_square_is_changed_and_the_count_is_said(root: Path, open_page, text_of) -> None:
    moves = drawn_game(SIDE, 0)
    held = replay(np.array([moves]), SIDE).absolute()[0, 4]
    square = square_names(SIDE)[int(np.flatnonzero(held == 2)[0])]
    at = open_page(root, "board", live="true", t=4, sq=square)
    assert not at.exception
    text = text_of(at)
    assert f"With {square} black, <b>" in text
    titles = [board["title"] for board in pages_boards(at)]
    assert titles[-3:] == ["Before", "Before, by the changed board", "After the edit"]
    at.query_params["sq"] = "none"
    assert "No square is chosen yet" in text_of(at.run())


def test_a_game_that_is_typed_is_taken_or_refused(root: Path, open_page, text_of) -> None:
    at = open_page(root, "board")
    box = next(one for one in at.text_input if one.key == "game-text")
    names = square_names(SIDE)
    moves = drawn_game(SIDE, 7)[:6]
    box.set_value(" ".join(names[move] for move in moves))
    next(one for one in at.button if one.label == "Take").click()
    at.run()
    assert at.query_params["game"] in (game_text(moves, SIDE), [game_text(moves, SIDE)])
    box = next(one for one in at.text_input if one.key == "game-text")
    box.set_value("a1 a1")
    next(one for one in at.button if one.label == "Take").click()
    at.run()
    assert "is not legal" in text_of(at)
    assert at.query_params["game"] in (game_text(moves, SIDE), [game_text(moves, SIDE)])
    next(one for one in at.button if one.label == "Another game").click()
    at.run()
    assert at.query_params["game"] in (game_text(drawn_game(SIDE, 1), SIDE), [game_text(drawn_game(SIDE, 1), SIDE)])


def test_the_steps_go_on_and_back(root: Path, open_page) -> None:
    at = open_page(root, "board", t=4)
    for key, wanted in (("step-on", "5"), ("step-back", "4"), ("step-back", "3")):
        next(one for one in at.button if one.key == key).click()
        at.run()
        assert at.query_params["t"] in (wanted, [wanted])


def test_an_address_that_means_nothing_is_replaced_with_a_note(root: Path, open_page, text_of) -> None:
    at = open_page(root, "board", game="zz", t=99, sq="<script>", label="shade")
    assert not at.exception
    text = text_of(at)
    assert text.count("The address asked for") == 4
    assert "<script>" not in text


def test_the_end_and_the_start_have_no_change(root: Path, open_page, text_of) -> None:
    for t in (0, len(drawn_game(SIDE, 0))):
        at = open_page(root, "board", live="true", t=t)
        assert not at.exception
        assert "there is nothing to ask" in text_of(at)


def test_an_empty_folder_says_what_to_do(tmp_path: Path, open_page, text_of) -> None:
    at = open_page(tmp_path, "board")
    assert "No board here yet" in text_of(at)
    assert at.code[0].value == "mechscope probe othello6 --study board"


def test_damage_costs_a_sentence(root: Path, tmp_path: Path, open_page, text_of) -> None:
    own = Path(shutil.copytree(root, tmp_path / "runs"))
    folder = next((own / "board").iterdir())
    table = folder / "accuracy.parquet"
    table.write_bytes(b"x" * table.stat().st_size)
    at = open_page(own, "board")
    assert not at.exception
    assert "ms-problem" in text_of(at)
    assert "accuracy.parquet" in text_of(at)


@pytest.mark.slow
def test_other_weights_than_the_studys_are_refused(tmp_path: Path, open_page, text_of) -> None:
    folder = save_othello_folder(tmp_path / "model")
    write_board_run(tmp_path / "runs", folder, replace(OPTIONS, edits=0, latents=0))
    weights = folder / "model.safetensors"
    at = open_page(tmp_path / "runs", "board", live="true", t=4)
    assert "no dictionary" in text_of(at)
    from tests.othello_models import othello_handle

    weights.unlink()
    othello_handle(4, seed=5).module.save_pretrained(folder)  # type: ignore[operator]
    import streamlit as st

    st.cache_resource.clear()
    st.cache_data.clear()
    at = open_page(tmp_path / "runs", "board", live="true", t=4)
    assert not at.exception
    assert "weights" in text_of(at)
    assert "ms-problem" in text_of(at)


def test_a_board_is_drawn_from_numbers_within_bounds() -> None:
    board = Board("x", ["a", "b"], np.array([2.0, np.nan]), np.array([-1.0, 0.5]))
    squares = board.data(main=True, names=False)["squares"]
    assert [(one["size"], one["white"]) for one in squares] == [(1.0, 0.0), (0.0, 0.5)]
