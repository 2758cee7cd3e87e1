"""The loop that trains embedded models: it resumes to the bit, stops when asked, and refuses another recipe."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.checkpoint import read_checkpoint
from interp.data.othello import Games
from interp.zoo import train_othello
from interp.zoo.train_othello import OthelloConfig, train
from interp.zoo.training import CHECKPOINT, Pace, build_gpt2, fit, load_weights, rate

MICRO = OthelloConfig(side=4, n_layer=2, d_model=16, n_head=2, batch=8)


def weights(work: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(work / CHECKPOINT)[0]


Stop = Callable[[int], None]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """`stop_after(n)` sends Ctrl-C while the n-th step of the run is computed."""
    games_at = train_othello.games_at
    last = 0

    def interrupted(config: OthelloConfig, step: int) -> Games:
        if step + 1 == last:
            os.kill(os.getpid(), signal.SIGINT)
        return games_at(config, step)

    def stop(steps: int) -> None:
        nonlocal last
        last = steps

    monkeypatch.setattr(train_othello, "games_at", interrupted)
    return stop


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_stopped_training_ends_with_the_same_bits(tmp_path: Path, stop_after: Stop) -> None:
    assert train(MICRO, tmp_path / "straight", Pace(6), heldout=4)["step"] == 6
    handler = signal.getsignal(signal.SIGINT)
    stop_after(3)
    assert train(MICRO, tmp_path / "legs", Pace(6), heldout=4)["step"] == 3  # the step in hand is finished
    assert signal.getsignal(signal.SIGINT) is handler
    assert not same(tmp_path / "straight", tmp_path / "legs")
    stop_after(0)
    assert train(MICRO, tmp_path / "legs", Pace(6), heldout=4)["step"] == 6
    assert same(tmp_path / "straight", tmp_path / "legs")
    assert "model.lm_head.weight" in weights(tmp_path / "legs")


def test_more_steps_before_the_fall_continue_the_run(tmp_path: Path, stop_after: Stop) -> None:
    stop_after(3)
    train(MICRO, tmp_path / "longer", Pace(400), heldout=4)
    stop_after(6)
    train(MICRO, tmp_path / "longer", Pace(1000), heldout=4)
    train(MICRO, tmp_path / "straight", Pace(1000), heldout=4)
    assert same(tmp_path / "straight", tmp_path / "longer")


def test_no_time_leaves_a_checkpoint(tmp_path: Path) -> None:
    assert train(MICRO, tmp_path, Pace(10, minutes=0), heldout=4)["step"] == 0
    assert read_checkpoint(tmp_path / CHECKPOINT)[1]["steps"] == 10


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    train(MICRO, tmp_path, Pace(1), heldout=4)
    with pytest.raises(ValueError, match=r"was trained with another batch, seed \(8, 0\); use that, or another folder"):
        train(replace(MICRO, seed=1, batch=4), tmp_path, Pace(2), heldout=4)


def test_the_log_says_how_far_and_how_well(tmp_path: Path) -> None:
    train(MICRO, tmp_path, Pace(8, log_every=2, evaluate_every=4), heldout=4)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert [line["games"] for line in lines] == [16, 32, 48, 64]
    assert ["heldout" in line for line in lines] == [False, True, False, True]
    assert lines[-1]["hours_left"] == 0


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    """`tiny` ties its head to the embedding."""
    model: Any = build_gpt2(13, 13, 16, 1, 2, seed=0)
    tokens = torch.arange(13)[None]

    def loss_at(step: int) -> torch.Tensor:
        return model(input_ids=tokens.roll(step)).logits.logsumexp(-1).mean()

    fit(model, 1e-2, loss_at, dict, tmp_path, Pace(3), per_step=("tokens", 13), recipe={})
    assert "model.lm_head.weight" not in weights(tmp_path)
    again: Any = build_gpt2(13, 13, 16, 1, 2, seed=1)
    assert load_weights(again, tmp_path / CHECKPOINT)["step"] == 3
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert set(rates[99:650]) == {1.0}
    assert rates[-1] == pytest.approx(1 / 350)
