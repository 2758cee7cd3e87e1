"""p-annealing against its definition: the same code as ReLU, and a penalty that changes form but not level."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.code import Code
from sae.config import TrainConfig
from sae.rules import Context
from sae.rules.p_anneal import EPS, PAnneal
from sae.training import Training


def p_anneal_reference(pre: list[list[float]]) -> Tensor:
    """Return the dense code."""
    return torch.tensor([[max(0.0, value) for value in row] for row in pre])


def penalty_reference(code: Tensor, p: float, scale: float, l1: float) -> float:
    """Return the penalty of a dense code, one entry at a time."""
    each = [[(float(v) + EPS) ** p - EPS**p for v in row if v > 0] for row in code]
    return l1 * scale / code.shape[0] / 4 * sum(map(sum, each))


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(
    atoms: str, training: bool, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, x = uneven(built("p_anneal", atoms=atoms)).train(training), rows(20, seed=3)
    with torch.no_grad():
        assert torch.allclose(sae.encode(x).dense(), p_anneal_reference(preactivations(sae, x)), atol=1e-5)


def test_p_falls_from_1_in_ten_equal_updates() -> None:
    rule = PAnneal(16, 40, p_end=0.2, start=0.5)
    powers = [rule.power(rule.updates(Context(step, 1000))) for step in range(1000)]
    assert set(powers[:500]) == {1.0}
    assert powers[-1] == pytest.approx(0.2)
    assert [round(p, 6) for p in dict.fromkeys(powers)] == [round(1 - 0.08 * n, 6) for n in range(11)]
    assert all(powers[500 + 50 * n] == pytest.approx(1 - 0.08 * (n + 1)) for n in range(10))


@pytest.mark.parametrize("step", [0, 55, 99])
def test_penalty_equals_its_definition(step: int, built: Callable, rows: Callable) -> None:
    sae = built("p_anneal", "none", l1=0.5, warmup=0.0)
    sae.rule.scale.fill_(3.0)
    x, ctx = rows(10, seed=4), Context(step, 100)
    code = sae.encode_normalised(x)
    p = sae.rule.power(sae.rule.updates(ctx))
    found = float(sae.rule.penalties(x, code, x, sae, ctx)["lp"].detach())
    assert found == pytest.approx(penalty_reference(code.dense().detach(), p, 3.0, 0.5), rel=1e-4)


def test_updates_leave_the_level_of_the_penalty(built: Callable, rows: Callable) -> None:
    sae = built("p_anneal", "none", l1=0.5, warmup=0.0, start=0.2)
    x = rows(100, seed=5)
    code = sae.encode_normalised(x).detach()
    levels, powers = [], []
    for step in range(400):
        ctx = Context(step, 400)
        levels.append(float(sae.rule.penalties(x, code, x, sae, ctx)["lp"]))
        powers.append(sae.rule.power(sae.rule.updates(ctx)))
        sae.rule.observe(code, ctx)
    assert len(set(powers)) == 11
    assert max(levels) == pytest.approx(min(levels), rel=1e-4)
    assert float(sae.rule.scale) != pytest.approx(1.0, rel=0.05)


def test_the_slope_at_tiny_values_is_bounded(built: Callable) -> None:
    rule = PAnneal(16, 40, l1=1.0, start=0.0, warmup=0.0)
    values = torch.tensor([0.0, 1e-30, 1e-8, 0.5], requires_grad=True)
    code = Code(torch.arange(4), values, 40, torch.tensor([0, 4]))
    rule.charged(code, 10).backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()
    assert float(values.grad.max()) <= 0.2 * EPS**-0.8 * (1 + 1e-5)


def test_p_1_is_the_l1_of_relu(built: Callable, rows: Callable) -> None:
    found = []
    for rule, args in (("relu", {}), ("p_anneal", {"p_end": 1.0, "start": 0.0})):
        training = Training(built(rule, l1=0.1, **args).train(), TrainConfig(tokens=20 * 64, batch=64, lr=5e-3))
        for step in range(20):
            training.advance(rows(64, seed=70 + step))
        found.append(training.sae.W_enc.detach())
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_a_falling_p_leaves_fewer_latents_on_at_the_same_l1(built: Callable, rows: Callable) -> None:
    counts = []
    for p_end in (1.0, 0.2):
        sae = built("p_anneal", l1=0.15, p_end=p_end, start=0.2)
        training = Training(sae.train(), TrainConfig(tokens=200 * 128, batch=128, lr=5e-3, aux=0.0))
        data = rows(128 * 20, seed=15).split(128)
        counts.append(sum([float(training.advance(data[i % 20])["l0"]) for i in range(200)][-20:]))
    assert counts[1] < 0.9 * counts[0]


@pytest.mark.parametrize(
    ("name", "value"), [("l1", float("nan")), ("p_end", 0.0), ("p_end", 1.5), ("start", -0.1), ("warmup", 1.5)]
)
def test_arguments_out_of_range_are_refused(name: str, value: float, built: Callable) -> None:
    with pytest.raises(ValueError, match=f"{name} .*must|{name} must"):
        built("p_anneal", **{name: value})
