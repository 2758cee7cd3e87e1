"""Mutual choice against the slow reference of its definition, and which latents it has revived."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.auxk import auxk_loss
from sae.budgets import zipf_shares
from sae.code import Code
from sae.rules import Context, build_rule
from sae.rules.mutual_choice import MutualChoice


def mutual_choice_reference(pre: list[list[float]], k: int) -> Tensor:
    """Fill the matrix of matches greedily by affinity relu(pre), as long as the budget k · rows lasts."""
    out = torch.zeros(len(pre), len(pre[0]))
    affinity = [(max(value, 0.0), n, i) for n, row in enumerate(pre) for i, value in enumerate(row)]
    for value, n, i in sorted(affinity, reverse=True)[: k * len(pre)]:
        out[n, i] = value
    return out


@pytest.mark.parametrize("atoms", ["unit", "free"])
def test_code_equals_the_slow_reference(
    atoms: str, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, x = uneven(built("mutual_choice", atoms=atoms)).train(), rows(20, seed=3)
    with torch.no_grad():
        pre = preactivations(sae, x)
        assert torch.allclose(sae.encode(x).dense(), mutual_choice_reference(pre, sae.rule.k), atol=1e-5)
        sae.eval().rule.threshold.fill_(0.2)
        wanted = torch.tensor(pre)
        assert torch.allclose(sae.encode(x).dense(), wanted * (wanted > 0.2), atol=1e-5)


def firing(rates: list[float], batch: int, g: torch.Generator) -> Code:
    return Code.from_dense((torch.rand(batch, len(rates), generator=g) < torch.tensor(rates)).float())


def test_dying_latents_are_those_far_below_the_curve_at_their_own_rank() -> None:
    rule = build_rule("mutual_choice", 4, 8, {"k": 2, "dying": 0.3})
    assert isinstance(rule, MutualChoice)
    curve = zipf_shares(8, 2).tolist()
    rates = [curve[0], 0.1 * curve[7], curve[1], curve[2], curve[3], curve[4], 0.6 * curve[5], curve[5]]
    g, dead = torch.Generator().manual_seed(1), torch.tensor([False] * 3 + [True] + [False] * 4)
    for step in range(300):
        if step == 99:
            assert torch.equal(rule.revive(dead), dead), "nothing but the dead before 100 steps have been counted"
        rule.observe(firing(rates, 500, g), Context(step, 1000))
    assert rule.revive(dead).tolist() == [False, True, False, True, False, False, False, False]
    rule.dying = 0.0
    assert torch.equal(rule.revive(dead), dead)


def test_auxk_reaches_dying_latents(built: Callable, rows: Callable) -> None:
    sae = built("mutual_choice", k=4).train()
    sae.rule.density.copy_(sae.rule.curve)
    sae.rule.density[5] = 0
    sae.rule.seen.fill_(100)
    x, _ = sae.normaliser.into(rows(64, seed=4))
    auxk_loss(x, 0 * x, torch.zeros(40, dtype=torch.bool), sae).backward()
    touched = sae.W_enc.grad.norm(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize(("name", "value"), [("dying", -0.1), ("dying", float("nan")), ("cap", 0.05), ("power", -1.0)])
def test_arguments_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        build_rule("mutual_choice", 16, 40, {"k": 4, name: value})
