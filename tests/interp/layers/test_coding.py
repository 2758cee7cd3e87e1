"""Coding rates by closed cases and both forms, sparsity by definition, and on the three families."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.hooks import capture
from interp.layers.coding import CodingRates, Sparsity, coding_rate, head_rate, sparsity
from interp.models import ModelHandle


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_rate(rows: np.ndarray, eps_squared: float, gram: bool) -> float:
    """From the definition, tokens as columns; `gram` takes the n x n form."""
    z = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    d, n = z.shape
    inner = z.T @ z if gram else z @ z.T
    return 0.5 * float(np.log(np.linalg.eigvalsh(np.eye(len(inner)) + d / (n * eps_squared) * inner)).sum())


@pytest.mark.parametrize("shape", [(200, 32), (32, 200), (30, 30)])
@pytest.mark.parametrize("eps_squared", [0.25, 0.01])
def test_both_forms_are_equal(shape: tuple[int, int], eps_squared: float) -> None:
    rows = noise(*shape) * 7
    found = float(coding_rate(rows, eps_squared))
    assert found == pytest.approx(slow_rate(rows.numpy(), eps_squared, gram=True), rel=1e-9)
    assert found == pytest.approx(slow_rate(rows.numpy(), eps_squared, gram=False), rel=1e-9)


def test_two_hundred_random_unit_vectors_of_32_dimensions() -> None:
    # 24.9163 is published for one draw; the spread over draws is 0.04 around 24.95.
    rates = [float(coding_rate(noise(200, 32, seed=seed), 0.25)) for seed in range(10)]
    assert min(rates) - 0.05 < 24.9163 < max(rates) + 0.05
    assert max(rates) - min(rates) < 0.25


def test_closed_cases() -> None:
    turn = torch.linalg.qr(noise(24, 24)).Q
    assert float(coding_rate(turn, 0.25)) == pytest.approx(24 / 2 * math.log(1 + 1 / 0.25))
    line = noise(50, 1).abs() * noise(24)
    assert float(coding_rate(line, 0.25)) == pytest.approx(0.5 * math.log(1 + 24 / 0.25))
    assert float(coding_rate(torch.zeros(5, 3))) == 0


def test_rotation_order_and_norms_of_tokens_change_nothing() -> None:
    rows = noise(40, 9)
    usual = float(coding_rate(rows))
    turned = (rows @ torch.linalg.qr(noise(9, 9, seed=1)).Q).flip(0) * noise(40, 1, seed=2)
    assert float(coding_rate(turned)) == pytest.approx(usual)
    assert float(coding_rate(rows * 1e30)) == pytest.approx(usual)
    assert float(coding_rate(rows, 0.02)) < usual  # coarser


def test_many_sequences_on_two_threads_have_the_rates_of_each_alone() -> None:
    rows, threads = noise(6, 200, 180), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = coding_rate(rows)
    finally:
        torch.set_num_threads(threads)
    assert together.tolist() == pytest.approx([slow_rate(one.numpy(), 0.01, gram=False) for one in rows], rel=1e-9)


def test_heads_add_up() -> None:
    heads = noise(2, 15, 3, 8)
    found = head_rate(heads, 0.01)
    for b in range(2):
        expected = sum(slow_rate(heads[b, :, k].numpy(), 0.01, gram=True) for k in range(3))
        assert float(found[b]) == pytest.approx(expected, rel=1e-9)


def test_streams_are_means_over_sequences_without_their_first_position() -> None:
    x = noise(5, 12, 6)
    whole, parts = CodingRates(0.1), CodingRates(0.1)
    whole.update(x)
    x[:, 0] = 1e9
    for part in x.split(2):
        parts.update(part)
    each = [slow_rate(one[1:].numpy(), 0.1, gram=False) for one in x]
    assert parts.finish() == whole.finish()
    assert parts.finish()["rate_mean"] == pytest.approx(np.mean(each))
    assert parts.finish()["rate_std"] == pytest.approx(np.std(each))
    assert (parts.finish()["sequences"], parts.finish()["length"]) == (5, 11)


def test_lengths_are_not_mixed_and_overflow_is_left_out() -> None:
    sums = CodingRates()
    x = noise(3, 8, 4)
    x[1, 5, 0] = torch.inf
    sums.update(x)
    assert sums.finish()["sequences"] == 2
    with pytest.raises(ValueError, match=r"one length, 2 tokens or more; got 9 after 8\."):
        sums.update(noise(3, 9, 4))
    with pytest.raises(ValueError, match=r"2 tokens or more; got 1\."):
        CodingRates().update(noise(3, 1, 4))
    with pytest.raises(ValueError, match="eps_squared must be above 0"):
        coding_rate(x, 0.0)
    assert math.isnan(CodingRates().finish()["rate_mean"])


def test_sparsity_by_definition() -> None:
    x = torch.tensor([[0.0, 0.0, 3.0, 0.0], [1.0, -1.0, 1.0, 1.0], [0.0, 1e-4, 0.5, -1.0], [0.0, 0.0, 0.0, 0.0]])
    found = sparsity(x)
    assert found["zero"][:3].tolist() == [0.75, 0.0, 0.25]
    assert found["active"][:3].tolist() == [0.25, 1.0, 0.5]
    third = (2 - 1.5001 / math.sqrt(1.25 + 1e-8)) / (2 - 1)
    assert found["hoyer"][:3].tolist() == pytest.approx([1.0, 0.0, third], abs=1e-6)
    assert all(math.isnan(values[3]) for values in found.values())
    again = sparsity(x * 1e-20)
    assert torch.allclose(again["hoyer"][:3], found["hoyer"][:3])


def test_on_models(model: ModelHandle) -> None:
    tokens = torch.randint(1, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    with capture(model, ["resid_post.1", "v.1", "mlp_act.1"]) as acts:
        model.forward(tokens)
    stream, heads, sparse = CodingRates(), CodingRates(), Sparsity()
    stream.update(acts["resid_post.1"])
    heads.update(acts["v.1"])
    sparse.update(acts["mlp_act.1"])
    assert stream.finish()["rate_mean"] == pytest.approx(
        np.mean([slow_rate(one[1:].double().numpy(), 0.01, gram=True) for one in acts["resid_post.1"]])
    )
    per_head = acts["v.1"][:, 1:].double().numpy()
    expected = [sum(slow_rate(one[:, k], 0.01, True) for k in range(one.shape[1])) for one in per_head]
    assert heads.finish()["rate_mean"] == pytest.approx(np.mean(expected))
    found = sparse.finish()
    assert found["zero_mean"] == 0  # GELU and SiLU are never exactly 0
    assert 0 < found["hoyer_mean"] < 1
    assert 0.5 < found["active_mean"] <= 1
