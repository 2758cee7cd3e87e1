"""The dictionary of integer codes against the slow reference of its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.code import Code
from sae.model import Sae
from sae.rules import Context
from sae.rules.discrete import integer_codes


def discrete_reference(sae: Sae, x: Tensor) -> Tensor:
    """Return the dense code of normalised rows: projections on unit rows, plus biases in a unit atom's units."""
    out = torch.zeros(len(x), sae.d_sae)
    for n, row in enumerate(x):
        for i in range(sae.d_sae):
            along = float((row - sae.b_dec) @ sae.W_enc[i]) / float(sae.W_enc[i].norm())
            out[n, i] = max(0.0, along + float(sae.b_enc[i]) * float(sae.W_dec[i].norm()))
    return out


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(
    atoms: str, training: bool, built: Callable, rows: Callable, uneven: Callable
) -> None:
    sae, x = uneven(built("discrete", atoms=atoms)).train(training), rows(20, seed=3)
    with torch.no_grad():
        sae.W_enc *= torch.linspace(0.2, 5, 40).unsqueeze(1)
        assert torch.allclose(sae.encode(x).dense(), discrete_reference(sae, sae.normaliser.into(x)[0]), atol=1e-4)


def test_the_integer_is_the_strongest_latent_and_silence_has_none() -> None:
    code = Code.from_dense(torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.4]]))
    assert integer_codes(code).tolist() == [1, -1, 0]


def test_the_length_of_an_encoder_row_changes_nothing(built: Callable, rows: Callable) -> None:
    sae, x = built("discrete"), rows(20, seed=4)
    before = sae.encode(x).dense()
    with torch.no_grad():
        sae.W_enc *= 7
    assert torch.allclose(before, sae.encode(x).dense(), atol=1e-5)


def test_gradient_lies_across_the_encoder_rows(built: Callable, rows: Callable) -> None:
    sae = built("discrete", "none").double().train()
    x = rows(30, seed=5).double()
    code = sae.encode_normalised(x)
    (sae.decode_normalised(code) - x).square().mean().backward()
    assert float((sae.W_enc.grad * sae.W_enc.detach()).sum(1).abs().max()) < 1e-9
    assert set(sae.rule.penalties(x, code, x, sae, Context())) == {"l1"}
