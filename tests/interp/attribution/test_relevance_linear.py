"""Rules of linear layers against sums over single contributions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.attribution.relevance.linear import LINEAR_RULES, RuledLinear, linear_rule
from interp.attribution.relevance.operations import RelevanceMode
from interp.attribution.relevance.rules import LINEAR, Rules


def slow(rule: str, x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor, rules: Rules) -> tuple[list, float]:
    """Relevance of each input and of the bias of one row, from the definition: sums over z_ij in plain Python."""
    inputs = [*x.tolist(), 1.0]  # the bias is the weight of an input of 1
    rows = [[*weight[j].tolist(), float(bias[j])] for j in range(len(weight))]
    found = [0.0] * len(inputs)
    for row, r in zip(rows, relevance.tolist(), strict=True):
        z = [w * a for w, a in zip(row, inputs, strict=True)]
        y = sum(z)
        if rule == "zero":
            shares = [one / y for one in z]
        elif rule == "epsilon":
            shares = [one / (y + rules.epsilon * (1 if y >= 0 else -1)) for one in z]
        elif rule == "plain_gamma":
            raised = [a * (w + rules.gamma * max(w, 0)) for w, a in zip(row, inputs, strict=True)]
            shares = [one / sum(raised) for one in raised]
        elif rule == "gamma":
            raised = [one * (1 + rules.gamma * (one * y > 0)) for one in z]
            shares = [one / sum(raised) for one in raised]
        else:
            alpha = rules.alpha if rule == "alpha_beta" else 1.0
            up, down = sum(max(one, 0) for one in z), sum(min(one, 0) for one in z)
            shares = [
                (alpha * max(one, 0) / up if up else 0.0) - ((alpha - 1) * min(one, 0) / down if down else 0.0)
                for one in z
            ]
        found = [a + share * r for a, share in zip(found, shares, strict=True)]
    return found[:-1], found[-1]


@pytest.mark.parametrize("rule", LINEAR)
def test_a_rule_is_its_definition(rule: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    bias = torch.randn(3, generator=generator, dtype=torch.float64)
    rho = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    rules = Rules(linear=rule, epsilon=0.3, gamma=0.7, alpha=2.5)
    taken: list[float] = []
    x.requires_grad_()
    if rule == "zero":
        y = F.linear(x, weight, bias)
    else:
        y = RuledLinear.apply(x, weight, bias, linear_rule(rules, rule), lambda share: taken.append(float(share)))
    torch.testing.assert_close(y, F.linear(x, weight, bias), rtol=0, atol=0)
    (found,) = torch.autograd.grad(y, x, rho)
    wanted = [slow(rule, a, weight, bias, r, rules) for a, r in zip(x.detach(), (y * rho).detach(), strict=True)]
    torch.testing.assert_close(x * found, torch.tensor([one for one, _ in wanted], dtype=torch.float64))
    if rule != "zero":
        assert taken == pytest.approx([sum(share for _, share in wanted)])


@pytest.mark.parametrize("rule", ["gamma", "plain_gamma", "alpha_beta", "z_plus"])
def test_relevance_is_conserved(rule: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 30, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(5, 30, generator=generator, dtype=torch.float64)
    y = RuledLinear.apply(x, weight, None, linear_rule(Rules(), rule), None)
    y.sum().backward()
    torch.testing.assert_close((x * x.grad).sum(1), y.sum(1))


def test_alpha_beta_loses_what_has_no_contribution_of_one_sign() -> None:
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    y = RuledLinear.apply(x, torch.tensor([[3.0, 1.0]]), None, linear_rule(Rules(alpha=2.0), "alpha_beta"), None)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close((x * x.grad)[0], 2 * torch.tensor([3.0, 2.0]))  # alpha of all 5, and beta nowhere


def test_gamma_agrees_with_the_plain_form_where_nothing_is_negative() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(3, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    weight[:, 0] = weight.abs().sum(1) / x[:, 0].min()  # every output positive
    y, rho = x @ weight.T, torch.randn(3, 4, generator=generator, dtype=torch.float64)
    assert bool((y > 0).all())
    both = [linear_rule(Rules(), name)(x, weight, None, y, rho)[0] for name in ("gamma", "plain_gamma")]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("rule", ["gamma", "plain_gamma", "alpha_beta", "z_plus", "epsilon"])
def test_nothing_goes_through_a_layer_of_zeros(rule: str) -> None:
    x = torch.zeros(2, 3).requires_grad_()
    y = RuledLinear.apply(x, torch.zeros(4, 3), torch.zeros(4), linear_rule(Rules(), rule), None)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("rule", [name for name in LINEAR if name != "zero"])
def test_every_way_to_write_a_linear_layer_follows_the_rule(rule: str) -> None:
    generator = torch.Generator().manual_seed(5)
    rules = Rules(linear=rule, epsilon=0.5)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, 3, 6), (4, 6), (4,)))
    rho = torch.randn(2, 3, 4, generator=generator)

    def grad(layer: object) -> Tensor:
        leaf = x.clone().requires_grad_()
        with RelevanceMode(rules):
            y = layer(leaf)  # type: ignore[operator]
        return torch.autograd.grad(y, leaf, rho)[0]

    wanted = grad(lambda a: F.linear(a, weight, bias))
    assert not torch.allclose(wanted, rho @ weight)
    flat = grad(lambda a: torch.addmm(bias, a.view(-1, 6), weight.T.contiguous()).view(2, 3, 4))
    torch.testing.assert_close(flat, wanted)
    module = nn.Linear(6, 4).requires_grad_(False)
    module.weight.copy_(weight)
    module.bias.copy_(bias)
    torch.testing.assert_close(grad(module), wanted)
    without = grad(lambda a: F.linear(a, weight))
    torch.testing.assert_close(grad(lambda a: a @ weight.T), without)
    torch.testing.assert_close(grad(lambda a: torch.matmul(a, weight.T)), without)


def test_the_table_of_rules_is_that_of_the_names() -> None:
    assert {"zero", *LINEAR_RULES} == set(LINEAR)
