"""The training loop: schedule, resume, interruption, and numbers that listeners cannot change."""

from __future__ import annotations

import inspect
import random
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp.checkpoint import read_checkpoint
from interp.config import to_json
from interp.runs import start_run
from sae.config import SaeConfig, TrainConfig, default_k, default_lr
from sae.initialise import geometric_median, initialise
from sae.listeners import CHECKPOINT, Checkpoint, RunLog
from sae.model import Sae, load_sae
from sae.rules import RULES
from sae.training import Training, begin, train

CONFIG = TrainConfig(tokens=60 * 64, batch=64, lr=3e-3, dead_after=300)


class Planted:
    """Batches of a planted dictionary, a pure function of the step."""

    d_in = 12

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(99)
        self.atoms = torch.nn.functional.normalize(torch.randn(20, self.d_in, generator=g), dim=1)

    def batch(self, step: int) -> Tensor:
        g = torch.Generator().manual_seed(step)
        on = torch.rand(64, 20, generator=g) < 0.15
        return (on * torch.rand(64, 20, generator=g)) @ self.atoms + 1.0

    def gradient(self, step: int) -> Tensor:
        return torch.randn(64, self.d_in, generator=torch.Generator().manual_seed(step + 1_000_000))


def fresh(rule: str = "topk", atoms: str = "unit") -> Sae:
    args = {"k": 4} if "k" in inspect.signature(RULES[rule]).parameters else {}
    return Sae(SaeConfig(12, 32, rule, args, atoms=atoms))  # type: ignore[arg-type]


def same(a: Training, b: Training) -> bool:
    first, second = a.tensors(), b.tensors()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class StopAt:
    """A listener that presses Ctrl-C at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, training: Training, metrics: object) -> None:
        if training.step == self.step:
            signal.raise_signal(signal.SIGINT)

    def on_stop(self, training: Training) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(20))
def test_a_training_resumed_after_any_step_is_the_unbroken_one_bit_for_bit(trial: int, tmp_path: Path) -> None:
    batches = Planted()
    whole = begin(fresh(), batches, CONFIG)
    train(whole, batches)
    broken_at = random.Random(trial).randrange(1, CONFIG.steps)
    record = start_run("sae", {"trial": trial}, slug="t", root=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(begin(fresh(), batches, CONFIG), batches, [Checkpoint(record), StopAt(broken_at)])
    resumed = Training(fresh(), CONFIG)
    checkpoint = Checkpoint(record)
    assert checkpoint.restore(resumed)
    assert resumed.step == broken_at
    train(resumed, batches, [checkpoint])
    assert same(whole, resumed)
    assert (record.path / CHECKPOINT).exists(), "until the weights are safe elsewhere"
    checkpoint.discard()
    assert not (record.path / CHECKPOINT).exists()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("atoms", ["unit", pytest.param("free", marks=pytest.mark.slow)])
def test_every_rule_resumes_bit_for_bit(rule: str, atoms: str, tmp_path: Path) -> None:
    batches = Planted()
    whole = begin(fresh(rule, atoms), batches, CONFIG)
    train(whole, batches)
    record = start_run("sae", {}, slug="t", root=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(begin(fresh(rule, atoms), batches, CONFIG), batches, [Checkpoint(record), StopAt(23)])
    resumed = Training(fresh(rule, atoms), CONFIG)
    assert Checkpoint(record).restore(resumed)
    train(resumed, batches)
    assert same(whole, resumed)


def test_ctrl_c_in_the_last_step_finishes(tmp_path: Path) -> None:
    whole = begin(fresh(), Planted(), CONFIG)
    assert not train(whole, Planted(), [StopAt(CONFIG.steps)]).training


def test_a_second_ctrl_c_does_not_wait_and_a_torn_step_is_not_saved(tmp_path: Path) -> None:
    record = start_run("sae", {}, slug="t", root=tmp_path)
    checkpoint = Checkpoint(record)
    training = begin(fresh(), Planted(), CONFIG)
    step = training.optimizer.step

    def torn() -> None:
        step()
        if training.step == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    training.optimizer.step = torn  # type: ignore[method-assign]
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(training, Planted(), [checkpoint])
    assert signal.getsignal(signal.SIGINT) == handler
    assert training.step == 5
    assert not checkpoint.path.exists()


def test_every_listener_hears_of_the_end_whatever_the_others_raise(tmp_path: Path) -> None:
    heard = []

    class Broken(StopAt):
        def on_stop(self, training: Training) -> None:
            heard.append("broken")
            raise OSError("full")

    class Last(StopAt):
        def on_stop(self, training: Training) -> None:
            heard.append("last")

    with pytest.raises(OSError, match="full"):
        train(begin(fresh(), Planted(), CONFIG), Planted(), [Broken(0), Last(0)])
    assert heard == ["broken", "last"]


def test_log_of_a_resumed_training_has_every_step_once(tmp_path: Path) -> None:
    batches = Planted()
    record = start_run("sae", {}, slug="t", root=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(begin(fresh(), batches, CONFIG), batches, [RunLog(record, every=1), Checkpoint(record), StopAt(25)])
    record.log(26, fvu=0.0)  # a row that was written after the checkpoint
    resumed, checkpoint = Training(fresh(), CONFIG), Checkpoint(record)
    checkpoint.restore(resumed)
    train(resumed, batches, [RunLog(record, every=1), checkpoint])
    assert [row["step"] for row in record.metrics()] == list(range(1, CONFIG.steps + 1))


def test_listeners_change_no_number(tmp_path: Path) -> None:
    batches = Planted()
    alone, heard = begin(fresh(), batches, CONFIG), begin(fresh(), batches, CONFIG)
    record = start_run("sae", {}, slug="t", root=tmp_path)
    train(alone, batches)
    train(heard, batches, [RunLog(record, every=3), Checkpoint(record, seconds=0)])
    assert same(alone, heard)


def test_checkpoint_says_its_step_and_its_kernels(tmp_path: Path) -> None:
    record = start_run("sae", {}, slug="t", root=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(begin(fresh(), Planted(), CONFIG), Planted(), [Checkpoint(record), StopAt(7)])
    meta = read_checkpoint(record.path / CHECKPOINT)[1]
    assert meta["step"] == 7
    assert set(meta["kernels"].values()) == {"sparse"}, "on a CPU there is one kind of kernels"


def test_training_outside_the_main_thread_works() -> None:
    result: list[Sae] = []
    batches = Planted()
    worker = threading.Thread(target=lambda: result.append(train(begin(fresh(), batches, CONFIG), batches)))
    worker.start()
    worker.join()
    assert not result[0].training


def test_rate_rises_stays_and_falls_to_nothing() -> None:
    training = Training(fresh(), TrainConfig(tokens=100 * 64, batch=64, lr=1.0, warmup=0.1, decay=0.2))
    rates = []
    for step in range(101):
        training.step = step
        rates.append(training.lr)
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:81] == pytest.approx([1.0] * 71)
    assert rates[100] == 0.0
    assert rates[90] == pytest.approx(0.5)


def test_gradient_along_an_atom_never_reaches_adam() -> None:
    training = begin(fresh(), Planted(), CONFIG)
    seen = []
    step = training.optimizer.step
    training.optimizer.step = lambda: (seen.append((training.sae.W_dec.grad * training.sae.W_dec).sum(1)), step())[1]  # type: ignore
    for i in range(5):
        training.advance(Planted().batch(i))
        assert torch.allclose(training.sae.W_dec.norm(dim=1), torch.ones(32), atol=1e-6)
    assert max(float(inner.detach().abs().max()) for inner in seen) < 1e-6


def test_silence_counts_rows_and_resets_when_a_latent_fires() -> None:
    training = begin(fresh(), Planted(), CONFIG)
    training.silent += 5
    training.sae.b_enc.data[::2] -= 100
    x, _ = training.sae.normaliser.into(Planted().batch(0))
    fired = training.sae.encode_normalised(x).fired()
    training.advance(Planted().batch(0))
    assert fired.any()
    assert (~fired).any()
    assert (training.silent[fired] == 0).all()
    assert (training.silent[~fired] == 5 + 64).all()


def test_infinite_activations_stop_the_training_with_advice() -> None:
    training = begin(fresh(), Planted(), CONFIG)
    x = Planted().batch(0)
    x[3, 4] = torch.inf
    before = {name: value.clone() for name, value in training.tensors().items()}
    with pytest.raises(ValueError, match=r"The loss became (nan|inf) at step 0.*mechscope capture"):
        training.advance(x)
    assert all(torch.equal(before[name], value) for name, value in training.tensors().items())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("atoms", ["unit", pytest.param("free", marks=pytest.mark.slow)])
def test_saved_dictionary_gives_the_same_codes(rule: str, atoms: str, tmp_path: Path) -> None:
    batches = Planted()
    sae = train(begin(fresh(rule, atoms), batches, CONFIG), batches)
    with start_run("sae", {"sae": to_json(sae.config)}, slug="t", root=tmp_path) as record:
        sae.save(record)
        record.finish({})
    again, x = load_sae(record), batches.batch(1000)
    with torch.no_grad():
        assert torch.equal(again.encode(x).dense(), sae.encode(x).dense())
        assert torch.equal(again(x)[0], sae(x)[0])


def test_a_dictionary_saved_before_its_lengths_are_folded_in_has_unit_atoms(tmp_path: Path) -> None:
    training = begin(fresh(atoms="free"), Planted(), CONFIG)
    training.advance(Planted().batch(0))
    sae, x = training.sae.eval(), Planted().batch(1000)
    assert float(sae.W_dec.detach().norm(dim=1).max()) < 0.2
    with start_run("sae", {"sae": to_json(sae.config)}, slug="t", root=tmp_path) as record:
        sae.save(record)
        record.finish({})
    again = load_sae(record)
    assert torch.allclose(again.W_dec.norm(dim=1), torch.ones(32), atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(again(x)[0], sae(x)[0], atol=1e-5)


def test_geometric_median_is_a_minimum_and_survives_rows_on_it() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(60, 5, generator=g), torch.zeros(30, 5)]).double()
    centre = geometric_median(x)

    def total(c: Tensor) -> float:
        return float((x - c).norm(dim=1).sum())

    for _ in range(50):
        assert total(centre) <= total(centre + 0.01 * torch.randn(5, generator=g, dtype=torch.float64)) + 1e-6
    assert torch.isfinite(geometric_median(torch.ones(10, 5))).all()


def test_initial_encoder_is_tied_and_atoms_have_unit_length() -> None:
    sae = fresh()
    initialise(sae, Planted().batch(0), seed=3)
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(32))
    x, _ = sae.normaliser.into(Planted().batch(1))
    assert float((x - sae.b_dec.detach()).square().mean()) == pytest.approx(1.0, rel=0.3)


def test_free_atoms_start_short_and_tied() -> None:
    sae = fresh(atoms="free")
    initialise(sae, Planted().batch(0), seed=3)
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.full((32,), 0.1))


def test_a_gradient_above_the_limit_is_shortened_and_its_own_norm_reported() -> None:
    norms = {}
    for clip in (1e-3, 1e3):
        training = begin(fresh(), Planted(), TrainConfig(tokens=6400, batch=64, clip=clip, aux=0.0))
        norms[clip] = float(training.advance(Planted().batch(0))["grad_norm"])
        left = torch.stack([p.grad.norm() for p in training.sae.parameters() if p.grad is not None]).norm()
        assert float(left) == pytest.approx(min(clip, norms[clip]), rel=1e-3)
    assert norms[1e-3] == pytest.approx(norms[1e3])
    assert norms[1e3] > 1e-3


def test_a_constant_sample_is_refused() -> None:
    with pytest.raises(ValueError, match=r"spread must be finite and above 0.*got 0"):
        initialise(fresh(), torch.ones(10, 12))


def test_defaults_follow_the_width() -> None:
    assert default_k(768, 24576) == 32
    assert default_k(64, 5) == 5
    assert default_lr(2**14, 100_000) == pytest.approx(2e-4)
    assert default_lr(2**12, 100_000) == pytest.approx(4e-4)
    assert default_lr(2**14, 10) == pytest.approx(2e-3)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens must be at least batch=2048, got 10"):
        TrainConfig(tokens=10)
