"""Discrete: a small ReLU dictionary whose largest latent is an integer code (O'Neill and Bui 2024, arXiv 2405.12522).

    z = relu(u (x - b_dec) + b_enc), the rows of u those of W_enc at length 1        penalty that of `relu`
    integer code of a row = argmax z, or -1 where nothing is on

For finding circuits: one dictionary over the outputs of all heads, each head's output becomes one integer, and heads
whose integers tell a task's prompts from corrupted ones are the circuit's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from sae import kernels
from sae.code import Code
from sae.rules.base import Context
from sae.rules.relu import Relu

if TYPE_CHECKING:
    from sae.model import Sae


class Discrete(Relu):
    """Keep every positive projection on encoder rows of length 1, and charge for its size."""

    def encode(self, x: Float[Tensor, "batch d_in"], sae: Sae, ctx: Context) -> Code:  # noqa: ARG002
        """Return the code of normalised activations."""
        weight, bias, _ = sae.unit()
        weight = normalize(weight, dim=1)
        with torch.no_grad():
            pre = torch.addmm(bias, sae.centred(x), weight.t())
            code = Code.at(pre, (~(pre <= 0)).flatten().nonzero().squeeze(1))
        return kernels.preactivation(x, weight, bias, code, sae.centre) if torch.is_grad_enabled() else code


def integer_codes(code: Code) -> Int[Tensor, " batch"]:
    """Return each row's strongest latent (the first of equals), -1 where none is on."""
    strength, latent = code.dense().max(1)
    return torch.where(strength > 0, latent, -1)
