"""Norms fade from a GPT-2: nothing changes until one is removed; the folded model is plain, the same, and affine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.hooks import capture, patch
from interp.layers.direct import direct_logits
from interp.layers.without_norm import EPS, NormRemoval, Schedule
from interp.models import load_model

Make = Callable[..., Any]
TOKENS = torch.randint(1, 300, (3, 12), generator=torch.Generator().manual_seed(1))
TOKENS[1, 5] = 0


def fading(make_module: Make, **changes: Any) -> tuple[Any, NormRemoval]:
    module = make_module("gpt2", **changes).eval()
    return module, NormRemoval(module, Schedule(2, (1, 1, 1)), momentum=0.5, eot=0)


def logits(module: Any, removal: NormRemoval, tokens: Tensor = TOKENS) -> Tensor:
    removal.read(tokens)
    with torch.no_grad():
        return module(tokens).logits


def learn(module: Any, removal: NormRemoval) -> None:
    """Let the averages see the text once."""
    module.train()
    logits(module, removal)
    module.eval()


def test_the_published_schedule_of_gpt2_small() -> None:
    steps = Schedule().steps(12)
    assert [steps[part, 0] for part in ("mlp", "qk", "v")] == [20, 44, 68]
    assert (steps["mlp", 11], steps["v", 11]) == (42, 101)
    assert [steps[name, None] for name in ("final", "eot", "bos")] == [104, 106, 116]
    with pytest.raises(ValueError, match="must be 1 or more"):
        Schedule(0)


def test_nothing_changes_until_a_norm_is_removed_and_they_go_in_order(make_module: Make) -> None:
    plain = make_module("gpt2").eval()
    module, removal = fading(make_module)
    with torch.no_grad():
        expected = plain(TOKENS).logits
    assert removal.at(1) == 0
    assert torch.allclose(logits(module, removal), expected, atol=1e-5)
    learn(module, removal)
    assert torch.allclose(logits(module, removal), expected, atol=1e-5)
    assert [removal.at(step) for step in range(2, 12)] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    blocks = module.transformer.h
    removal.at(6)
    assert [block.ln_2.scale.fixed for block in blocks] == [True] * 3
    assert [(block.attn.c_attn.qk.fixed, block.attn.c_attn.v.fixed) for block in blocks] == [
        (True, False), (True, False), (False, False),
    ]  # fmt: skip
    assert not torch.allclose(logits(module, removal), expected, atol=1e-3)


def test_averages_are_those_of_the_kinds_of_tokens_and_move_by_the_momentum(make_module: Make) -> None:
    module, removal = fading(make_module)
    learn(module, removal)
    plain = load_model(make_module("gpt2"))
    with capture(plain, "resid_post.2") as acts:
        plain.forward(TOKENS)
    own = acts["resid_post.2"].std(-1, correction=0)
    end = torch.zeros_like(TOKENS, dtype=torch.bool)
    end[1, 5] = True
    rest = ~end
    rest[:, 0] = False
    expected = torch.stack([own[rest].mean(), own[:, 0].mean(), own[1, 5]])
    scale = module.transformer.ln_f.scale
    assert torch.allclose(scale.average, expected, rtol=1e-4)
    mean = own[rest].mean()
    assert float(removal.spread()) == pytest.approx(float((own - mean).square().mean()), rel=1e-3)
    module.train()
    logits(module, removal, TOKENS[[0, 2]])  # no end-of-text in it: that average stays
    assert float(scale.average[2]) == pytest.approx(float(expected[2]), rel=1e-4)
    some = own[[0, 2]][:, 1:].mean()
    assert float(scale.average[0]) == pytest.approx(float((expected[0] + some) / 2), rel=1e-3)
    removal.at(20)
    frozen = scale.average.clone()
    logits(module, removal)
    assert torch.equal(scale.average, frozen)


def test_special_tokens_keep_their_own_average_until_the_end(make_module: Make) -> None:
    module, removal = fading(make_module)
    learn(module, removal)
    scale = module.transformer.ln_f.scale
    x, kinds = torch.ones(1, 3, 4), torch.tensor([[1, 0, 2]])
    found = []
    for name in ("final", "eot", "bos"):
        removal.at(removal._steps[name, None])
        found.append(scale(x, kinds)[0, :, 0].tolist())
    usual, first, end = scale.average.tolist()
    assert found == [[first, usual, end], [first, usual, usual], [usual, usual, usual]]
    assert len({usual, first, end}) == 3


def test_the_folded_model_is_plain_and_the_same(make_module: Make, tmp_path: Path) -> None:
    module, removal = fading(make_module, initializer_range=0.1)
    learn(module, removal)
    with pytest.raises(ValueError, match="Norms are left"):
        removal.folded()
    removal.at(removal.last_step)
    for factor, scale in zip(torch.linspace(0.5, 1.5, 10), removal._scales.values(), strict=True):
        scale.average.mul_(factor)  # averages of v and of q and k are then apart
    expected = logits(module, removal)
    folded = removal.folded()
    folded.save_pretrained(tmp_path)
    handle = load_model(str(tmp_path))
    assert type(handle.module.transformer.h[0].ln_1) is nn.LayerNorm
    assert handle.module.config.layer_norm_epsilon == EPS
    found = handle.logits(TOKENS)
    assert torch.allclose(found, expected, atol=2e-4 * float(expected.abs().max()))
    assert torch.equal(logits(module, removal), expected)  # the one in training is left as it was


def test_the_folded_model_is_affine_in_the_last_stream_and_attribution_is_exact(make_module: Make) -> None:
    module, removal = fading(make_module)
    before = load_model(make_module("gpt2"))
    learn(module, removal)
    removal.at(removal.last_step)
    handle = load_model(removal.folded())

    def put(x: Tensor) -> Tensor:
        with patch(handle, "resid_post.2", lambda old: x):
            return handle.logits(TOKENS)

    with capture(handle, "resid_post.2") as acts:
        handle.forward(TOKENS)
    one, zero = acts["resid_post.2"], torch.zeros_like(acts["resid_post.2"])
    other = torch.randn(one.shape, generator=torch.Generator().manual_seed(0)) * 5
    combined = put(0.3 * one - 2 * other)
    expected = 0.3 * put(one) - 2 * put(other) + 2.7 * put(zero)
    assert torch.allclose(combined, expected, atol=1e-4 * float(expected.abs().max()))
    targets = torch.tensor([3, 4, 5])
    exact = direct_logits(handle, TOKENS, targets, removal=True)
    assert exact.removal_error() < 1e-9
    assert direct_logits(before, TOKENS, targets, removal=True).removal_error() > 0.02


def test_other_architectures_and_forgotten_tokens_are_refused(make_module: Make) -> None:
    with pytest.raises(ValueError, match="got gpt_neox"):
        NormRemoval(make_module("neox"))
    module, _ = fading(make_module)
    with pytest.raises(RuntimeError, match="read"):
        module(TOKENS)
    with pytest.raises(ValueError, match="plain|these are not"):
        NormRemoval(module)
