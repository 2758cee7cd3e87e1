"""Observables: exact where the path is linear, a gradient through an MLP, the coupling by Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from interp.hooks import capture
from interp.layers.direct import direct_logits
from interp.layers.norms import block_norm, final_norm
from interp.layers.observables import HeadStep, MlpStep, coupling, coupling_check, observable, propagate, swap_along
from interp.layers.vocabulary import token_rows
from interp.layers.weights import layer_bias, layer_matrices
from interp.models import ModelHandle
from interp.models.taps import BLOCKS

TOKENS = torch.tensor([[5, 9, 40, 77, 120, 33]])
PLUS, MINUS = 17, 90


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(handle: ModelHandle) -> Tensor:
    return observable(handle, token_rows(handle, {PLUS: 1, MINUS: -1}))


def test_an_observable_reads_the_difference_of_logits_off_the_last_stream(model: ModelHandle) -> None:
    with capture(model, "resid_post.2") as acts:
        logits = model.logits(TOKENS)[0, -1].double()
    h, norm = acts["resid_post.2"][0, -1], final_norm(model)
    constant = (model.unembed()[PLUS] - model.unembed()[MINUS]).double() @ norm.bias
    found = read(model) @ h.double() / norm.scale(h) + constant
    assert float(found) == pytest.approx(float(logits[PLUS] - logits[MINUS]), abs=1e-5)


@pytest.mark.parametrize("layer", [0, 2])
def test_through_a_head_with_its_attention_held_it_is_exact(model: ModelHandle, layer: int) -> None:
    head, kv = 3, 3 * model.n_kv_heads // 4
    with capture(model, [f"resid_pre.{layer}", "resid_post.2"]) as acts:
        model.forward(TOKENS)
    with capture(model, f"pattern.{layer}", view="bridge") as seen:
        model.forward(TOKENS, view="bridge")
    attention = seen[f"pattern.{layer}"][0, head, -1].double()
    y, x, norm = read(model), acts[f"resid_pre.{layer}"][0].double(), block_norm(model, layer, "attn")
    back = propagate(model, y, [HeadStep(layer, head)])
    moved = attention @ (x @ back / norm.scale(x))
    # biases of the norm and of v reach the head too; attention adds up to 1
    m = layer_matrices(model, layer)
    bias = layer_bias(model, layer, "v")
    bias = torch.zeros(8 * model.n_kv_heads) if bias is None else bias
    constant = (m["v"].double() @ norm.bias + bias)[8 * kv : 8 * kv + 8]
    moved = moved + y @ (m["o"].double()[:, 8 * head : 8 * head + 8] @ constant)
    found = direct_logits(model, TOKENS, torch.tensor([PLUS]), against=torch.tensor([MINUS]))
    (i,) = [j for j in found.columns("head", layer) if found.parts[j].index == head]
    scale = final_norm(model).scale(acts["resid_post.2"][0, -1])
    assert float(moved / scale) == pytest.approx(float(found.values[0, i]), abs=1e-5)


def test_through_an_mlp_it_is_the_slope(model: ModelHandle) -> None:
    y, at = read(model), noise(32, seed=3)
    slope = propagate(model, y, [MlpStep(1, at)])
    block = model.module.get_submodule(BLOCKS[model.family])[1]
    norm = block.ln_2 if model.family == "gpt2" else block.post_attention_layernorm
    for seed in range(3):
        step = 1e-2 * noise(32, seed=seed)
        up, down = (block.mlp(norm((at + sign * step).float()[None, None]))[0, 0].double() @ y for sign in (1, -1))
        assert float(slope @ step) == pytest.approx(float(up - down) / 2, rel=0.05, abs=2e-4)


def test_steps_compose_and_lead_backwards(gpt2: ModelHandle) -> None:
    y = read(gpt2)
    at = noise(32, seed=1)
    long = propagate(gpt2, y, [HeadStep(2, 1), MlpStep(1, at), HeadStep(1, 0)])
    short = propagate(gpt2, y, [HeadStep(2, 1)])
    short = propagate(gpt2, short, [MlpStep(1, at)])
    assert torch.allclose(long, propagate(gpt2, short, [HeadStep(1, 0)]))
    for path in ([HeadStep(3, 0)], [HeadStep(1, 0), HeadStep(2, 0)], [HeadStep(1, 0), MlpStep(1, at)]):
        with pytest.raises(ValueError, match="backwards"):
            propagate(gpt2, y, path)


def test_the_coupling_is_the_mean_over_isotropic_inputs_held_at_one() -> None:
    one, other = noise(40, seed=0), 3 * noise(40, seed=1)
    other = other + 2 * one
    x = noise(60_000, 40, seed=2)
    held = x + ((1 - x @ one) / one.square().sum())[:, None] * one
    assert float((held @ one).std()) < 1e-9
    seen = held @ other
    spread = math.sqrt(float(other.square().sum() - (one @ other) ** 2 / one.square().sum()))
    assert float(seen.std()) == pytest.approx(spread, rel=0.02)
    assert coupling(one, other) == pytest.approx(float(seen.mean()), abs=4 * spread / math.sqrt(len(x)))
    assert coupling(one, other) != pytest.approx(coupling(other, one), rel=0.1)  # not symmetric
    assert coupling(one, one) == pytest.approx(1)
    assert math.isnan(coupling(torch.zeros(3), torch.ones(3)))


def test_random_directions_hardly_couple() -> None:
    d = 64
    found = torch.tensor([coupling(noise(d, seed=2 * i), noise(d, seed=2 * i + 1)) for i in range(400)])
    assert float(found.mean()) == pytest.approx(0, abs=4 * float(found.std()) / 20)
    # y1 . y2 / |y1|^2 of two Gaussian vectors: Student's t with d degrees of freedom over root d, variance 1 / (d - 2)
    assert float(found.var()) == pytest.approx(1 / (d - 2), rel=0.25)


def test_the_prediction_holds_on_isotropic_inputs_and_not_on_others() -> None:
    one, other = noise(20, seed=0), noise(20, seed=1)
    x = noise(40_000, 20, seed=2)
    found = coupling_check(x, one, other)
    assert found.slope == pytest.approx(found.predicted, abs=0.03)
    assert found.correlation == pytest.approx(found.cosine, abs=0.02)
    stretched = coupling_check(x * torch.linspace(0.1, 5, 20), one, other)
    assert abs(stretched.slope - found.predicted) > 0.1
    with pytest.raises(ValueError, match="two rows"):
        coupling_check(x[:1], one, other)


def test_a_swap_moves_one_coordinate_only() -> None:
    x, source, y = noise(4, 20, seed=0), noise(4, 20, seed=1), noise(20, seed=2)
    found = swap_along(x, source, y)
    assert torch.allclose(found @ y, source @ y)
    across = noise(20, seed=3)
    across = across - (across @ y) / (y @ y) * y
    assert torch.allclose(found @ across, x @ across)
