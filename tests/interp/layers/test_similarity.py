"""Unbiased linear CKA against its definition, invariances, and independent noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from interp.layers.similarity import Hsic, cka_of, linear_cka


def noise(rows: int, d: int, seed: int) -> Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_hsic(x: Tensor, y: Tensor) -> float:
    """Song et al. 2012, eq. 5, entry by entry."""
    n = len(x)
    k = [[0.0 if i == j else float(x[i] @ x[j]) for j in range(n)] for i in range(n)]
    l = [[0.0 if i == j else float(y[i] @ y[j]) for j in range(n)] for i in range(n)]
    trace = sum(k[i][j] * l[j][i] for i in range(n) for j in range(n))
    all_k, all_l = (sum(map(sum, m)) for m in (k, l))
    through = sum(k[i][j] * l[j][m] for i in range(n) for j in range(n) for m in range(n))
    return (trace + all_k * all_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * through) / (n * (n - 3))


def test_equals_the_definition_with_rows_in_parts() -> None:
    x = noise(9, 3, 0) + 50.0
    y = torch.cat([x[:, :2] ** 2 / 50, noise(9, 2, 1)], dim=1)
    xy, xx, yy = Hsic(), Hsic(), Hsic()
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        xy.add(x[part], y[part])
        xx.add(x[part], x[part])
        yy.add(y[part], y[part])
    for sums, pair in ((xy, (x, y)), (xx, (x, x)), (yy, (y, y))):
        assert sums.value == pytest.approx(slow_hsic(*pair), rel=1e-6)
    expected = slow_hsic(x, y) / math.sqrt(slow_hsic(x, x) * slow_hsic(y, y))
    assert cka_of(xy, xx, yy) == pytest.approx(expected, rel=1e-6)
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-6)


def test_is_exactly_one_with_itself() -> None:
    for seed in range(5):
        x = noise(50, 7, seed).float()
        assert linear_cka(x, x.clone()) == 1.0


def test_independent_noise_has_none_where_the_plain_form_is_large() -> None:
    x, y = noise(64, 128, 0), noise(64, 128, 1)
    values = [linear_cka(noise(64, 128, 2 * i), noise(64, 128, 2 * i + 1)) for i in range(20)]
    assert abs(sum(values) / len(values)) < 0.02
    x, y = x - x.mean(0), y - y.mean(0)
    plain = (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    assert plain > 0.5


def test_rotation_scale_and_shift_change_nothing_and_another_map_does() -> None:
    x = noise(40, 6, 0)
    turn = torch.linalg.qr(noise(6, 6, 1)).Q
    assert linear_cka(x, 3.0 * x @ turn + 7.0) == pytest.approx(1.0, abs=1e-9)
    assert linear_cka(x, x @ noise(6, 6, 2)) < 0.97
    y = x + noise(40, 6, 3)
    assert linear_cka(x @ turn, 0.1 * y - 5.0) == pytest.approx(linear_cka(x, y), abs=1e-9)


def test_widths_may_differ_and_constants_have_no_cka() -> None:
    x = noise(30, 4, 0)
    assert 0 < linear_cka(x, x[:, :3]) < 1
    assert math.isnan(linear_cka(x, torch.ones(30, 2)))
    assert math.isnan(Hsic().value)


def test_too_few_or_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="the same rows, at least 4 of them, got 3 and 3"):
        linear_cka(noise(3, 2, 0), noise(3, 2, 1))
    with pytest.raises(ValueError, match="got 5 and 6"):
        linear_cka(noise(5, 2, 0), noise(6, 2, 1))
