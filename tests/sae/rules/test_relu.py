"""ReLU with an L1 penalty against the slow reference of its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.config import TrainConfig
from sae.rules import Context
from sae.training import Training


def relu_reference(pre: list[list[float]]) -> Tensor:
    """Return the dense code."""
    return torch.tensor([[max(0.0, value) for value in row] for row in pre])


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(
    atoms: str, training: bool, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, x = uneven(built("relu", atoms=atoms)).train(training), rows(20, seed=3)
    with torch.no_grad():
        assert torch.allclose(sae.encode(x).dense(), relu_reference(preactivations(sae, x)), atol=1e-5)


def test_l1_is_risen_by_the_warmup_and_weighs_values_by_their_sum(built: Callable, rows: Callable) -> None:
    sae = built("relu", l1=0.5, warmup=0.1)
    x, _ = sae.normaliser.into(rows(8, seed=14))
    code = sae.encode_normalised(x)
    full = 0.5 / 4 * float(code.values.detach().sum()) / 8
    for step, share in ((0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0)):
        charged = sae.rule.penalties(x, code, x, sae, Context(step, 100))["l1"]
        assert float(charged.detach()) == pytest.approx(share * full, rel=1e-5)


def test_a_larger_l1_leaves_fewer_latents_on(built: Callable, rows: Callable) -> None:
    counts = []
    for l1 in (0.0, 0.2, 0.6):
        training = Training(built("relu", l1=l1).train(), TrainConfig(tokens=100 * 128, batch=128, lr=5e-3, aux=0.0))
        data = rows(128 * 20, seed=15).split(128)
        counts.append([float(training.advance(data[i % 20])["l0"]) for i in range(100)][-1])
    assert counts[0] > 1.5 * counts[1] > 1.5 * 1.5 * counts[2]


@pytest.mark.parametrize(("name", "value"), [("l1", -0.1), ("l1", float("inf")), ("warmup", 1.5)])
def test_arguments_out_of_range_are_refused(name: str, value: float, built: Callable) -> None:
    with pytest.raises(ValueError, match=f"{name} .*must|{name} must"):
        built("relu", **{name: value})
