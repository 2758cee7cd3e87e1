"""The loss without blocks: whole forwards, a recipe that removes them, padding, greedy order by brute force."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from interp.compression.steps.skip import SkipLayers
from interp.hooks import patch
from interp.layers import skip_loss
from interp.layers.skip_loss import SkipLoss, greedy_order
from interp.models import ModelHandle


def some_tokens(rows: int = 3, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(1, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def loss_of(model: ModelHandle, *texts: Tensor) -> SkipLoss:
    found = SkipLoss(model)
    for tokens in texts:
        found.add(tokens)
    return found


def slow(model: ModelHandle, tokens: Tensor, blocks: tuple[int, ...], scale: float) -> Tensor:
    """Sums over tokens of (rise of the loss, KL, same likeliest token) of each sequence, by whole forwards."""
    clean = model.logits(tokens)[:, :-1].double().log_softmax(-1)
    with ExitStack() as undo:
        for block in blocks:
            for kind in ("attn_out", "mlp_out"):
                if scale == 0:
                    undo.enter_context(patch(model, f"{kind}.{block}", torch.zeros_like))
        if scale:
            seen: dict[str, Tensor] = {}
            block = blocks[0]
            undo.enter_context(patch(model, f"resid_pre.{block}", lambda x: seen.setdefault("x", x)))
            undo.enter_context(patch(model, f"resid_post.{block}", lambda y: seen["x"] + scale * (y - seen["x"])))
        other = model.logits(tokens)[:, :-1].double().log_softmax(-1)
    targets = tokens[:, 1:]

    def losses(log_p: Tensor) -> Tensor:
        return cross_entropy(log_p.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).sum(1)

    kl = (clean.exp() * (clean - other)).sum((1, 2))
    same = (clean.argmax(-1) == other.argmax(-1)).double().sum(1)
    return torch.stack([losses(other) - losses(clean), kl, same], 1)


@pytest.mark.parametrize("blocks", [(0,), (2,), (0, 1), (0, 2), (0, 1, 2)])
def test_measures_by_whole_forwards(model: ModelHandle, blocks: tuple[int, ...]) -> None:
    tokens = some_tokens()
    found = loss_of(model, tokens[:2], tokens[2:])
    torch.testing.assert_close(found.sums(blocks), slow(model, tokens, blocks, 0), rtol=1e-3, atol=1e-3)
    assert found.tokens.tolist() == [8, 8, 8]
    assert found.means(blocks)["kl"] == pytest.approx(float(found.sums(blocks)[:, 1].sum()) / 24)


def test_scaled_blocks_by_whole_forwards(model: ModelHandle) -> None:
    tokens = some_tokens()
    found = loss_of(model, tokens)
    torch.testing.assert_close(found.sums((1,), 0.25), slow(model, tokens, (1,), 0.25), rtol=1e-3, atol=1e-3)
    untouched = found.sums((1,), 1.0)
    assert float(untouched[:, :2].abs().max()) < 1e-3
    assert untouched[:, 2].tolist() == [8, 8, 8]


def test_the_loss_is_that_of_the_recipe_that_removes_the_blocks(make_model: Callable[..., ModelHandle]) -> None:
    model, cut = make_model("llama"), make_model("llama")
    SkipLayers((0, 2)).attach(cut)
    tokens = some_tokens()
    found = loss_of(model, tokens)
    both = [cross_entropy(one.logits(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()) for one in (model, cut)]
    assert found.means((0, 2))["loss"] == pytest.approx(float(both[1] - both[0]), rel=1e-4)
    assert float(found.losses.sum() / 24) == pytest.approx(float(both[0]), rel=1e-5)
    again = loss_of(cut, tokens)  # a block that is gone already costs nothing
    assert abs(again.means((0,))["loss"]) < 1e-6


def test_padding_does_not_count(gpt2: ModelHandle) -> None:
    tokens = some_tokens(1, 6)
    padded, real = torch.cat([tokens, torch.zeros_like(tokens)], 1), torch.ones(1, 12, dtype=torch.bool)
    real[:, 6:] = False
    found, plain = SkipLoss(gpt2), loss_of(gpt2, tokens)
    found.add(padded, real)
    torch.testing.assert_close(found.sums((1,)), plain.sums((1,)), rtol=1e-4, atol=1e-5)
    assert found.tokens.tolist() == [5]


def test_outputs_that_are_not_kept_are_made_anew(gpt2: ModelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = loss_of(gpt2, some_tokens()).sums((1,))
    monkeypatch.setattr(skip_loss, "HELD_FLOATS", 0)
    torch.testing.assert_close(loss_of(gpt2, some_tokens()).sums((1,)), kept, rtol=1e-4, atol=1e-5)


def test_the_greedy_order_takes_the_least_loss_at_each_step(model: ModelHandle) -> None:
    tokens = some_tokens()
    found = loss_of(model, tokens)
    costs = {
        blocks: float(slow(model, tokens, blocks, 0)[:, 0].sum()) / 24
        for blocks in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2))
    }
    first = min(((0,), (1,), (2,)), key=costs.__getitem__)
    second = min((pair for pair in ((0, 1), (0, 2), (1, 2)) if first[0] in pair), key=costs.__getitem__)
    steps = greedy_order(found)
    assert [block for block, _ in steps] == [first[0], next(b for b in second if b != first[0])]
    assert [measures["loss"] for _, measures in steps] == pytest.approx(
        [costs[first], costs[second]], rel=1e-3, abs=1e-4
    )


def test_bad_questions_are_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="needs text, got none"):
        SkipLoss(gpt2).sums((0,))
    for blocks in ((), (3,), (-1, 0)):
        with pytest.raises(ValueError, match=r"blocks must lie in 0\.\.2, at least one"):
            loss_of(gpt2, some_tokens()).sums(blocks)
