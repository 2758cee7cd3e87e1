"""The tuning that removes norms: it resumes to the bit, ends in a plain folder, and leaves attribution exact."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from interp.checkpoint import read_checkpoint
from interp.data import DataSpec
from interp.models import ModelHandle, load_model
from interp.zoo.remove_norms import RemovalConfig, batch_at, rate, remove_norms
from interp.zoo.training import CHECKPOINT

SMALL = RemovalConfig(steps=26, batch=4, context=16, start=2, gaps=(1, 1, 1), lr=1e-3)


@pytest.fixture
def text(tmp_path: Path) -> DataSpec:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog sat on the log. the king and the queen. " * 40)
    return DataSpec(str(path), context=16, heldout=0.2)


@pytest.fixture
def fresh(make_model: Callable[..., ModelHandle], tokenizer: object) -> Callable[[], ModelHandle]:
    return lambda: make_model("gpt2", tokenizer, initializer_range=0.05)


def test_it_ends_in_a_plain_model_without_norms(
    tmp_path: Path, text: DataSpec, fresh: Callable[[], ModelHandle]
) -> None:
    found = remove_norms(fresh(), text, tmp_path / "work", SMALL)
    handle = load_model(str(tmp_path / "work" / "model"))
    assert handle.tokenizer is not None
    assert found["steps"] == 26
    assert found["loss"] == pytest.approx(found["loss_unfolded"], abs=1e-3)
    assert found["dla_removal_error"] < 1e-9 < 0.01 < found["dla_removal_error_before"]
    assert found["dla_sum_error"] < 1e-3
    assert json.loads((tmp_path / "work" / "measured.json").read_text())["loss"] == found["loss"]


@pytest.mark.slow
def test_a_stopped_tuning_ends_with_the_same_bits(
    tmp_path: Path, text: DataSpec, fresh: Callable[[], ModelHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_norms(fresh(), text, tmp_path / "straight", SMALL)

    def interrupted(blocks: torch.Tensor, config: RemovalConfig, step: int) -> torch.Tensor:
        if step == 9:  # in the middle of the removals
            os.kill(os.getpid(), signal.SIGINT)
        return batch_at(blocks, config, step)

    with monkeypatch.context() as stopping:
        stopping.setattr("interp.zoo.remove_norms.batch_at", interrupted)
        first = remove_norms(fresh(), text, tmp_path / "legs", SMALL)
    assert first["steps"] == 10
    assert "loss" not in first
    assert remove_norms(fresh(), text, tmp_path / "legs", SMALL)["steps"] == 26
    one, other = (read_checkpoint(tmp_path / name / CHECKPOINT)[0] for name in ("straight", "legs"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ValueError, match="another lr"):
        remove_norms(fresh(), text, tmp_path / "legs", replace(SMALL, lr=2e-3))


def test_the_control_keeps_the_norms(tmp_path: Path, text: DataSpec, fresh: Callable[[], ModelHandle]) -> None:
    found = remove_norms(fresh(), text, tmp_path / "work", replace(SMALL, steps=3), control=True)
    assert found["dla_removal_error"] > 0.01
    assert load_model(str(tmp_path / "work" / "model")).module.config.layer_norm_epsilon < 1e-3


def test_too_few_steps_are_refused(tmp_path: Path, text: DataSpec, fresh: Callable[[], ModelHandle]) -> None:
    with pytest.raises(ValueError, match="steps must be above 23"):
        remove_norms(fresh(), text, tmp_path / "work", replace(SMALL, steps=23))


def test_the_rate_rises_and_falls_to_its_end() -> None:
    config = RemovalConfig()
    rates = [rate(step, 300, config) for step in range(301)]
    assert rates[0] == pytest.approx(1 / 20)
    assert max(rates) == pytest.approx(1, abs=1e-3)
    assert rates[300] == pytest.approx(0.5)
    assert all(a >= b for a, b in pairwise(rates[20:]))
