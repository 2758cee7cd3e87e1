"""Switch against the slow reference of its definition; routing; balance."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.model import Sae
from sae.rules import Context, build_rule


def switch_reference(sae: Sae, pre: list[list[float]], x: Tensor, k: int, experts: int) -> Tensor:
    """Return the dense code of normalised rows, the way of a program that multiplies all experts and masks."""
    out, size = torch.zeros(len(pre), sae.d_sae), sae.d_sae // experts
    for n, row in enumerate(pre):
        scores = [float((x[n] - sae.b_dec) @ sae.rule.W_route[e] + sae.rule.b_route[e]) for e in range(experts)]  # type: ignore[index]
        total = sum(math.exp(score) for score in scores)
        expert = max(range(experts), key=lambda e: scores[e])
        own = range(expert * size, (expert + 1) * size)
        for i in sorted(own, key=lambda i: -row[i])[:k]:
            out[n, i] = max(row[i], 0.0) * math.exp(scores[expert]) / total
    return out


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(
    atoms: str, training: bool, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, x = uneven(built("switch", atoms=atoms, k=3, experts=4)).train(training), rows(40, seed=3)
    with torch.no_grad():
        sae.rule.b_route.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1]))
        code = sae.encode(x)
        wanted = switch_reference(sae, preactivations(sae, x), sae.normaliser.into(x)[0], 3, 4)
        assert torch.allclose(code.dense(), wanted, atol=1e-4)
    assert (code.indices // 10).unique().numel() > 1, "all rows went to one expert"


def test_balance_is_1_when_uniform_and_the_number_of_experts_when_one_gets_all(built: Callable, rows: Callable) -> None:
    sae = built("switch", k=2, experts=4, balance=1.0)
    x, _ = sae.normaliser.into(rows(40, seed=4))
    with torch.no_grad():
        sae.rule.W_route.zero_()
        even = sae.rule.penalties(x, sae.encode_normalised(x), x, sae, Context())["balance"]
        sae.rule.b_route[2] = 100.0
        one = sae.rule.penalties(x, sae.encode_normalised(x), x, sae, Context())["balance"]
    assert float(even) == pytest.approx(1.0)
    assert float(one) == pytest.approx(4.0)


def test_gradient_reaches_the_router_through_values_and_penalty(built: Callable, rows: Callable) -> None:
    sae = built("switch", k=2, experts=4).train()
    x, _ = sae.normaliser.into(rows(40, seed=5))
    code = sae.encode_normalised(x)
    mse = (sae.decode_normalised(code) - x).square().mean()
    for loss in (mse, sae.rule.penalties(x, code, x, sae, Context())["balance"]):
        sae.zero_grad()
        loss.backward(retain_graph=True)
        assert float(sae.rule.W_route.grad.norm()) > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"experts": 7}, r"experts must divide d_sae=40, got 7; the nearest is 8"),
        ({"experts": 0}, r"experts must divide d_sae=40, got 0"),
        ({"k": 6}, r"k must lie in 1\.\.d_sae/experts=5, got 6: take fewer experts"),
        ({"balance": -1.0}, r"balance must be at least 0"),
    ],
)
def test_experts_that_do_not_fit_are_refused(args: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_rule("switch", 16, 40, args)
