"""The choice of kernels: by the clock among those that are right, kept for a resume, never on a CPU."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp.runs import start_run
from sae import backends, kernels
from sae.backends import SPARSE, Backend, Choices, build, current, shape_key, using
from sae.code import Code
from sae.config import SaeConfig, TrainConfig
from sae.listeners import Checkpoint
from sae.model import Sae
from sae.training import Training, begin, train

CPU = torch.device("cpu")


def problem(rows: int = 6, k: int = 3) -> tuple[Code, Tensor]:
    """Return (code, weight [12 5])."""
    g = torch.Generator().manual_seed(0)
    values, indices = torch.randn(rows, 12, generator=g).topk(k)
    return Code(indices, values, 12), torch.randn(12, 5, generator=g)


class Made:
    """Fake kernels: the sparse ones, some of them slow, wrong or broken; counts how often each is made."""

    def __init__(self, slow: tuple[str, ...] = (), wrong: tuple[str, ...] = (), broken: tuple[str, ...] = ()) -> None:
        self.counts: dict[str, int] = {}
        self.builders = {name: self._builder(name, name in slow, name in wrong, name in broken) for name in NAMES}

    def _builder(self, name: str, slow: bool, wrong: bool, broken: bool) -> object:
        def make(device: torch.device) -> Backend:
            self.counts[name] = self.counts.get(name, 0) + 1
            if broken:
                raise RuntimeError("no such instruction")

            def to_rows(code: Code, values: Tensor, weight: Tensor) -> Tensor:
                time.sleep(0.02 if slow else 0.0)
                return SPARSE.to_rows(code, values, weight) * (1.1 if wrong else 1.0)

            return replace(SPARSE, name=name, to_rows=to_rows)

        return make


NAMES = ("sparse", "triton", "dense", "compiled")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.KERNELS, raising=False)


def test_the_fastest_that_is_right_is_taken_once_for_a_shape(caplog: pytest.LogCaptureFixture) -> None:
    made = Made(slow=("sparse", "compiled"), wrong=("dense",))
    choices = Choices(builders=made.builders, timed=("cpu",))  # type: ignore[arg-type]
    code, weight = problem()
    with caplog.at_level(logging.WARNING, "sae.backends"):
        assert choices.backend(code, weight).name == "triton"
    assert "kernels 'dense' are left out: ArithmeticError: off by 0.1 of the result's norm" in caplog.text
    assert choices.taken == {shape_key(code, weight): "triton"}
    assert choices.names == "triton"
    choices.backend(code, weight)
    assert set(made.counts.values()) == {1}


def test_what_does_not_run_is_left_out_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    choices = Choices(builders=Made(slow=("sparse",), broken=NAMES[1:]).builders, timed=("cpu",))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "sae.backends"):
        assert choices.backend(*problem()).name == "sparse"
    assert "kernels 'triton' are left out: RuntimeError: no such instruction" in caplog.text


def test_a_choice_holds_for_shapes_of_the_same_powers_of_two() -> None:
    code, weight = problem(rows=5)
    assert shape_key(code, weight) == "cpu float32 8x4 of 12x5"
    assert shape_key(problem(rows=8)[0], weight) == shape_key(code, weight)
    assert shape_key(problem(rows=9)[0], weight) != shape_key(code, weight)
    assert shape_key(problem(k=9)[0], weight) != shape_key(code, weight)
    assert shape_key(code, weight.double()) != shape_key(code, weight)


def test_a_cpu_has_no_choice() -> None:
    choices = Choices()
    assert choices.names == "sparse"
    assert choices.backend(*problem()) is SPARSE


def test_forced_wins_over_the_clock_and_over_what_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    code, weight = problem()
    choices = Choices("dense")
    choices.taken[shape_key(code, weight)] = "sparse"
    assert choices.backend(code, weight).name == "dense"
    assert choices.taken == {shape_key(code, weight): "dense"}
    monkeypatch.setenv(backends.KERNELS, "dense")
    assert Choices().backend(code, weight).name == "dense"
    assert Choices("auto").backend(code, weight) is SPARSE


def test_unknown_or_impossible_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Unknown kernels 'tritn'; did you mean 'triton'?"):
        Choices("tritn")
    monkeypatch.setenv(backends.KERNELS, "densee")
    with pytest.raises(ValueError, match=r"Unknown kernels in \$MECHSCOPE_KERNELS: 'densee'; did you mean 'dense'?"):
        Choices()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="Kernels 'triton' need Triton and a GPU .cpu here.; MECHSCOPE_KERNELS names"):
        build("triton", CPU)


def test_kernels_are_chosen_for_gradients_in_a_training_only() -> None:
    code, weight = problem()
    seen: list[str] = []

    def to_rows(code: Code, values: Tensor, weight: Tensor) -> Tensor:
        seen.append("ours")
        return SPARSE.to_rows(code, values, weight)

    builders = {"dense": lambda device: replace(SPARSE, name="dense", to_rows=to_rows)}
    kernels.decode(code, weight.requires_grad_())
    assert current() is None
    with using(Choices("dense", builders=builders)) as choices:
        assert current() is choices
        with torch.no_grad():
            kernels.decode(code, weight)
        assert not seen
        kernels.decode(code, weight).sum().backward()
    assert seen == ["ours"]
    assert current() is None


class Rows:
    """Batches that are a function of the step."""

    d_in = 8

    def batch(self, step: int) -> Tensor:
        return torch.randn(32, 8, generator=torch.Generator().manual_seed(step))


def fresh(steps: int) -> Training:
    return begin(
        Sae(SaeConfig(8, 24, "topk", {"k": 2})), Rows(), TrainConfig(tokens=32 * steps, batch=32, lr=1e-2, seed=3)
    )


def test_a_resumed_training_takes_the_kernels_of_its_checkpoint(tmp_path: Path) -> None:
    with start_run("sae", {}, slug="x", root=tmp_path) as record:
        with using(Choices("dense")):
            broken = fresh(6)
            broken.sae.train()
            for step in range(3):
                broken.advance(Rows().batch(step))
            Checkpoint(record).on_stop(broken)
            for step in range(3, 6):
                broken.advance(Rows().batch(step))
        with using(Choices()) as choices:  # nothing is forced now, and on a CPU it would be the sparse kernels
            resumed = Training(Sae(broken.sae.config), broken.config)
            assert Checkpoint(record).restore(resumed)
            assert choices.names == "dense"
            train(resumed, Rows())
        assert choices.names == "dense"
    assert torch.equal(resumed.sae.W_dec, broken.sae.W_dec)


def test_the_dense_kernels_train_what_the_sparse_ones_do() -> None:
    found = []
    for name in ("sparse", "dense"):
        with using(Choices(name)):
            found.append(train(fresh(5), Rows()))
    assert torch.allclose(found[0].W_dec, found[1].W_dec, atol=1e-5)
    assert torch.allclose(found[0].W_enc, found[1].W_enc, atol=1e-5)
    assert torch.allclose(found[0].b_dec, found[1].b_dec, atol=1e-5)
