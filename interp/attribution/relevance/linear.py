"""Relevance rules of linear layers, y_j = sum_i z_ij + b_j with z_ij = w_ji x_i.

With R_j = y_j rho_j and sums over i, the bias counted as one more input of 1:

    epsilon      R_i = sum_j z_ij / (y_j + eps sign y_j) R_j                              (Bach et al. 2015)
    plain_gamma  R_i = sum_j (z_ij + g x_i w_ji+) / (y_j + g sum_k x_k w_jk+) R_j         (Montavon et al. 2019)
    gamma        R_i = sum_j (z_ij + g z_ij^s) / (y_j + g sum_k z_kj^s) R_j,  s = sign y_j
    alpha_beta   R_i = sum_j (alpha z_ij+ / sum_k z_kj+ - beta z_ij- / sum_k z_kj-) R_j   (Bach et al. 2015)
    z_plus       alpha_beta with alpha = 1, beta = 0                                      (Montavon et al. 2017)

(v+ and v- are the positive and the negative part; z^s is z+ where s is positive, else z-.) `plain_gamma` is meant for
inputs that are nowhere negative; with inputs of both signs, as after a LayerNorm, its denominator passes through zero.
`gamma` is the generalised form, which favours the contributions that have the sign of the output; its denominator is
never smaller than |y_j|, and both agree where inputs and outputs are positive.

Every rule is written as the gradient rho_i with R_i = x_i rho_i. It depends on the sign of x_i where contributions are
told apart by sign; x_i = 0 counts as positive. A rule returns rho and the relevance that the bias takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from interp.attribution.relevance.rules import Rules

Rule = Callable[
    [
        Float[Tensor, "n i"],
        Float[Tensor, "j i"],
        "Float[Tensor, ' j'] | None",
        Float[Tensor, "n j"],
        Float[Tensor, "n j"],
    ],
    tuple[Float[Tensor, "n i"], "Tensor | None"],
]
"""(x, weight, bias, y, rho_y) -> (rho_x, relevance of the bias [n j] or None without one)."""


def epsilon(
    _x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, rho: Tensor, *, eps: float
) -> tuple[Tensor, Tensor | None]:
    """Return rho of the inputs by the epsilon rule: y / (y + eps sign y) is |y| / (|y| + eps)."""
    size = y.abs()
    passed = rho * _divided(size, size + eps)
    return passed @ weight, None if bias is None else passed * bias


def plain_gamma(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, rho: Tensor, *, gamma: float
) -> tuple[Tensor, Tensor | None]:
    """Return rho of the inputs by the gamma rule for inputs that are nowhere negative."""
    raised = weight + gamma * weight.clamp(min=0)
    raised_bias = None if bias is None else bias + gamma * bias.clamp(min=0)
    passed = _divided(rho * y, F.linear(x, raised, raised_bias))
    return passed @ raised, None if raised_bias is None else passed * raised_bias


def gamma(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, rho: Tensor, *, gamma: float
) -> tuple[Tensor, Tensor | None]:
    """Return rho of the inputs by the gamma rule for inputs of either sign."""
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    helps, hinders = _parts(x, weight, bias)
    positive = y > 0
    passed = _divided(rho * y, y + gamma * torch.where(positive, helps, hinders))
    at_up, at_down = gamma * passed * positive, gamma * passed * ~positive
    found = passed @ weight + torch.where(x >= 0, at_up @ up + at_down @ down, at_up @ down + at_down @ up)
    if bias is None:
        return found, None
    return found, passed * bias + torch.where(positive, gamma * passed * bias.clamp(min=0), 0) + torch.where(
        positive, 0, gamma * passed * bias.clamp(max=0)
    )


def alpha_beta(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, rho: Tensor, *, alpha: float
) -> tuple[Tensor, Tensor | None]:
    """Return rho of the inputs by the alpha-beta rule, beta = alpha - 1.

    An output without positive contributions has nowhere to send the share alpha, and likewise for beta: that relevance
    is lost.
    """
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    helps, hinders = _parts(x, weight, bias)
    relevance = rho * y
    for_helps, for_hinders = alpha * _divided(relevance, helps), (1 - alpha) * _divided(relevance, hinders)
    found = torch.where(x >= 0, for_helps @ up + for_hinders @ down, for_helps @ down + for_hinders @ up)
    return found, None if bias is None else for_helps * bias.clamp(min=0) + for_hinders * bias.clamp(max=0)


def _parts(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sums of the positive and of the negative contributions, each [n j]."""
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    over, under = x.clamp(min=0), x.clamp(max=0)
    helps = F.linear(over, up, None if bias is None else bias.clamp(min=0)) + F.linear(under, down)
    hinders = F.linear(over, down, None if bias is None else bias.clamp(max=0)) + F.linear(under, up)
    return helps, hinders


def _divided(above: Tensor, below: Tensor) -> Tensor:
    """Return above / below, and 0 where `below` is 0."""
    empty = below == 0
    return (above / below.masked_fill(empty, 1)).masked_fill(empty, 0)


LINEAR_RULES: dict[str, Callable[[Rules], Rule]] = {
    "alpha_beta": lambda rules: partial(alpha_beta, alpha=rules.alpha),
    "epsilon": lambda rules: partial(epsilon, eps=rules.epsilon),
    "gamma": lambda rules: partial(gamma, gamma=rules.gamma),
    "plain_gamma": lambda rules: partial(plain_gamma, gamma=rules.gamma),
    "z_plus": lambda _: partial(alpha_beta, alpha=1.0),
}
"""Name -> rule with the numbers of `Rules`; rule 0 is the plain gradient and needs none."""


def linear_rule(rules: Rules, name: str) -> Rule | None:
    """Return the rule `name` with the numbers of `rules`; None for rule 0."""
    return None if name == "zero" else LINEAR_RULES[name](rules)


class RuledLinear(torch.autograd.Function):
    """A linear layer whose value is as always, and whose backward follows a rule."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*rows i"],
        weight: Float[Tensor, "j i"],
        bias: Float[Tensor, " j"] | None,
        rule: Rule,
        note: Callable[[Tensor], None] | None,
    ) -> Float[Tensor, "*rows j"]:
        """Return W x + b; `note` is told the relevance of the bias, summed, in the backward."""
        y = F.linear(x, weight, bias)
        ctx.save_for_backward(x, weight, y, *() if bias is None else (bias,))
        ctx.rule, ctx.note = rule, note
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return rho of x."""
        x, weight, y, *bias = ctx.saved_tensors
        rows, outs = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        rho, taken = ctx.rule(rows, weight, bias[0] if bias else None, outs, grads[0].reshape(outs.shape))
        if ctx.note is not None and taken is not None:
            ctx.note(taken.sum())
        return rho.reshape(x.shape), None, None, None, None
