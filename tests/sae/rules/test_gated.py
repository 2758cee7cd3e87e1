"""Gated against its definition, and which term of the loss teaches which of its two paths."""

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


def gated_reference(pre: list[list[float]], sae: Sae) -> Tensor:
    """Return the dense code, one entry at a time."""
    length = sae.W_dec.norm(dim=1)
    bias, r, b_mag = (each.tolist() for each in (sae.b_enc * length, sae.rule.r, sae.rule.b_mag))  # type: ignore[operator, union-attr]
    out = torch.zeros(len(pre), sae.d_sae)
    for n, row in enumerate(pre):
        for i, gate in enumerate(row):
            magnitude = math.exp(r[i]) * (gate - bias[i]) + b_mag[i]
            out[n, i] = max(magnitude, 0.0) if gate > 0 else 0.0
    return out


def moved(sae: Sae) -> Sae:
    """Return the dictionary with a magnitude path of its own."""
    g = torch.Generator().manual_seed(42)
    for each in (sae.rule.r, sae.rule.b_mag):
        each.data.normal_(std=0.3, generator=g)  # type: ignore[operator, union-attr]
    return sae


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(
    atoms: str, training: bool, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae, x = moved(uneven(built("gated", atoms=atoms))).train(training), rows(20, seed=3)
    with torch.no_grad():
        assert torch.allclose(sae.encode(x).dense(), gated_reference(preactivations(sae, x), sae), atol=1e-4)


def losses(sae: Sae, x: Tensor) -> dict[str, Tensor]:
    code = sae.encode_normalised(x)
    recon = sae.decode_normalised(code)
    return {"mse": (x - recon).square().mean(), **sae.rule.penalties(x, code, recon, sae, Context())}


def test_each_term_teaches_its_own_path(built: Callable, rows: Callable) -> None:
    sae = moved(built("gated", "none")).train()
    found = losses(sae, rows(60, seed=4))
    parameters = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "r": sae.rule.r, "b_mag": sae.rule.b_mag}
    taught = {}
    for term, value in found.items():
        grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, retain_graph=True)
        taught[term] = {
            name for name, grad in zip(parameters, grads, strict=True) if grad is not None and grad.norm() > 1e-7
        }
    assert taught == {
        "mse": {"W_enc", "W_dec", "r", "b_mag"},  # the gate's step lets no gradient through: not b_enc
        "l1": {"W_enc", "b_enc"},
        "gate": {"W_enc", "b_enc"},  # the frozen decoder: not W_dec
    }


def test_penalties_equal_their_dense_definition(built: Callable, rows: Callable) -> None:
    sae, x = moved(built("gated", "none", l1=0.4)).train(), rows(60, seed=5)
    found = losses(sae, x)
    gate = ((x - sae.b_dec) @ sae.W_enc.t() + sae.b_enc).relu()
    assert torch.allclose(found["l1"], 0.4 / 4 * gate.sum(1).mean(), rtol=1e-5)
    assert torch.allclose(found["gate"], (x - gate @ sae.W_dec - sae.b_dec).square().mean(), rtol=1e-5)


def test_values_can_grow_without_opening_more_gates(built: Callable, rows: Callable) -> None:
    sae, x = built("gated").eval(), rows(40, seed=6)
    with torch.no_grad():
        before = sae.encode(x).dense()
        sae.rule.r += math.log(2.0)
        after = sae.encode(x).dense()
    assert torch.allclose(after, 2 * before, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("l1", -0.1), ("l1", float("nan")), ("warmup", 1.5)])
def test_arguments_out_of_range_are_refused(name: str, value: float, built: Callable) -> None:
    with pytest.raises(ValueError, match=f"{name} .*must"):
        built("gated", **{name: value})


def test_a_transcoders_b_dec_is_no_centre_of_what_it_reads(rows: Callable) -> None:
    """Widths are equal, so that a wrong centre would not be noticed by its shape."""
    sae = Sae(SaeConfig(16, 40, "gated", {}, "none", target=TargetConfig("transcoder"))).train()
    initialise(sae, rows(200), 0, rows(200, seed=5))
    x, gradients = rows(30, seed=6), []
    for shift in (0.0, 3.0):
        sae.b_dec.data.fill_(shift)
        sae.zero_grad()
        ctx = Context(generator=torch.Generator().manual_seed(1))
        code = sae.encode_normalised(x, ctx)
        code.values.square().sum().backward()
        gradients.append([sae.W_enc.grad.clone(), sae.b_enc.grad, sae.b_dec.grad, sae.rule.r.grad.clone()])  # type: ignore[union-attr]
    first, second = gradients
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[3], second[3])
    assert float(first[0].norm()) > 0
    assert first[2] is None, "b_dec is not part of the code"
