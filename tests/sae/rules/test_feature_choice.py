"""Feature choice against the slow reference of its definition; budgets, thresholds, ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.budgets import round_counts
from sae.code import Code
from sae.config import TrainConfig
from sae.rules import Context, build_rule
from sae.rules.feature_choice import FeatureChoice
from sae.training import Training


def feature_choice_reference(pre: list[list[float]], budgets: list[int]) -> Tensor:
    """Return the dense code: latent by latent, the rows on which it is largest."""
    out = torch.zeros(len(pre), len(pre[0]))
    for i, budget in enumerate(budgets):
        for n in sorted(range(len(pre)), key=lambda n: -pre[n][i])[:budget]:
            out[n, i] = max(pre[n][i], 0.0)
    return out


def late(seed: int = 0) -> Context:
    return Context(50, 100, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_code_equals_the_slow_reference(
    atoms: str, power: float, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, x = uneven(built("feature_choice", atoms=atoms, power=power, k=4)).train(), rows(33, seed=3)
    sae.rule.rank.copy_(torch.randperm(40, generator=torch.Generator().manual_seed(4)))
    normalised, _ = sae.normaliser.into(x)
    with torch.no_grad():
        code = sae.encode_normalised(normalised, late(7))
        budgets = round_counts(sae.rule.curve[sae.rule.rank], 33, late(7).generator).tolist()
        pre = preactivations(sae, x)
        assert sum(budgets) == 4 * 33
        assert torch.allclose(code.dense(), feature_choice_reference(pre, budgets), atol=1e-5)
        sae.eval().rule.thresholds.uniform_(0, 0.5, generator=torch.Generator().manual_seed(5))
        sae.rule.kept.fill_(3)
        wanted = torch.tensor(pre)
        assert torch.allclose(sae.encode(x).dense(), wanted * (wanted > sae.rule.thresholds), atol=1e-5)
    assert (code.counts() <= torch.tensor(budgets)).all()


def test_the_first_phase_selects_over_the_whole_batch(built: Callable, rows: Callable) -> None:
    sae, other = built("feature_choice", k=4, warm=0.2).train(), built("mutual_choice", k=4).train()
    x, _ = sae.normaliser.into(rows(64, seed=6))
    with torch.no_grad():
        for step, alike in ((0, True), (19, True), (20, False)):
            code = sae.encode_normalised(x, Context(step, 100, torch.Generator().manual_seed(0)))
            assert torch.allclose(code.dense(), other.encode_normalised(x).dense(), atol=1e-6) == alike


def test_thresholds_are_each_latents_own_running_level_and_wait_for_it() -> None:
    rule = build_rule("feature_choice", 4, 3, {"k": 1})
    assert isinstance(rule, FeatureChoice)
    for step, (first, second) in enumerate([(3.0, 5.0), (1.0, 0.0), (2.0, 9.0)]):
        dense = torch.tensor([[first, 0.0, 0.0], [0.0, second, 0.0], [0.0, 7.0 if step != 1 else 0.0, 0.0]])
        rule.observe(Code.from_dense(dense), Context(10 + step, 100))
    # One row each for the first; 5 and 7, then 7 and 9 for the second: a quarter of the step below the smaller.
    assert rule.thresholds.tolist() == pytest.approx([2.0, (4.5 + 6.5) / 2, 0.0])
    assert rule.kept.tolist() == [3, 2, 0]


def test_ranks_follow_the_density(built: Callable, rows: Callable) -> None:
    training = Training(built("feature_choice", k=4).train(), TrainConfig(tokens=40 * 128, batch=128, lr=1e-3))
    for step in range(6):
        training.advance(rows(128, seed=step))
    rule = training.sae.rule
    by_rank = rule.density[rule.rank.argsort()]
    assert (by_rank.diff() <= 1e-6).any()
    order = rule.rank.argsort()
    assert torch.equal(order.sort().values, torch.arange(40))
    training.step = 3  # warming: ranks are looked at in each step
    training.advance(rows(128, seed=9))
    assert (rule.density[rule.rank.argsort()].diff() <= 0).all()


@pytest.mark.parametrize("batch", [64, 512])
def test_evaluation_has_the_l0_of_training_whatever_the_batch(batch: int, built: Callable, rows: Callable) -> None:
    steps = 200 * 128 // batch
    sae = built("feature_choice", k=4, power=0.5)
    training = Training(sae.train(), TrainConfig(tokens=steps * batch, batch=batch, lr=3e-3))
    data = rows(batch * 20 + 4000, seed=17)  # one seed: another one has other atoms
    train, x = data[:-4000].split(batch), data[-4000:]
    for step in range(steps):
        training.advance(train[step % 20])
    with torch.no_grad():
        normalised, _ = sae.normaliser.into(x)
        trained = float(sae.train().encode_normalised(normalised, late()).l0().double().mean())
        l0 = float(sae.eval().encode(x).l0().double().mean())
    assert l0 == pytest.approx(trained, rel=0.05)


def test_a_batch_too_small_to_give_each_latent_a_row_is_refused(built: Callable, rows: Callable) -> None:
    training = Training(built("feature_choice", k=4).train(), TrainConfig(tokens=64, batch=8, lr=1e-3))
    with pytest.raises(ValueError, match=r"batch = 32 places out over 40 latents: take batches of at least 10 rows"):
        training.advance(rows(8, seed=1))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"k": 30}, r"fire on at most 0\.5 of the tokens fire 20 times per token, got k=30: lower k"),
        ({"k": 4, "cap": 1.5}, r"cap is a share of the tokens"),
        ({"k": 4, "warm": -0.1}, r"warm is a share of the steps and must lie in 0\.\.1"),
        ({"k": 4, "power": float("nan")}, r"power and shift must be"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused(args: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_rule("feature_choice", 16, 40, args)
