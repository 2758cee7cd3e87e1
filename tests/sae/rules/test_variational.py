"""The variational rule against its definition, and what charging silent latents does."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.config import SaeConfig, TargetConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.rules import Context


def variational_reference(pre: list[list[float]], k: int, deviation: Tensor, noise: Tensor) -> Tensor:
    """Return the dense code: means plus noise, the k largest by size, sign kept."""
    out = torch.zeros(noise.shape)
    for n, row in enumerate(pre):
        drawn = [max(v, 0.0) + float(deviation[n, i] * noise[n, i]) for i, v in enumerate(row)]
        for i in sorted(range(len(row)), key=lambda i: -abs(drawn[i]))[:k]:
            out[n, i] = drawn[i]
    return out


def learned(sae: Sae) -> Sae:
    """Return the dictionary with a learned variance that differs from latent to latent and row to row."""
    sae.rule.W_var.data.normal_(std=0.3, generator=torch.Generator().manual_seed(43))  # type: ignore[operator, union-attr]
    return sae


@pytest.mark.parametrize("variance", ["none", "fixed", "learned"])
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(
    variance: str, training: bool, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, raw = uneven(built("variational", k=4, variance=variance, sigma=0.5)).train(training), rows(20, seed=3)
    x, _ = sae.normaliser.into(raw)
    deviation = torch.full((20, 40), 0.5)
    if variance == "learned":
        log_variance = (x - sae.b_dec) @ learned(sae).rule.W_var.t() + sae.rule.b_var
        deviation = (log_variance.clamp(-6, 2) / 2).exp().detach()
    noise = torch.randn(20, 40, generator=torch.Generator().manual_seed(44))
    noise = noise if training and variance != "none" else torch.zeros(20, 40)
    with torch.no_grad():
        code = sae.encode_normalised(x, Context(generator=torch.Generator().manual_seed(44)))
        expected = variational_reference(preactivations(sae, raw), 4, deviation, noise)
    assert torch.allclose(code.dense(), expected, atol=1e-5)


def test_the_mean_of_many_draws_is_the_code_of_evaluation(built: Callable, rows: Callable) -> None:
    sae = built("variational", k=40, sigma=0.5)
    x, _ = sae.normaliser.into(rows(1, seed=4))
    ctx = Context(generator=torch.Generator().manual_seed(45))
    with torch.no_grad():
        drawn = sae.train().encode_normalised(x.expand(10_000, -1), ctx).dense()
        mean = sae.eval().encode_normalised(x).dense()
    assert torch.allclose(drawn.mean(0), mean[0], atol=5 * 0.5 / 100)
    assert drawn.std(0).mean() == pytest.approx(0.5, rel=0.02)


def charge(sae: Sae, x: Tensor) -> Tensor:
    ctx = Context(generator=torch.Generator().manual_seed(46))
    code = sae.encode_normalised(x, ctx)
    return sae.rule.penalties(x, code, x, sae, ctx)["kl"]


@pytest.mark.parametrize("variance", ["none", "fixed", "learned"])
@pytest.mark.parametrize("kl_on", ["selected", "all"])
def test_divergence_equals_the_one_of_two_gaussians(variance: str, kl_on: str, built: Callable, rows: Callable) -> None:
    sae = built("variational", "none", k=4, variance=variance, kl_on=kl_on, sigma=0.5, kl=2.0, warmup=0.0).train()
    x = rows(30, seed=5)
    mu = ((x - sae.b_dec) @ sae.W_enc.t() + sae.b_enc).relu()
    deviation = torch.full_like(mu, 1.0 if variance == "none" else 0.5)
    if variance == "learned":
        log_variance = (x - sae.b_dec) @ learned(sae).rule.W_var.t() + sae.rule.b_var
        deviation = (log_variance.clamp(-6, 2) / 2).exp()
    normal = torch.distributions.Normal
    each = torch.distributions.kl_divergence(normal(mu, deviation), normal(torch.zeros(()), torch.ones(())))
    on = torch.ones_like(mu)
    if kl_on == "selected":
        on = sae.encode_normalised(x, Context(generator=torch.Generator().manual_seed(46))).dense() != 0
    expected = 2.0 / 16 * (each * on).sum(1).mean()
    found = charge(sae, x)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    ours, theirs = (torch.autograd.grad(loss, [sae.W_enc, sae.b_enc]) for loss in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_divergence_is_zero_only_for_the_standard_gaussian(built: Callable, rows: Callable) -> None:
    x = rows(30, seed=6)
    for sigma, bias in ((1.0, -100.0), (0.5, -100.0), (1.0, 0.5)):
        sae = built("variational", "none", k=4, sigma=sigma, kl_on="all", kl=1.0).train()
        sae.b_enc.data.fill_(bias)
        found = float(charge(sae, x).detach())
        assert found == 0 if (sigma, bias) == (1.0, -100.0) else found > 1e-3


def test_charging_all_latents_moves_silent_ones_and_charging_the_selected_does_not(
    built: Callable, rows: Callable
) -> None:
    silent = {}
    for kl_on in ("selected", "all"):
        sae = built("variational", "none", k=2, kl_on=kl_on, variance="none").train()
        x = rows(4, seed=7)
        off = ~sae.encode_normalised(x).fired()
        (slope,) = torch.autograd.grad(charge(sae, x), sae.b_enc)
        silent[kl_on] = int(torch.count_nonzero(slope[off]))
    assert silent["selected"] == 0 < silent["all"]


def test_a_learned_variance_learns_and_stays_finite(built: Callable, rows: Callable) -> None:
    sae = built("variational", "none", k=4, variance="learned", sigma=0.5).train()
    x = rows(30, seed=8)
    ctx = Context(generator=torch.Generator().manual_seed(47))
    recon = sae.decode_normalised(sae.encode_normalised(x, ctx))
    slope, _ = torch.autograd.grad((x - recon).square().mean(), [sae.rule.W_var, sae.rule.b_var])
    assert slope.norm() > 0
    sae.rule.b_var.data.fill_(1e4)
    assert torch.isfinite(charge(sae, x))
    assert float(sae.encode_normalised(x, ctx).values.detach().abs().max()) < 10 * math.exp(1)


def test_draws_follow_the_generator_and_evaluation_draws_nothing(built: Callable, rows: Callable) -> None:
    sae, x = built("variational", k=4).train(), rows(20, seed=9)
    codes = [sae.encode_normalised(x, Context(generator=torch.Generator().manual_seed(s))).dense() for s in (1, 1, 2)]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
    sae.eval()
    assert torch.equal(sae.encode(x).dense(), sae.encode(x).dense())


def test_the_charge_rises_over_its_warmup(built: Callable, rows: Callable) -> None:
    sae, x = built("variational", k=4, variance="none", warmup=0.1, kl=1.0), rows(10, seed=10)
    code = sae.encode_normalised(x)
    found = [float(sae.rule.penalties(x, code, x, sae, Context(step, 100))["kl"].detach()) for step in (0, 4, 9, 50)]
    assert [round(value / found[3], 5) for value in found] == [0.1, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kl", -1.0, "kl must be at least 0"),
        ("kl", float("nan"), "kl must be at least 0 and finite, got nan"),
        ("sigma", 0.0, "sigma must be above 0"),
        ("kl_on", "some", "Unknown kl_on 'some'"),
        ("variance", "learnt", "Unknown variance 'learnt'; did you mean 'learned'"),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, value: object, message: str, built: Callable) -> None:
    with pytest.raises(ValueError, match=message):
        built("variational", **{name: value})


def test_a_transcoders_b_dec_is_no_centre_of_what_it_reads(rows: Callable) -> None:
    """Widths are equal, so that a wrong centre would not be noticed by its shape."""
    sae = Sae(
        SaeConfig(16, 40, "variational", {"k": 4, "variance": "learned"}, "none", target=TargetConfig("transcoder"))
    ).train()
    initialise(sae, rows(200), 0, rows(200, seed=5))
    x, gradients = rows(30, seed=6), []
    for shift in (0.0, 3.0):
        sae.b_dec.data.fill_(shift)
        sae.zero_grad()
        ctx = Context(generator=torch.Generator().manual_seed(1))
        code = sae.encode_normalised(x, ctx)
        code.values.square().sum().backward()
        gradients.append([sae.W_enc.grad.clone(), sae.b_enc.grad, sae.b_dec.grad, sae.rule.W_var.grad.clone()])  # type: ignore[union-attr]
    first, second = gradients
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[3], second[3])
    assert float(first[0].norm()) > 0
    assert first[2] is None, "b_dec is not part of the code"
