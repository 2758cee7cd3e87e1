"""JumpReLU against its definition, its kernel against finite differences, and the traps of other implementations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.code import Code
from sae.config import TrainConfig
from sae.model import Sae
from sae.rules import Context
from sae.rules.jump_relu import JumpRelu
from sae.training import Training


def jump_relu_reference(pre: list[list[float]], threshold: Tensor) -> Tensor:
    """Return the dense code, one entry at a time."""
    return torch.tensor([[v if v > t else 0.0 for v, t in zip(row, threshold.tolist(), strict=True)] for row in pre])


def spread(sae: Sae) -> Sae:
    """Return the dictionary with thresholds that differ."""
    assert isinstance(sae.rule, JumpRelu)
    sae.rule.threshold.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(40))
    return sae


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(
    atoms: str, training: bool, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, x = spread(uneven(built("jump_relu", atoms=atoms))).train(training), rows(20, seed=3)
    with torch.no_grad():
        code = sae.encode(x)
        expected = jump_relu_reference(preactivations(sae, x), sae.rule.threshold)
    assert torch.allclose(code.dense(), expected, atol=1e-5)
    assert (code.values == 0).any() == training, "what only the kernel sees has a slot, while training"


def kernel(sae: Sae, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (pre-activations, which lie within half the bandwidth of their threshold), dense."""
    pre = (x - sae.b_dec) @ sae.W_enc.t() + sae.b_enc
    return pre, (pre - sae.rule.threshold).abs() < sae.rule.bandwidth / 2  # type: ignore[operator]


def test_threshold_gradients_are_the_kernel_on_both_sides_of_the_threshold(built: Callable, rows: Callable) -> None:
    sae = spread(built("jump_relu", "none", l0=0.5, warmup=0.0)).train()
    x, weights = rows(200, seed=4), torch.randn(40, generator=torch.Generator().manual_seed(41))
    code = sae.encode_normalised(x)
    charge = sae.rule.penalties(x, code, x, sae, Context())["charge"]
    through_value, through_count = (
        torch.autograd.grad(out, sae.rule.threshold, retain_graph=True)[0]
        for out in ((code.dense() * weights).sum(), charge)
    )
    pre, near = kernel(sae, x)
    below = near & (pre <= sae.rule.threshold)
    assert below.any()
    eps = sae.rule.bandwidth
    assert torch.allclose(through_value, -sae.rule.threshold / eps * near.sum(0) * weights, rtol=1e-4, atol=1e-5)
    assert torch.allclose(through_count, -0.5 / 200 / eps * near.sum(0), rtol=1e-4)
    assert float(charge.detach()) == pytest.approx(0.5 * float(code.l0().double().mean()))


def test_the_count_falls_by_its_gradient_over_a_bandwidth(built: Callable, rows: Callable) -> None:
    sae = spread(built("jump_relu", "none", l0=1.0, warmup=0.0)).train()
    x, eps = rows(500, seed=5), sae.rule.bandwidth
    code = sae.encode_normalised(x)
    (slope,) = torch.autograd.grad(sae.rule.penalties(x, code, x, sae, Context())["charge"], sae.rule.threshold)
    counts = []
    for shift in (eps / 2, -eps / 2):
        sae.rule.threshold.data += shift
        with torch.no_grad():
            counts.append(sae.eval().encode_normalised(x).counts() / 500)
        sae.rule.threshold.data -= shift
    assert torch.allclose((counts[0] - counts[1]) / eps, slope, atol=1e-4)


def test_what_is_silent_at_zero_gives_no_gradient(built: Callable, rows: Callable) -> None:
    sae = built("jump_relu", threshold=0.5, bandwidth=1.0).train()
    sae.b_enc.data.fill_(-100.0)  # far below every threshold: the post-jump value 0 would lie within the kernel
    x, _ = sae.normaliser.into(rows(30, seed=6))
    code = sae.encode_normalised(x)
    loss = code.values.sum() + sae.rule.penalties(x, code, x, sae, Context())["charge"]
    loss.backward()
    assert torch.count_nonzero(sae.rule.threshold.grad) == 0


def test_thresholds_stay_above_half_the_bandwidth(built: Callable) -> None:
    sae = built("jump_relu", bandwidth=0.8)
    sae.rule.threshold.data.fill_(-3.0)
    sae.rule.observe(Code(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), 40), Context())
    assert torch.all(sae.rule.threshold == 0.4)


@pytest.mark.parametrize("penalty", ["l0", "tanh"])
def test_a_larger_charge_leaves_fewer_latents_on_and_tanh_alone_moves_values(
    penalty: str, built: Callable, rows: Callable
) -> None:
    counts = []
    for l0 in (0.0, 0.02, 0.5):
        sae = built("jump_relu", l0=l0, penalty=penalty)
        training = Training(sae.train(), TrainConfig(tokens=100 * 128, batch=128, lr=5e-3, aux=0.0))
        data = rows(128 * 20, seed=15).split(128)
        counts.append([float(training.advance(data[i % 20])["l0"]) for i in range(100)][-1])
    assert counts[0] > 1.1 * counts[1] > 1.1 * 1.1 * counts[2] > 0
    x, _ = sae.normaliser.into(rows(30, seed=16))
    charge = sae.rule.penalties(x, sae.encode_normalised(x), x, sae, Context())["charge"]
    (moved,) = torch.autograd.grad(charge, sae.W_enc, allow_unused=True)
    assert (moved is not None) == (penalty == "tanh")


def test_thresholds_do_not_depend_on_the_scale_of_the_inputs(built: Callable, rows: Callable) -> None:
    found = []
    for factor in (1.0, 1024.0):
        sae = built("jump_relu", l0=0.05)
        sae.normaliser.scale *= factor
        training = Training(sae.train(), TrainConfig(tokens=30 * 128, batch=128, lr=5e-3))
        for step in range(30):
            training.advance(rows(128, seed=50 + step) * factor)
        found.append(sae.rule.threshold.detach())
    assert torch.equal(found[0], found[1])
    assert found[0].std() > 1e-3, "they have learned"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("l0", -0.1, "l0 must be at least 0 and finite, got -0.1"),
        ("l0", float("nan"), "l0 must be at least 0 and finite, got nan"),
        ("bandwidth", 0.0, "bandwidth must be above 0"),
        ("threshold", 0.1, r"threshold must be at least 0\.5"),
        ("penalty", "l1", "Unknown penalty 'l1'"),
        ("warmup", 2.0, "warmup is a share of the steps"),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, value: object, message: str, built: Callable) -> None:
    with pytest.raises(ValueError, match=message):
        built("jump_relu", **{name: value})
