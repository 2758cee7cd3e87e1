"""Dark matter: parts add up, known errors land where they belong, and shrinkage does not pass for a linear error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae.dark_matter import dark_matter


def activations(rows: int = 3000, d: int = 8, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, d, generator=g) * torch.linspace(0.5, 2, d) + 1.0


def test_shrinkage_alone_is_linear_without_the_control_and_nothing_with_it() -> None:
    x = activations()
    found = dark_matter(x, 0.7 * x)
    assert found.raw_linear_share == pytest.approx(1, abs=1e-9)
    assert found.error_r2 == pytest.approx(1, abs=1e-9)
    assert found.shrinkage == pytest.approx(found.fvu, rel=1e-9)
    assert abs(found.linear) < 1e-12
    assert abs(found.nonlinear) < 1e-12


def test_directions_that_the_dictionary_lacks_are_linear() -> None:
    x = activations()
    mask = torch.ones(8)
    mask[5:] = 0
    found = dark_matter(x, x * mask)
    share = float(x[:, 5:].var(0).sum() / x.var(0).sum())
    assert found.linear == pytest.approx(share, rel=0.05)
    assert abs(found.nonlinear) < 1e-9


def test_noise_that_x_does_not_determine_is_nonlinear() -> None:
    x = activations()
    noise = 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    found = dark_matter(x, x + noise)
    share = 8 * 0.09 / float(x.var(0).sum())
    assert found.fvu == pytest.approx(share, rel=0.05)
    kept = (power := torch.linspace(0.5, 2, 8).square()) / (power + 0.09)  # best multiple of x_hat, by coordinate
    assert found.nonlinear == pytest.approx(float((kept.square() * 0.09).sum() / power.sum()), rel=0.07)
    assert found.linear == pytest.approx(float(((1 - kept).square() * power).sum() / power.sum()), rel=0.2)
    assert abs(found.raw_linear_share) < 0.03
    assert abs(found.norm_r2) < 0.05


def test_the_norm_of_an_error_that_grows_with_x_is_predicted() -> None:
    x = activations().abs()
    sign = torch.randn(len(x), 1, generator=torch.Generator().manual_seed(3)).sign()
    error = sign * (0.1 + x[:, :1]).sqrt() * torch.eye(8)[2]
    found = dark_matter(x, x - error)
    assert found.norm_r2 > 0.99  # ||e||^2 = 0.1 + x_0
    assert abs(found.error_r2) < 0.05


def test_parts_add_up_and_equal_least_squares_done_by_hand() -> None:
    x = activations(2000, 5)
    x_hat = 0.8 * x.relu() + 0.1
    found = dark_matter(x, x_hat, fit=0.6, seed=4)
    assert found.shrinkage + found.linear + found.nonlinear == pytest.approx(found.fvu, rel=1e-12)
    assert found.rows == 800
    assert found.linear > 0.001
    assert found.nonlinear > 0.001
    again = dark_matter(x, x_hat, fit=0.6, seed=5)
    assert again.nonlinear == pytest.approx(found.nonlinear, rel=0.3)
    assert again.fvu != found.fvu
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(6)))[0]
    turned = dark_matter(x @ turn, x_hat @ turn, fit=0.6, seed=4)
    assert turned.nonlinear == pytest.approx(found.nonlinear, rel=1e-4)
    assert turned.linear == pytest.approx(found.linear, rel=1e-4)


def test_the_maps_never_see_the_rows_that_they_are_measured_on() -> None:
    x = activations(200, 20)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    assert dark_matter(x, x + noise).raw_linear_share < 0  # fitted on noise, it is worse than nothing elsewhere


def test_too_few_rows_are_refused() -> None:
    x = activations(60, 8)
    with pytest.raises(ValueError, match="fitted on at least 32 rows, got 30 of 60; give more"):
        dark_matter(x, x)
    with pytest.raises(ValueError, match="fit is a share"):
        dark_matter(x, x, fit=1.0)
