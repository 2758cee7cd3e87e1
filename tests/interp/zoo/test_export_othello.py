"""A trained micro model becomes an embedded one: found by name, measured as its card says, read by its squares."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from interp.data import DataSpec, token_blocks
from interp.data.othello import generate_games, square_names
from interp.data.othello_tokens import game_tokens, vocabulary
from interp.models import ModelHandle, load_model
from interp.zoo import export_othello
from interp.zoo.export_othello import export
from interp.zoo.train_othello import OthelloConfig, build_model, train
from interp.zoo.training import CHECKPOINT, Pace, load_weights
from interp.zoo.write_games import write_games

MICRO = OthelloConfig(side=4, n_layer=2, d_model=16, n_head=2, batch=8)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("package")
    train(MICRO, root / "work", Pace(5), heldout=4)
    folder = root / "zoo" / "othello4"
    export(root / "work", folder, verdict="**Under-trained.**", where="a test", n=50, seed=1)
    return root


@pytest.fixture
def handle(zoo: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> ModelHandle:
    monkeypatch.setattr("interp.models.embedded.files", lambda package: zoo)
    return load_model("othello4", device="cpu")


def test_the_weights_come_back_rounded(zoo: Path, handle: ModelHandle) -> None:
    trained = build_model(MICRO)
    load_weights(trained, zoo / "work" / CHECKPOINT)
    stored = handle.module.state_dict()
    for name, tensor in trained.state_dict().items():
        assert torch.equal(stored[name], tensor.half().float()), name
    assert not torch.equal(trained.transformer.wte.weight, trained.lm_head.weight)  # type: ignore[union-attr,arg-type]


def test_the_two_views_agree(handle: ModelHandle) -> None:
    assert handle.verify() < 1e-4
    assert (handle.n_ctx, handle.d_vocab, handle.bos_id) == (13, 13, 0)
    assert len(handle.sites("resid_post.*")) == 2


def test_squares_are_read_and_shown(handle: ModelHandle) -> None:
    games = generate_games(3, 4, seed=1)
    names = square_names(4)
    for moves, tokens in zip(games.moves, game_tokens(games), strict=True):
        played = [names[move] for move in moves if move >= 0]
        ids = handle.tokens(" ".join(played))
        assert ids[0].tolist() == tokens[: len(played) + 1].tolist()
        assert torch.equal(handle.tokens("".join(played).upper()), ids)
        assert handle.token_strings(ids[0]) == ["<game>", *played]
        assert handle.decode(ids[0]) == " ".join(["<game>", *played])
    assert handle.vocabulary() == vocabulary(4)
    assert handle.tokens("<game> a1", bos=False).tolist() == [[0, 1]]


def test_squares_that_cannot_be_played_are_refused(handle: ModelHandle) -> None:
    for text in ("b2", "a1 e1", "hello"):
        with pytest.raises(ValueError, match=rf"The text '{text}' holds words that this model's vocabulary lacks"):
            handle.tokens(text)


def test_the_card_says_what_is_measured_again(zoo: Path, handle: ModelHandle) -> None:
    card = (zoo / "zoo" / "othello4" / "README.md").read_text(encoding="utf-8")
    found = export_othello._measure_embedded("othello4", 50, 1)
    said = re.search(r"top-1 legal \| ([\d.]+)%", card)
    assert said
    assert float(said[1]) / 100 == pytest.approx(found["top1_legal"], abs=1e-6)
    assert f"{found['loss']:.4f} nats" in card
    assert "**Under-trained.**" in card
    assert "--games 40 --side 4 --n-layer 2 --d-model 16 --n-head 2 --batch 8" in card
    assert "{" not in card
    assert list((zoo / "zoo" / "othello4").glob("model*.safetensors"))


def test_a_second_export_leaves_no_old_shards(zoo: Path) -> None:
    folder = zoo / "zoo" / "othello4"
    (folder / "model-00009-of-00009.safetensors").write_bytes(b"old")
    export(zoo / "work", folder, verdict="**Under-trained.**", where="a test", n=50, seed=1)
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train first"):
        export(tmp_path, tmp_path / "out", verdict="", where="", n=10, seed=1)
    with pytest.raises(ValueError, match="Unknown embedded Othello model 'othello5'"):
        export_othello._measure_embedded("othello5", 10, 1)


def test_written_games_are_read_as_text(handle: ModelHandle, tmp_path: Path) -> None:
    path = tmp_path / "games.jsonl"
    write_games(path, 20, 4, seed=3)
    games = generate_games(20, 4, [3, 0, 3])
    spec = DataSpec(str(path), context=13, across_documents=False)
    blocks = token_blocks(handle, spec)
    assert torch.equal(blocks.tokens, torch.from_numpy(game_tokens(games)))
    assert blocks.keep.sum(1).tolist() == (games.lengths + 1).tolist()
    (tmp_path / "prose.txt").write_text("the cat sat " * 20)
    with pytest.raises(ValueError, match="words that this model's vocabulary lacks"):
        token_blocks(handle, DataSpec(str(tmp_path / "prose.txt"), context=13))
