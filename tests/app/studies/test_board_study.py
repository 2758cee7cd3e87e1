"""The board study as a whole, on a random model of the 4x4 board: its tables, its files, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.studies.board import board_config, board_study
from app.studies.board.latents import COLOUR, LEGAL, STABLE, board_marks, train_dictionary
from app.studies.board.positions import TURN, make_positions
from app.studies.board.saving import load_board, load_dictionary
from app.studies.board_options import BoardOptions
from interp.config import from_json, to_json
from interp.data.othello_stability import stable_discs
from interp.data.othello_tokens import legal_tokens, token_squares
from interp.models import ModelHandle
from interp.runs import Run, RunDamaged, open_run, start_run
from tests.othello_models import othello_handle

OPTIONS = BoardOptions(games=60, epochs=1, latents=24, active=4, edits=8, scales=(1.0,))


@pytest.fixture(scope="module")
def handle() -> ModelHandle:
    return othello_handle(4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("board") / "runs"


@pytest.fixture(scope="module")
def trained(handle: ModelHandle, root: Path) -> str:
    """A dictionary of the model, as `mechscope train` leaves one."""
    sae = train_dictionary(torch.randn(64, 16), 20, 3, 0, steps=3)
    config = {"model": to_json(handle.spec), "weights": handle.digest(), "site": "resid_post.0"}
    with start_run("sae", config | {"sae": to_json(sae.config)}, slug="own", root=root) as run:
        sae.save(run)
        run.finish({})
    return run.ref


@pytest.fixture(scope="module")
def study(handle: ModelHandle, root: Path, trained: str) -> Run:
    options = replace(OPTIONS, dictionaries=(trained,))
    heard: list[tuple[int, int, str]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("app.studies.board.latents.STEPS", 20)
        for module in ("accuracy", "moves", "study"):
            patched.setattr(f"app.studies.board.{module}.RESAMPLES", 30)
        with start_run("board", board_config(handle, options), slug="othello4", root=root) as run:
            run.finish(board_study(handle, options, run, lambda *said: heard.append(said)))
    assert all(0 < done <= total for done, total, _ in heard)
    assert len({unit for _, _, unit in heard}) == 5
    return open_run(run.ref, root)


def test_every_subject_label_and_part_has_a_row(study: Run):
    rows = study.table("accuracy.parquet").to_pylist()
    keys = {tuple(row[name] for name in ("subject", "site", "label", "squares", "positions")) for row in rows}
    assert len(keys) == len(rows) == (2 * 3 + 2) * 3 * 2 * 4  # two models at three sites, two commonest
    assert {row["layer"] for row in rows} == {0, 1, 2, None}
    for row in rows:
        if row["games"] > 1:
            assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    # Embeddings are the same tokens whatever the weights do elsewhere, so layer 0 tells about as much shuffled.
    assert {row["counted"] for row in rows if row["positions"] == "all" and row["squares"] == "all"} == {
        16 * int(study.table("moves.parquet").to_pylist()[0]["counted"])
    }


def test_columns_are_compared_with_all_their_baselines(study: Run, trained: str):
    rows = study.table("columns.parquet").to_pylist()
    sources = {row["source"] for row in rows}
    both = {f"{kind}{suffix}" for kind in ("dictionary", "neurons") for suffix in ("", ", shuffled weights")}
    assert sources == both | {"linear probe", trained}
    for row in rows:
        assert row["reconstruction"] is None or row["family"] == COLOUR
        assert row["source"] == "linear probe" or row["null"] is not None
    counts = {row["family"]: row["labels"] for row in rows}
    assert counts == {COLOUR: 48, LEGAL: 12, STABLE: 16}
    latents = study.table("latents.parquet").to_pylist()
    assert {row["source"] for row in latents} == {"dictionary", "dictionary, shuffled weights", trained}
    assert {row["rank"] for row in latents} == {0, 1, 2}


def test_edits_stand_beside_the_null_and_the_true_board(study: Run):
    rows = study.table("edits.parquet").to_pylist()
    by_mode = {(row["change"], row["mode"]) for row in rows}
    modes = ("true board", "none", "median", "negate", "add", "random")
    assert by_mode == {("flip", mode) for mode in modes} | {("remove", mode) for mode in modes[:3]}
    flips = [row for row in rows if row["change"] == "flip" and row["mode"] == "median"]
    assert [(row["reach"], row["first"], row["last"]) for row in flips] == [
        ("one", "resid_pre.0", "resid_pre.0"), ("onward", "resid_pre.0", "resid_post.1"),
        ("one", "resid_post.0", "resid_post.0"), ("onward", "resid_post.0", "resid_post.1"),
        ("one", "resid_post.1", "resid_post.1"),
    ]  # fmt: skip
    assert all(row["cases"] == 8 for row in rows)
    # N squares are named and N are legal, so a false one goes with a missing one.
    assert all(float(row["wrong"] * row["cases"]).is_integer() for row in rows)


def test_probe_and_dictionary_come_back(study: Run):
    side, probe = load_board(study)
    assert side == 4
    assert tuple(probe.weight.shape) == (3, 16, 16, 3)
    assert list(map(str, probe.sites)) == ["resid_pre.0", "resid_post.0", "resid_post.1"]
    other = load_board(study, "colour")[1]
    assert not torch.equal(other.weight, probe.weight)
    found = load_dictionary(study)
    assert found is not None
    site, sae = found
    assert (str(site), sae.d_sae, sae.config.rule_args) == ("resid_post.0", 24, {"k": 4})
    with pytest.raises(ValueError, match="Unknown label 'shade'"):
        load_board(study, "shade")


def test_damaged_files_and_other_runs_are_named(study: Run, root: Path, trained: str):
    with pytest.raises(ValueError, match="of kind 'sae'; a board study"):
        load_board(open_run(trained, root))

    class Broken:
        kind, ref = "board", "board/broken"

        def json(self, name: str) -> object:
            return {"side": 6, "sites": ["resid_pre.0"]}

        def tensors(self, name: str) -> dict[str, np.ndarray]:
            return {"weight_turn": np.zeros((1, 4, 16, 3), dtype=np.float32)}

    with pytest.raises(RunDamaged, match="does not fit board.json"):
        load_board(Broken())  # type: ignore[arg-type]


def test_labels_of_columns_are_the_rules(handle: ModelHandle):
    positions, _ = make_positions(30, 4, 0)
    marks = board_marks(positions)
    legal = legal_tokens(positions.games)[positions.kept]
    assert (marks.values[:, marks.family == LEGAL] == legal[:, 1:]).all()
    assert (marks.square[marks.family == LEGAL] == token_squares(4)[1:]).all()
    tiles = marks.values[:, marks.family == COLOUR].reshape(len(positions), 3, 16)
    assert (tiles.sum(1) == 1).all()
    assert (tiles.argmax(1) == positions.labels(TURN)).all()
    stable = stable_discs(positions.games.mine, positions.games.theirs, 4)[positions.kept]
    assert (marks.values[:, marks.family == STABLE] == stable).all()


def test_a_dictionary_of_rows_in_memory_learns_and_is_repeatable():
    rows = torch.randn(600, 12, generator=torch.Generator().manual_seed(0)).relu()
    one, same, other = (train_dictionary(rows, 32, 4, seed, steps=40) for seed in (0, 0, 1))
    assert torch.equal(one.W_dec, same.W_dec)
    assert not torch.equal(one.W_dec, other.W_dec)
    with torch.no_grad():
        error = (one.forward(rows)[0] - rows).square().sum() / (rows - rows.mean(0)).square().sum()
    assert error < 0.6


def test_options_go_through_json_and_refuse_nonsense():
    options = BoardOptions(layers=(0, 2), dictionaries=("sae/x-12345678",), scales=(1.5,))
    assert from_json(BoardOptions, to_json(options)) == options
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"games": 5}, "games must be 20 or more"),
        ({"epochs": 0}, "epochs must be 1"),
        ({"active": 900}, "active must lie in 1..latents=768"),
        ({"layers": (1, 1)}, "different numbers"),
        ({"scales": (0.0,)}, "above 0"),
        ({"seed": -1}, "seed must be 0"),
    )
    for wrong, said in cases:
        with pytest.raises(ValueError, match=said):
            BoardOptions(**wrong)


def test_what_does_not_fit_is_refused_before_the_work(handle: ModelHandle, gpt2: ModelHandle, root: Path, trained: str):
    with start_run("board", {"a": 1}, slug="x", root=root) as run:
        with pytest.raises(ValueError, match="as othello6"):
            board_study(gpt2, OPTIONS, run)
        with pytest.raises(ValueError, match=r"layers must lie in 0..1"):
            board_study(handle, replace(OPTIONS, layers=(7,)), run)
        with pytest.raises(ValueError, match="resid_post.9"):
            board_study(handle, replace(OPTIONS, site="resid_post.9"), run)
        with pytest.raises(ValueError, match="weights"):
            board_study(othello_handle(4, seed=1), replace(OPTIONS, dictionaries=(trained,)), run)
        run.finish({})
