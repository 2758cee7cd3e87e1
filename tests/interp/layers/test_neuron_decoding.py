"""Neurons by the unembedding: slow statistics, a null that is one, planted neurons that beat it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from interp.hooks import capture, patch
from interp.layers.neurons import RotationNull, neuron_directions, sharpness
from interp.layers.vocabulary import Vocabulary
from interp.models import ModelHandle


def rotation(d: int, seed: int) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed)))
    return q * r.diagonal().sign()


@pytest.mark.parametrize("side", ["out", "in", "gate"])
def test_directions_are_what_a_neuron_writes_and_reads(model: ModelHandle, side: str) -> None:
    if side == "gate" and model.family != "llama":
        with pytest.raises(ValueError, match="no gate"):
            neuron_directions(model, 0, side)
        return
    found = neuron_directions(model, 1, side)
    assert found.shape == (model.d_mlp, 32)
    tokens, neuron = torch.tensor([[3, 4, 5]]), 11
    if side == "out":
        with capture(model, "mlp_out.1") as before:
            model.forward(tokens)

        def raised(acts: Tensor) -> Tensor:
            acts[..., neuron] += 1
            return acts

        with capture(model, "mlp_out.1") as after, patch(model, "mlp_act.1", raised):
            model.forward(tokens)
        change = (after["mlp_out.1"] - before["mlp_out.1"])[0, 1].double()
        assert torch.allclose(found[neuron], change, atol=1e-5)
        return
    from interp.layers.norms import block_norm
    from interp.layers.weights import layer_matrices

    row = layer_matrices(model, 1)[f"mlp_{side}"][neuron].double()
    norm = block_norm(model, 1, "mlp")
    x = torch.randn(32, generator=torch.Generator().manual_seed(0)).double()
    expected = row @ (norm(x) - norm.bias)
    assert float(found[neuron] @ x / norm.scale(x)) == pytest.approx(float(expected))


def test_sharpness_is_that_of_slow_statistics(model: ModelHandle) -> None:
    directions = neuron_directions(model, 0)[:7]
    found = sharpness(Vocabulary(model), directions, k=3)
    norm = model.final_norm
    for i, w in enumerate(directions.float()):
        logits = model.unembed() @ (norm.weight * (w if model.family == "llama" else w - w.mean()))
        assert float(found.kurtosis[i]) == pytest.approx(stats.kurtosis(logits.numpy(), fisher=False), rel=1e-4)
        z = (logits - logits.mean()) / logits.std(correction=0)
        assert float(found.top[i]) == pytest.approx(float(z.max()), rel=1e-4)
        assert found.best[i].tolist() == z.topk(3).indices.tolist()
    scaled = sharpness(Vocabulary(model), 50 * directions, k=3)
    assert torch.allclose(scaled.kurtosis, found.kurtosis, rtol=1e-4)  # neither depends on length


@pytest.mark.parametrize("measure", ["kurtosis", "top"])
def test_the_null_is_null_for_random_weights_and_for_any_rotation(gpt2: ModelHandle, measure: str) -> None:
    vocabulary = Vocabulary(gpt2)
    null = RotationNull(vocabulary, draws=2000)
    every = torch.cat([neuron_directions(gpt2, layer) for layer in range(3)]).float()
    for directions in (every, every @ rotation(32, 5)):
        p = null.p_values(sharpness(vocabulary, directions), measure).numpy()
        assert stats.kstest(p, "uniform").pvalue > 0.01, measure
        assert abs((p < 0.05).mean() - 0.05) < 0.035  # 384 neurons: 3 standard errors


def test_planted_neurons_beat_the_null_and_rotated_ones_do_not(make_model: Callable[..., ModelHandle]) -> None:
    handle = make_model("gpt2")
    weight = torch.randn(300, 32, generator=torch.Generator().manual_seed(1))
    weight[:40] *= 4  # a few tokens that a neuron can speak for
    handle.module.lm_head.weight = torch.nn.Parameter(weight, requires_grad=False)
    with torch.no_grad():
        handle.module.transformer.h[1].mlp.c_proj.weight[:40] = weight[:40] / handle.final_norm.weight
    vocabulary = Vocabulary(handle)
    null = RotationNull(vocabulary, draws=1000)
    directions = neuron_directions(handle, 1)[:40]
    found = sharpness(vocabulary, directions, k=1)
    assert found.best[:, 0].tolist() == list(range(40))
    planted = null.p_values(found, "top")
    rotated = null.p_values(sharpness(vocabulary, directions.float() @ rotation(32, 2)), "top")
    assert float((planted < 0.05).double().mean()) > 0.9
    assert float((rotated < 0.05).double().mean()) < 0.25
    assert float(planted.min()) >= 1 / 1001


def test_silent_neurons_have_no_p_value_and_odd_settings_are_refused(gpt2: ModelHandle) -> None:
    vocabulary = Vocabulary(gpt2)
    null = RotationNull(vocabulary, draws=5)
    found = sharpness(vocabulary, torch.zeros(1, 32))
    assert bool(null.p_values(found).isnan().all())
    with pytest.raises(ValueError, match="kurtosis"):
        null.p_values(found, "kurtsis")
    with pytest.raises(ValueError, match="draws"):
        RotationNull(vocabulary, draws=0)
    with pytest.raises(ValueError, match="side"):
        neuron_directions(gpt2, 0, "inn")
