"""Runs from a block on: equal to the whole model, and how much text a large model gets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.hooks import capture
from interp.layers.suffix import FEW_TEXTS, FEW_TOKENS, Suffix, affordable, batches
from interp.models import ModelHandle
from interp.sites import Site


def some_tokens() -> Tensor:
    return torch.randint(1, 300, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cone", [True, False])
def test_an_unchanged_stream_gives_the_unchanged_output(model: ModelHandle, cone: bool) -> None:
    tokens = some_tokens()
    suffix = Suffix(model, tokens, cone=cone)
    assert bool(suffix.reason) != cone
    base = suffix.base(tokens)
    torch.testing.assert_close(base.logits, model.logits(tokens))
    for layer in range(4):
        found = suffix.run(base.stream[layer], layer, tokens)
        assert len(found.stream) == 3 - layer
        torch.testing.assert_close(found.logits, base.logits, rtol=1e-4, atol=1e-4)
        for number, x in enumerate(found.stream, layer + 1):
            torch.testing.assert_close(x, base.stream[number], rtol=1e-4, atol=1e-4)
    few = suffix.run(base.stream[1], 1, tokens, reads=2)
    torch.testing.assert_close(few.logits, base.logits[:, -2:], rtol=1e-4, atol=1e-4)
    assert suffix.run(base.stream[1], 1, tokens, reads=0).logits is None
    one = suffix.run(base.stream[1], 1, tokens, last=1)
    assert (len(one.stream), one.logits) == (1, None)


@pytest.mark.parametrize("cone", [True, False])
def test_edits_act_where_they_are(model: ModelHandle, cone: bool) -> None:
    tokens = some_tokens()
    suffix = Suffix(model, tokens, cone=cone)
    base = suffix.base(tokens)
    edits = {Site(1, "mlp_out"): torch.zeros_like(base.mlp[1])}
    found = suffix.run(base.stream[1], 1, tokens, last=1, edits=edits)
    torch.testing.assert_close(found.stream[0], base.stream[1] + base.attn[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.logits(tokens), base.logits)  # the edit is gone


def test_other_hooks_lead_to_whole_forwards(gpt2: ModelHandle) -> None:
    tokens = some_tokens()
    with capture(gpt2, "mlp_act.1"):
        suffix = Suffix(gpt2, tokens)
        assert "changes or reads activations" in suffix.reason
        assert suffix.run(suffix.base(tokens).stream[2], 2, tokens).logits is not None


def test_large_models_get_less_text(gpt2: ModelHandle) -> None:
    each = 10 * gpt2.n_parameters
    assert affordable(gpt2, 64, 10, 8, budget=each * 64 * 8) == (8, 64)
    assert affordable(gpt2, 64, 10, 8, budget=each * 64 * 5.5) == (5, 64)
    assert affordable(gpt2, 64, 10, 8, budget=each * 40 * FEW_TEXTS) == (FEW_TEXTS, 40)
    assert affordable(gpt2, 64, 10, 8, budget=1) == (FEW_TEXTS, FEW_TOKENS)
    assert affordable(gpt2, 20, 10, 2, budget=1) == (2, 20)
    assert batches(some_tokens(), 10**9) == 1
