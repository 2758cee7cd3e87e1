"""Ridge maps from moments: exact targets, other rows, noise, and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from interp.hooks import capture
from interp.layers.moments import Moments, moments_of
from interp.layers.ridge_map import fit_map, relative_errors
from interp.models import ModelHandle


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    x, y = noise(50, 4) + 1e4, noise(50, 3, seed=1) - 7.0
    parts = Moments()
    for part in (slice(0, 1), slice(1, 20), slice(20, 20), slice(20, 50)):
        parts.update(x[part], y[part])
    together = np.cov(x.numpy(), y.numpy(), rowvar=False, bias=True)[:4, 4:]
    assert np.allclose(parts.covariance, together, atol=1e-10)
    assert torch.allclose(parts.means[0], x.mean(0))
    assert torch.allclose(parts.means[1], y.mean(0))
    with pytest.raises(ValueError, match="same tokens, got 2 and 3"):
        parts.update(x[:2], y[:3])
    with pytest.raises(ValueError, match="at least one row"):
        _ = Moments().covariance


def test_moments_add_up() -> None:
    x, y = noise(30, 4) + 5, noise(30, 3, seed=1) * 2 - 1
    one, other, whole = (moments_of(x[part], y[part])[0] for part in (slice(0, 11), slice(11, 30), slice(0, 30)))
    for both in (one + other, other + one, one + other + Moments(), Moments() + whole):
        assert both.rows == 30
        assert torch.allclose(both.covariance, whole.covariance, atol=1e-12)
        assert torch.allclose(both.means[0], whole.means[0])
        assert torch.allclose(both.means[1], whole.means[1])
    assert one.rows == 11  # neither is changed


def test_an_affine_target_is_met() -> None:
    x = noise(200, 6)
    y = x @ noise(6, 9, seed=1) + noise(9, seed=2)
    xy, xx, yy = moments_of(x, y)
    found = fit_map(xy, xx, penalty=1e-9)
    assert math.sqrt(found.error(xy, xx, yy)) < 1e-6
    assert float(relative_errors(found(x), y).max()) < 1e-6
    other = noise(40, 6, seed=3)
    assert math.sqrt(found.error(*moments_of(other, other @ noise(6, 9, seed=1) + noise(9, seed=2)))) < 1e-6
    assert fit_map(xx, xx, penalty=1e-9).error(xx, xx, xx) < 1e-12  # a layer with itself


def test_a_random_target_is_not_predicted_whatever_the_fit_says() -> None:
    x, y = noise(300, 60), noise(300, 60, seed=1)
    xy, xx, yy = moments_of(x, y)
    found = fit_map(xy, xx)
    assert found.error(xy, xx, yy) == pytest.approx(1 - 60 / 300, abs=0.03)
    fresh = moments_of(noise(3000, 60, seed=2), noise(3000, 60, seed=3))
    assert 1.1 < found.error(*fresh) < 1.5
    assert fit_map(*moments_of(noise(20_000, 10), noise(20_000, 4, seed=1))[:2]).error(*fresh_pair()) == pytest.approx(
        1, abs=0.01
    )


def fresh_pair() -> tuple[Moments, Moments, Moments]:
    return moments_of(noise(2000, 10, seed=5), noise(2000, 4, seed=6))


def test_error_from_moments_is_that_of_the_predictions() -> None:
    x = noise(80, 5) * 3 + 2
    y = torch.tanh(x) @ noise(5, 4, seed=1) + 0.3 * noise(80, 4, seed=2)
    found = fit_map(*moments_of(x[:50], y[:50])[:2])
    test_x, test_y = x[50:] + 0.5, y[50:]
    slow = (found(test_x) - test_y).square().sum() / (test_y - test_y.mean(0)).square().sum()
    assert found.error(*moments_of(test_x, test_y)) == pytest.approx(float(slow), rel=1e-9)


def test_equals_scikit_learn() -> None:
    x, y = noise(70, 6) + 4, noise(70, 3, seed=1)
    penalty = 0.1
    xy, xx, _ = moments_of(x, y)
    scale = float(xx.covariance.trace()) / 6
    peer = Ridge(alpha=penalty * scale * 70).fit(x.numpy(), y.numpy())
    found = fit_map(xy, xx, penalty)
    assert np.allclose(found.weight.T, peer.coef_, atol=1e-9)
    assert np.allclose(found(x), peer.predict(x.numpy()), atol=1e-9)


def test_scale_and_shift_of_x_change_nothing() -> None:
    x, y = noise(60, 4), noise(60, 2, seed=1)
    usual = moments_of(x, y)
    moved = moments_of(1e-4 * x + 3, y)
    assert fit_map(*moved[:2], 0.3).error(*moved) == pytest.approx(fit_map(*usual[:2], 0.3).error(*usual), rel=1e-6)


def test_what_cannot_be_mapped_is_said() -> None:
    xy, xx, yy = moments_of(torch.ones(9, 3), noise(9, 2))
    with pytest.raises(ValueError, match="an x that varies, got one value in all 9 rows"):
        fit_map(xy, xx)
    with pytest.raises(ValueError, match="penalty must be above 0"):
        fit_map(yy, yy, 0.0)
    flat = moments_of(noise(9, 2), torch.ones(9, 3))
    assert math.isnan(fit_map(*flat[:2]).error(*flat))


def test_each_layer_of_a_model_maps_to_itself(model: ModelHandle) -> None:
    tokens = torch.randint(1, 300, (6, 20), generator=torch.Generator().manual_seed(0))
    with capture(model, [f"resid_post.{i}" for i in range(3)]) as acts:
        model.forward(tokens)
    rows = [acts[f"resid_post.{i}"][:, 1:].reshape(-1, 32) for i in range(3)]
    own = moments_of(rows[1], rows[1])
    assert fit_map(own[0], own[1]).error(*own) < 1e-6
    errors = [fit_map(*moments_of(rows[0], rows[i])[:2]).error(*moments_of(rows[0], rows[i])) for i in range(3)]
    assert errors[0] < errors[1] < errors[2] < 1
