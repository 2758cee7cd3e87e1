"""Gates and relevance of layers: finite differences, one sequence at a time, and the relevance of prompts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.attribution.relevance import check_conservation, relevance
from interp.layers.gates import gate_gradients
from interp.layers.layer_relevance import layer_relevance
from interp.layers.skip_loss import SkipLoss
from interp.models import ModelHandle
from interp.tasks.metrics import Custom


def some_tokens(rows: int = 3, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(1, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_gradients_are_slopes_of_the_loss_by_the_scale_of_a_block(model: ModelHandle) -> None:
    tokens = some_tokens()
    found, loss = gate_gradients(model, tokens), SkipLoss(model)
    loss.add(tokens)
    step = 0.02
    for layer in range(3):
        slope = (loss.sums((layer,), 1 + step) - loss.sums((layer,), 1 - step))[:, 0] / (2 * step)
        torch.testing.assert_close(found.gradient[:, layer], slope, rtol=0.03, atol=0.03)
    assert float(found.gradient.abs().max()) > 1
    torch.testing.assert_close(found.taylor, -found.gradient.sum(0) / 24)
    assert bool((found.size >= found.gradient.abs() - 1e-6).all())


def test_fisher_by_one_sequence_at_a_time(gpt2: ModelHandle) -> None:
    tokens = some_tokens(4)
    whole = gate_gradients(gpt2, tokens[:3]) + gate_gradients(gpt2, tokens[3:])
    alone = [gate_gradients(gpt2, row[None]) for row in tokens]
    slow = sum(torch.outer(one.per_token[0], one.per_token[0]) for one in alone) / 4
    assert isinstance(slow, Tensor)
    torch.testing.assert_close(whole.fisher, slow, rtol=1e-3, atol=1e-5)
    size = slow.diagonal().sqrt()
    torch.testing.assert_close(whole.interactions, slow / size[:, None] / size[None], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(alone[0].interactions.abs(), torch.ones(3, 3, dtype=torch.float64))  # one has rank 1
    assert bool((torch.linalg.eigvalsh(whole.fisher) > -1e-9).all())


def test_padding_gives_nothing(model: ModelHandle) -> None:
    tokens = some_tokens(1, 6)
    padded, real = torch.cat([tokens, torch.zeros_like(tokens)], 1), torch.ones(1, 12, dtype=torch.bool)
    real[:, 6:] = False
    torch.testing.assert_close(
        gate_gradients(model, padded, real).gradient, gate_gradients(model, tokens).gradient, rtol=1e-3, atol=1e-4
    )
    with pytest.raises(ValueError, match="sequence 0 does not"):
        gate_gradients(model, tokens, torch.zeros_like(tokens, dtype=torch.bool))


@pytest.mark.parametrize("preset", ["cp_lrp", pytest.param("attn_lrp", marks=pytest.mark.slow)])
def test_relevance_is_that_of_prompts(model: ModelHandle, preset: str) -> None:
    tokens = some_tokens()

    def centred(logits: Tensor, rows: Tensor) -> Tensor:
        inner, targets = logits[:, :-1], tokens[rows][:, 1:]
        return (inner.gather(2, targets[..., None])[..., 0] - inner.mean(-1)).sum(1)

    found = layer_relevance(model, tokens, preset=preset)
    asked = Custom(centred, "centred", reads=9)
    slow = relevance(model, tokens, asked, preset=preset, sites=["attn_out", "mlp_out"])
    parts = [torch.tensor(slow.map(kind)) for kind in ("attn_out", "mlp_out")]  # [layer pos], means over prompts
    torch.testing.assert_close(found.signed.mean(0), sum(part.sum(1) for part in parts), rtol=1e-3, atol=1e-4)
    assert float(found.output.mean()) == pytest.approx(slow.values["output"], rel=1e-4)
    assert bool((found.mass >= found.signed.abs()).all())
    assert float(found.share.sum()) == pytest.approx(1)
    one = layer_relevance(model, tokens[:1], preset=preset)
    parts = [
        torch.tensor(relevance(model, tokens[:1], asked, preset=preset, sites=[kind]).map(kind)).abs().sum(1)
        for kind in ("attn_out", "mlp_out")
    ]
    torch.testing.assert_close(one.mass[0], sum(parts), rtol=1e-3, atol=1e-4)


def test_relevance_adds_up_with_the_stream(gpt2: ModelHandle) -> None:
    tokens = some_tokens(1)
    table = check_conservation(gpt2, tokens, preset="cp_lrp").to_pandas()
    assert table["rest"].abs().max() < 1e-3  # what the signed shares rest on: blocks hand on all they take but biases


def test_both_work_inside_inference_mode(llama: ModelHandle) -> None:
    with torch.inference_mode():
        tokens = some_tokens()
        assert gate_gradients(llama, tokens).gradient.shape == (3, 3)
        assert layer_relevance(llama, tokens).mass.shape == (3, 3)
