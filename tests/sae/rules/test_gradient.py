"""The gradient rule against its definition, and that its choice is a constant that evaluation does without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.config import SaeConfig, TrainConfig
from sae.model import Sae
from sae.rules import Context
from sae.rules.gradient import gap
from sae.training import begin


def gradient_reference(pre: list[list[float]], k: int, gradient: Tensor | None, atoms: Tensor, mode: str) -> Tensor:
    """Return the dense code, one entry at a time."""
    out = torch.zeros(len(pre), len(atoms))
    for n, row in enumerate(pre):
        score = [max(value, 0.0) for value in row]
        if gradient is not None:
            mean = float(gradient.norm(dim=1).mean())
            effect = [abs(float(atom @ gradient[n])) / mean for atom in atoms]
            score = [z * ((1 + 2.0 * e) if mode == "add" else e) for z, e in zip(score, effect, strict=True)]
        for i in sorted(range(len(row)), key=lambda i: -score[i])[:k]:
            out[n, i] = max(row[i], 0.0)
    return out


def slopes(n: int = 20, seed: int = 48) -> Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("atoms", ["unit", "free"])
@pytest.mark.parametrize("mode", ["add", "product"])
@pytest.mark.parametrize("training", [False, True])
def test_code_equals_the_slow_reference(
    atoms: str, mode: str, training: bool, built: Callable, rows: Callable, uneven: Callable, preactivations: Callable
) -> None:
    sae = uneven(built("gradient", atoms=atoms, k=4, beta=2.0, mode=mode)).train(training)
    raw, gradient = rows(20, seed=3), slopes()
    x, _ = sae.normaliser.into(raw)
    with torch.no_grad():
        code = sae.encode_normalised(x, Context(gradient=gradient)).dense()
        unit = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    expected = gradient_reference(preactivations(sae, raw), 4, gradient if training else None, unit, mode)
    assert torch.allclose(code, expected, atol=1e-5)


def test_beta_0_is_topk(built: Callable, rows: Callable) -> None:
    plain, weighed = (built(rule, k=4, **args).train() for rule, args in (("topk", {}), ("gradient", {"beta": 0.0})))
    x, _ = plain.normaliser.into(rows(20, seed=4))
    with torch.no_grad():
        ours = weighed.encode_normalised(x, Context(gradient=slopes())).dense()
        assert torch.equal(plain.encode_normalised(x).dense(), ours)


@pytest.mark.parametrize("mode", ["add", "product"])
def test_only_the_direction_and_relative_size_of_gradients_count(mode: str, built: Callable, rows: Callable) -> None:
    sae = built("gradient", k=4, mode=mode).train()
    x, _ = sae.normaliser.into(rows(20, seed=5))
    with torch.no_grad():
        codes = [sae.encode_normalised(x, Context(gradient=slopes() * f)).dense() for f in (1.0, 1024.0, -1.0)]
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0], codes[2])


@pytest.mark.parametrize("mode", ["add", "product"])
@pytest.mark.parametrize("missing", [0.0, float("nan"), float("inf")])
def test_rows_without_a_gradient_are_chosen_for_by_value(
    mode: str, missing: float, built: Callable, rows: Callable
) -> None:
    sae, gradient = built("gradient", k=4, mode=mode).train(), slopes()
    gradient[7] = missing
    x, _ = sae.normaliser.into(rows(20, seed=6))
    with torch.no_grad():
        code = sae.encode_normalised(x, Context(gradient=gradient)).dense()
        plain = sae.eval().encode_normalised(x).dense()
    assert torch.equal(code[7], plain[7])
    assert not torch.equal(code, plain)


def test_no_gradient_passes_through_the_score(built: Callable, rows: Callable) -> None:
    sae, gradient = built("gradient", k=4).train(), slopes().requires_grad_()
    x, _ = sae.normaliser.into(rows(20, seed=7))
    code = sae.encode_normalised(x, Context(gradient=gradient))
    found = torch.autograd.grad(code.values.sum(), [gradient, sae.W_dec], allow_unused=True)
    assert found == (None, None)


def test_the_gap_of_plain_selection_is_told(built: Callable, rows: Callable) -> None:
    sae, gradient = built("gradient", k=4, beta=50.0).eval(), slopes(200)
    x, _ = sae.normaliser.into(rows(200, seed=8))
    found = gap(sae, x, gradient)
    with torch.no_grad():
        chosen = sae.train().encode_normalised(x, Context(gradient=gradient))
        plain = sae.eval().encode_normalised(x)
        left = (x - sae.decode_normalised(plain)).square().sum() / (x - x.mean(0)).square().sum()
    assert found["fvu_plain"] == pytest.approx(float(left), rel=1e-5)
    assert found["fvu_gradient"] != found["fvu_plain"]
    shared = ((chosen.dense() != 0) & (plain.dense() != 0)).sum() / (chosen.dense() != 0).sum()
    assert found["overlap"] == pytest.approx(float(shared))
    assert not sae.training
    sae.rule.beta = 0.0
    assert gap(sae, x, gradient)["overlap"] == 1.0


def test_a_source_without_gradients_is_refused() -> None:
    class Plain:
        d_in = 16

        def batch(self, step: int) -> Tensor:
            return slopes(64, step)

    sae = Sae(SaeConfig(16, 40, "gradient", {"k": 4}))
    with pytest.raises(ValueError, match="'gradient' needs the gradient of the model's loss"):
        begin(sae, Plain(), TrainConfig(tokens=640, batch=64))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("beta", -1.0, "beta must be at least 0"), ("beta", float("nan"), "got nan"), ("mode", "sum", "Unknown mode")],
)
def test_arguments_out_of_range_are_refused(name: str, value: object, message: str, built: Callable) -> None:
    with pytest.raises(ValueError, match=message):
        built("gradient", **{name: value})
