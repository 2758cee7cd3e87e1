"""Gradients of the model's loss at the rows of a store: against finite differences, and whatever the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.activations import ActivationStore
from interp.data import Blocks
from interp.hooks import patch
from interp.metrics import next_token_loss
from interp.models import ModelHandle

SITE = "resid_post.1"


def summed_loss(model: ModelHandle, tokens: Tensor, keep: Tensor) -> Tensor:
    losses = next_token_loss(model.logits(tokens), tokens)
    return losses[keep[:, 1:] & keep[:, :-1]].double().sum()


def test_gradient_is_the_slope_of_the_summed_loss_of_its_block(model: ModelHandle, blocks: Blocks) -> None:
    store = ActivationStore(model, blocks, SITE, batch=32, gradient=True)
    slope, origin = store.gradient(0), store.origin(0)
    for row in range(5):
        block, position = int(origin["block"][row]), int(origin["position"][row])
        if position == blocks.context - 1:  # nothing comes after it
            assert torch.count_nonzero(slope[row]) == 0
            continue
        tokens, keep = blocks.tokens[[block]].long(), blocks.keep[[block]]
        step = 1e-2 * slope[row] / slope[row].norm()
        ends = []
        for sign in (1.0, -1.0):

            def moved(x: Tensor, by: Tensor = sign * step, at: int = position) -> Tensor:
                x[:, at] += by
                return x

            with patch(model, SITE, moved):
                ends.append(float(summed_loss(model, tokens, keep)))
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(slope[row].norm()), rel=2e-2)


def test_gradient_depends_neither_on_the_batch_nor_on_the_pool(gpt2: ModelHandle, blocks: Blocks) -> None:
    found: list[dict[tuple[int, int], Tensor]] = []
    for batch, pool in ((16, 2), (64, 256)):
        store = ActivationStore(gpt2, blocks, [SITE, "head_out.2"], batch=batch, pool_blocks=pool, gradient=True)
        rows: dict[tuple[int, int], Tensor] = {}
        for step in range(store.batches_per_epoch):
            origin, slopes = store.origin(step), store.gradient(step, SITE)
            assert store.gradient(step, "head_out.2").shape == (batch, 32)
            places = zip(origin["block"].tolist(), origin["position"].tolist(), strict=True)
            rows |= dict(zip(places, slopes, strict=True))
        found.append(rows)
    shared = found[0].keys() & found[1].keys()
    assert len(shared) > 50
    for place in shared:
        torch.testing.assert_close(found[0][place], found[1][place], rtol=1e-4, atol=1e-5)


def test_activations_are_the_same_with_and_without_gradients(gpt2: ModelHandle, blocks: Blocks) -> None:
    plain = ActivationStore(gpt2, blocks, SITE, batch=32)
    both = ActivationStore(gpt2, blocks, SITE, batch=32, gradient=True)
    torch.testing.assert_close(plain.batch(3), both.batch(3), rtol=1e-5, atol=1e-5)
    assert torch.equal(plain.origin(3)["position"], both.origin(3)["position"])
    assert not both.batch(3).requires_grad
    assert not both.gradient(3).requires_grad
    assert both.report == plain.report
    with pytest.raises(ValueError, match=r"keeps no gradients; make it with ActivationStore\(\.\.\., gradient=True\)"):
        plain.gradient(0)
