"""Dimensions in use, anisotropy and massive entries: closed cases, slow loops, and a peer library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor

from interp.layers.geometry import Geometry, effective_rank, massive_ratio, participation_ratio


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def geometry(x: Tensor, parts: int = 1) -> dict[str, float]:
    found = Geometry()
    for part in x.split(max(1, len(x) // parts)):
        found.update(part)
    return found.finish()


def test_ranks_of_equal_and_of_single_values() -> None:
    assert effective_rank(torch.ones(50, dtype=torch.float64)) == pytest.approx(50)
    assert participation_ratio(torch.ones(50, dtype=torch.float64)) == pytest.approx(50)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1)
    values = noise(9).abs()
    assert effective_rank(values) == pytest.approx(math.exp(entropy(values.numpy())))
    assert math.isnan(effective_rank(torch.zeros(3)))
    assert math.isnan(participation_ratio(torch.zeros(3)))


def test_equals_the_definitions_with_batches_in_parts() -> None:
    x = noise(6, 5, 7) * torch.arange(1.0, 8.0) + 30.0
    found = geometry(x, parts=3)
    rows = x[:, 1:].reshape(-1, 7).numpy()
    singular = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    assert found["participation_ratio"] == pytest.approx((singular**2).sum() ** 2 / (singular**4).sum())
    assert found["effective_rank"] == pytest.approx(math.exp(entropy(singular)))
    cosines = [
        float(rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j]))
        for i in range(len(rows))
        for j in range(len(rows))
        if i != j
    ]
    assert found["anisotropy"] == pytest.approx(np.mean(cosines), rel=1e-9)
    assert found["massive_mean"] == pytest.approx(np.mean([max(abs(r)) / np.median(abs(r)) for r in rows]))
    assert (found["peak"], found["peak_dim"]) == (np.abs(rows).max(), np.abs(rows).max(0).argmax())


def test_a_rotation_changes_no_dimension_and_a_shift_only_anisotropy() -> None:
    x = noise(5, 40, 6) * torch.tensor([5.0, 3.0, 1.0, 1.0, 0.5, 0.1])
    turned = x @ torch.linalg.qr(noise(6, 6, seed=1)).Q
    usual, rotated, moved = geometry(x), geometry(turned), geometry(x + 100.0)
    for name in ("participation_ratio", "effective_rank", "anisotropy"):
        assert rotated[name] == pytest.approx(usual[name], rel=1e-6)
    assert moved["participation_ratio"] == pytest.approx(usual["participation_ratio"], rel=1e-6)
    assert abs(usual["anisotropy"]) < 0.05
    assert moved["anisotropy"] > 0.95
    assert 1 < usual["participation_ratio"] < usual["effective_rank"] < 6


def test_one_direction_has_one_dimension() -> None:
    line = noise(2, 30, 1) * noise(8, seed=3)
    found = geometry(line)
    assert found["participation_ratio"] == pytest.approx(1)
    assert found["effective_rank"] == pytest.approx(1, abs=1e-3)


def test_massive_entries_are_found_and_the_first_position_stands_apart() -> None:
    x = noise(4, 10, 33)
    x[:, :, 20] = 5000.0
    x[:, 0, 4] = 1e6
    found = geometry(x)
    assert (found["peak"], found["peak_dim"], found["peak_dim_share"]) == (5000, 20, 1)
    assert found["massive_share"] == 1
    assert found["massive_first"] > 100 * found["massive_max"] > 0
    assert geometry(noise(4, 10, 33))["massive_share"] == 0
    assert massive_ratio(torch.tensor([[1.0, 2.0, -30.0]])).item() == 15
    assert math.isnan(massive_ratio(torch.zeros(4)))


def test_too_few_tokens_have_no_geometry() -> None:
    found = geometry(noise(1, 2, 3))
    assert found["tokens"] == 1
    assert math.isnan(found["participation_ratio"])
    assert math.isnan(found["anisotropy"])
    assert math.isnan(geometry(noise(1, 1, 3))["effective_rank"])
