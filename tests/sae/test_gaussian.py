"""Latents as Gaussians against torch's own, and gradients that come from the chosen latents alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import Parameter

from sae.gaussian import LOG_VARIANCE, Gaussian, Latents, variance_path
from sae.model import Sae


def normals() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(6, 9, generator=g, dtype=torch.float64), torch.randn(6, 9, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("one", [False, True])
def test_divergence_is_that_of_two_gaussians(one: bool) -> None:
    mu, log_variance = normals()
    log_variance = log_variance[0, 0] if one else log_variance
    standard = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    wanted = kl_divergence(Normal(mu, (log_variance / 2).exp().expand_as(mu)), standard).sum()
    assert torch.allclose(Gaussian(mu, log_variance).divergence(), wanted)
    assert float(Gaussian(torch.zeros(3), torch.zeros(())).divergence()) == 0.0


def test_draws_have_the_mean_and_the_variance() -> None:
    mu, log_variance = torch.tensor([1.0, -2.0]), torch.tensor([0.0, -1.4])
    many = Gaussian(mu.expand(20_000, 2), log_variance)
    values, noise = many.draw(torch.Generator().manual_seed(2))
    assert torch.allclose(values.mean(0), mu, atol=0.03)
    assert torch.allclose(values.var(0), log_variance.exp(), rtol=0.04)
    assert torch.equal(many.drawn(noise), values)


@pytest.fixture
def read(built: Callable[..., Sae], rows: Callable[..., Tensor]) -> tuple[Latents, list[Parameter]]:
    """Latents of 20 rows with a path to their variance, and the parameters of both paths."""
    sae = built("topk", k=4).train()
    path = variance_path(40, 16, torch.tensor(-1.0))
    path[0].data.normal_(std=2.0, generator=torch.Generator().manual_seed(3))
    x, _ = sae.normaliser.into(rows(20, seed=4))
    return Latents(x, sae, torch.tensor(0.0), path), [sae.W_enc, sae.b_enc, *path]


def test_a_path_starts_at_one_variance_for_all() -> None:
    weight, bias = variance_path(5, 3, torch.tensor(-1.5))
    assert (weight.shape, bias.tolist()) == ((5, 3), [-1.5] * 5)
    assert not weight.any()


def test_chosen_latents_are_those_of_all_and_no_other_takes_a_gradient(read: tuple) -> None:
    latents, parameters = read
    indices = torch.rand(20, 40, generator=torch.Generator().manual_seed(5)).topk(3).indices % 30
    every, chosen = latents.everywhere(), latents.at(indices)
    spread = every.log_variance.detach()
    assert float(every.mu.detach().min()) == 0.0
    assert (float(spread.min()), float(spread.max())) == LOG_VARIANCE
    assert torch.allclose(chosen.mu, every.mu.gather(1, indices), atol=1e-5)
    assert torch.allclose(chosen.log_variance, every.log_variance.gather(1, indices), atol=1e-5)
    here = Gaussian(every.mu.gather(1, indices), every.log_variance.gather(1, indices))
    dense = torch.autograd.grad(here.divergence(), parameters)
    sparse = torch.autograd.grad(chosen.divergence(), parameters)
    for ours, theirs in zip(sparse, dense, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        assert not ours[30:].any()
        assert ours[:30].any()


def test_without_gradients_nothing_has_a_graph(read: tuple) -> None:
    latents, _ = read
    with torch.no_grad():
        quiet = latents.everywhere()
    loud = latents.everywhere()
    assert not quiet.mu.requires_grad
    assert loud.mu.requires_grad
    assert torch.equal(quiet.mu, loud.mu)
