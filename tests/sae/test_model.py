"""The dictionary itself: old files stay readable and keep their identity, tied encoders, gradients from the source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from interp.config import digest, from_json, to_json
from interp.runs import start_run
from sae.batches import Batch
from sae.code import Code
from sae.config import SaeConfig, TargetConfig, TrainConfig
from sae.model import WEIGHTS, Sae, load_sae
from sae.rules import RULES, Context
from sae.rules.topk import TopK
from sae.training import Training, begin, train, train_together

CONFIG = TrainConfig(tokens=40 * 64, batch=64, lr=3e-3, dead_after=300)
ATOMS = ["unit", "free"]


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


class Sloped(Planted):
    """The same with a gradient."""

    gives = ("gradient",)

    def gradient(self, step: int) -> Tensor:
        return torch.cos(Planted.batch(self, step)) * 3


class Tied(TopK):
    """TopK on the atoms themselves."""

    tied = True


class Steep(TopK):
    """TopK that asks for the gradient and keeps what it was given."""

    needs = ("gradient",)
    seen: ClassVar[list[Tensor | None]] = []

    def encode(self, x: Tensor, sae: Sae, ctx: Context) -> Code:
        self.seen.append(ctx.gradient)
        return super().encode(x, sae, ctx)


@pytest.fixture(autouse=True)
def rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "tied", Tied)
    monkeypatch.setitem(RULES, "steep", Steep)
    Steep.seen.clear()


def fresh(rule: str = "topk", atoms: str = "unit", d_sae: int = 32, k: int = 3) -> Sae:
    return Sae(SaeConfig(12, d_sae, rule, {"k": k}, atoms=atoms))  # type: ignore[arg-type]


def same(a: Training, b: Training) -> bool:
    first, second = a.tensors(), b.tensors()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_plain_dictionary_keeps_the_identity_and_the_file_that_it_had_before_there_were_targets(
    tmp_path: Path,
) -> None:
    config = SaeConfig(12, 32, "topk", {"k": 3})
    old = {"d_in": 12, "d_sae": 32, "rule": "topk", "rule_args": {"k": 3}, "normalise": "scalar", "atoms": "unit"}
    assert to_json(config) == old
    assert digest(config) == "cffa7fca93ccb8b661189aa9bf8895d789e041d2099bd8d2778add0b860a8f28"
    assert from_json(SaeConfig, old) == config
    with start_run("sae", {"sae": old}, slug="t", root=tmp_path) as record:
        Sae(config).save(record)
        record.finish({})
    with safe_open(record.path / WEIGHTS, framework="pt") as file:
        assert sorted(file.keys()) == ["W_dec", "W_enc", "b_dec", "b_enc", "normaliser.scale"]
        assert json.loads(file.metadata()["config"]) == old


def test_a_run_in_the_old_form_is_read(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(32, 12, generator=g), dim=1)
    biases = {"b_enc": torch.randn(32, generator=g), "b_dec": torch.randn(12, generator=g)}
    scale = torch.tensor(2.5)
    old = {"d_in": 12, "d_sae": 32, "rule": "topk", "rule_args": {"k": 3}, "normalise": "scalar", "atoms": "unit"}
    with start_run("sae", {"sae": old}, slug="t", root=tmp_path) as record:
        tensors = {"W_enc": 2 * atoms, "W_dec": atoms, **biases, "normaliser.scale": scale}
        record.save_tensors(WEIGHTS, tensors, {"config": json.dumps(old)})
        record.finish({})
    sae, x = load_sae(record), torch.randn(5, 12, generator=g)
    pre = (x / scale - biases["b_dec"]) @ (2 * atoms).T + biases["b_enc"]
    values, chosen = pre.topk(3)
    z = torch.zeros(5, 32).scatter(1, chosen, values.relu())
    torch.testing.assert_close(sae(x)[0].detach(), scale * (z @ atoms + biases["b_dec"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "transcoder", "d_out": 0}, "d_out must be at least 1, got 0"),
        ({"skip": True}, "skip belongs to the target 'transcoder', not to 'input'"),
        ({"kind": "crosscoder"}, r"needs the width of each block, at least 1, got \[\]"),
        ({"kind": "crosscoder", "blocks": (4, 4, 4), "models": 2}, "models must be 1 or 2 and divide the 3 blocks"),
        ({"kind": "end_to_end", "downstream": -1.0}, "downstream must be 0 or more, got -1"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TargetConfig(**changes)


def test_blocks_have_to_make_up_the_row() -> None:
    with pytest.raises(ValueError, match=r"blocks \[4, 4\] must add up to d_in=12"):
        SaeConfig(12, 32, target=TargetConfig("crosscoder", blocks=(4, 4)))


@pytest.mark.parametrize("atoms", ATOMS)
def test_a_tied_encoder_is_the_atoms_all_along(atoms: str, tmp_path: Path) -> None:
    batches = Planted()
    training = begin(fresh("tied", atoms), batches, CONFIG)
    start, sae = training.sae.W_dec.detach().clone(), training.sae
    fvu = [float(training.advance(batches.batch(step))["fvu"]) for step in range(30)]
    assert sum(fvu[-5:]) < 0.9 * sum(fvu[:5])
    assert sae.W_enc.grad is None
    assert not torch.equal(start, sae.W_dec)
    assert len(training.optimizer.state_dict()["state"]) == 3
    x, _ = sae.normaliser.into(batches.batch(99))
    rows = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    bias = sae.b_enc if atoms == "unit" else sae.b_enc * sae.W_dec.norm(dim=1)
    torch.testing.assert_close(sae.pre(x), (x - sae.b_dec) @ rows.T + bias)
    before = sae.eval()(batches.batch(99))[0].detach()
    with start_run("sae", {"sae": to_json(sae.config)}, slug="t", root=tmp_path) as record:
        sae.save(record)
        record.finish({})
    again = load_sae(record)
    sae.finalise()
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert torch.equal(again.W_enc, again.W_dec)
    torch.testing.assert_close(again(batches.batch(99))[0].detach(), before, rtol=1e-4, atol=1e-5)


def test_a_tied_training_resumes_bit_for_bit() -> None:
    batches = Planted()
    whole, broken = begin(fresh("tied"), batches, CONFIG), begin(fresh("tied"), batches, CONFIG)
    train(whole, batches)
    for step in range(17):
        broken.sae.train()
        broken.advance(batches.batch(step))
    resumed = Training(fresh("tied"), CONFIG)
    resumed.restore(broken.tensors(), {"step": 17})
    train(resumed, batches)
    assert same(whole, resumed)


def test_a_gradient_arrives_in_normalised_units_and_evaluation_has_none() -> None:
    batches = Sloped()
    sae = train(begin(fresh("steep"), batches, CONFIG), batches)
    scale = sae.normaliser.scale
    assert float(scale) != 1
    for step, seen in enumerate(Steep.seen[:5]):
        assert seen is not None
        # d loss / d (x / s) = s d loss / d x
        torch.testing.assert_close(seen, batches.gradient(step) * scale)
    sae(batches.batch(0))
    assert Steep.seen[-1] is None


def test_a_source_without_what_the_rule_needs_is_refused() -> None:
    message = r"The rule 'steep' needs the gradient of the model's loss.*gradient=True.*Planted does not give it"
    with pytest.raises(ValueError, match=message):
        begin(fresh("steep"), Planted(), CONFIG)
    with pytest.raises(ValueError, match=message):
        train(Training(fresh("steep"), CONFIG), Planted())

    class Silent(Sloped):
        gives = ()

    with pytest.raises(ValueError, match="Silent does not give it"):
        begin(fresh("steep"), Silent(), CONFIG)


def test_a_source_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="reads rows of width d_in=16, the source has 12"):
        begin(Sae(SaeConfig(16, 32)), Planted(), CONFIG)


def test_dictionaries_trained_in_one_pass_are_those_trained_alone_bit_for_bit() -> None:
    batches = Sloped()
    short = TrainConfig(tokens=25 * 64, batch=64, lr=1e-3, dead_after=100, aux=0.1)
    asked = [("topk", "unit", 32, 3, CONFIG), ("batch_topk", "free", 48, 2, CONFIG), ("steep", "unit", 16, 4, short)]
    alone = [begin(fresh(*what), batches, config) for *what, config in asked]
    for training in alone:
        train(training, batches)
    read: list[int] = []

    class Counted(Sloped):
        def batch(self, step: int) -> Tensor:
            read.append(step)
            return super().batch(step)

    together = [begin(fresh(*what), batches, config) for *what, config in asked]
    source = Counted()
    trained = train_together(together, source)
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert [sae.training for sae in trained] == [False] * 3
    assert read == list(range(CONFIG.steps)), "each batch is read once"
    x = batches.batch(1000)
    assert all(torch.equal(a.sae(x)[0], b.sae(x)[0]) for a, b in zip(alone, together, strict=True))


def test_one_of_several_goes_on_from_where_it_was() -> None:
    batches = Planted()
    alone = [begin(fresh(k=k), batches, CONFIG) for k in (2, 5)]
    for training in alone:
        train(training, batches)
    first, second = (begin(fresh(k=k), batches, CONFIG) for k in (2, 5))
    for step in range(11):
        second.sae.train()
        second.advance(batches.batch(step))
    train_together([first, second], batches)
    assert same(alone[0], first)
    assert same(alone[1], second)


def test_one_pass_has_one_batch_size_and_a_listener_list_for_each() -> None:
    other = TrainConfig(tokens=40 * 32, batch=32)
    with pytest.raises(ValueError, match=r"share its batches, got sizes \[32, 64\]"):
        train_together([Training(fresh(), CONFIG), Training(fresh(), other)], Planted())


def test_a_batch_may_be_given_by_hand() -> None:
    a, b = begin(fresh(), Planted(), CONFIG), begin(fresh(), Planted(), CONFIG)
    a.advance(Planted().batch(0))
    b.advance(Batch(Planted().batch(0)))
    assert same(a, b)
