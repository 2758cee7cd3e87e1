"""BatchTopK against the slow reference of its definition, and what its threshold makes of a batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.code import Code
from sae.rules import Context, build_rule
from sae.rules.batch_topk import BatchTopK


def batch_topk_reference(pre: list[list[float]], k: int, threshold: float | None) -> Tensor:
    """Return the code of training (over all rows; threshold None) or of evaluation (by the threshold)."""
    out = torch.zeros(len(pre), len(pre[0]))
    everywhere = [(n, i) for n in range(len(pre)) for i in range(len(pre[0]))]
    if threshold is None:
        chosen = sorted(everywhere, key=lambda place: -pre[place[0]][place[1]])[: k * len(pre)]
    else:
        chosen = [(n, i) for n, i in everywhere if pre[n][i] > threshold]
    for n, i in chosen:
        out[n, i] = max(pre[n][i], 0.0)
    return out


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(
    atoms: str, training: bool, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, x = uneven(built("batch_topk", atoms=atoms)).train(training), rows(20, seed=3)
    sae.rule.threshold.fill_(0.05)
    with torch.no_grad():
        wanted = batch_topk_reference(preactivations(sae, x), sae.rule.k, None if training else 0.05)
        assert torch.allclose(sae.encode(x).dense(), wanted, atol=1e-5)
    assert 0 < int((wanted != 0).sum()) < wanted.numel()


def test_keeps_k_per_row_on_average_and_as_many_as_a_row_needs(built: Callable, rows: Callable) -> None:
    sae = built("batch_topk", k=3).train()
    x = rows(64, seed=16) * torch.linspace(0.2, 3, 64).unsqueeze(1)
    code = sae.encode(x)
    assert int(code.l0().sum()) == 3 * 64
    assert int(code.l0().min()) < 3 < int(code.l0().max())


@pytest.mark.parametrize("batch", [16, 512])
def test_threshold_makes_the_l0_of_evaluation_k_whatever_the_batch(batch: int, built: Callable, rows: Callable) -> None:
    sae = built("batch_topk", k=4)
    rule, steps = sae.rule, 600
    assert isinstance(rule, BatchTopK)
    data = rows(batch * 50 + 4000, seed=17)
    train, test = data[:-4000].split(batch), data[-4000:]
    with torch.no_grad():
        for step in range(steps):
            rule.observe(sae.train().encode(train[step % 50]), Context(step, 20 * steps))
        l0 = sae.eval().encode(test).l0().double().mean()
    assert float(l0) == pytest.approx(4, rel=0.04)


def test_threshold_is_the_mean_of_the_smallest_kept_value_at_first_and_forgets_later() -> None:
    rule = build_rule("batch_topk", 16, 40, {})
    assert isinstance(rule, BatchTopK)
    values = [3.0, 1.0, 2.0]
    for step, value in enumerate(values):
        rule.observe(Code(torch.tensor([[1, 2]]), torch.tensor([[value, 9.0]]), 40), Context(step, 10_000))
    assert float(rule.threshold) == pytest.approx(2.0)
    for step in range(3, 1500):
        rule.observe(Code(torch.tensor([[1, 2]]), torch.tensor([[7.0, 9.0]]), 40), Context(step, 2000))
    assert float(rule.threshold) == pytest.approx(7.0, abs=1e-3)
