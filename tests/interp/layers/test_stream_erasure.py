"""Erasing a token's stream: by whole forwards from the definition, on the three families."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.hooks import capture, patch
from interp.layers.erasure import Erasure, mean_stream, residual_erasure, stream_sites
from interp.models import ModelHandle


def some_tokens(rows: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(1, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_effects_by_the_definition(model: ModelHandle) -> None:
    tokens = some_tokens()
    means = mean_stream(model, [tokens])
    found = residual_erasure(model, tokens, means, answers=3, positions=[1, 4, 7], batch=3)
    read, answers = tokens[:, :-1], tokens[:, -3:]
    p = model.logits(read).double().softmax(-1)[:, -3:]
    for layer, site in enumerate(stream_sites(model)):
        for column, position in enumerate(found.positions):

            def erase(x: Tensor) -> Tensor:
                x[:, position] = means[layer].to(x)  # noqa: B023
                return x

            with patch(model, site, erase):
                q = model.logits(read).double().softmax(-1)[:, -3:]
            l2 = (p - q).norm(dim=-1).amax(1)
            drop = (p - q).gather(2, answers[..., None])[..., 0].mean(1)
            torch.testing.assert_close(found.l2[:, layer, column], l2, rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(found.drop[:, layer, column], drop, rtol=1e-3, atol=1e-6)
    whole = residual_erasure(model, tokens, means, answers=3, positions=[1, 4, 7], exact_path="full")
    torch.testing.assert_close(whole.l2, found.l2, rtol=1e-3, atol=1e-6)
    assert float(found.l2.max()) > 0.01


def test_the_last_layer_matters_to_answers_at_that_position_only(gpt2: ModelHandle) -> None:
    tokens = some_tokens()
    found = residual_erasure(gpt2, tokens, mean_stream(gpt2, [tokens]), answers=1)
    assert found.positions == list(range(1, 8))
    assert float(found.l2[:, -1, :-1].max()) == 0  # the stream after the last block is read by its own position alone
    assert float(found.l2[:, -1, -1].min()) > 0


def test_erasing_what_is_the_mean_changes_nothing(gpt2: ModelHandle) -> None:
    tokens = torch.full((1, 2), 5).repeat(1, 2)
    with capture(gpt2, stream_sites(gpt2)) as acts:
        gpt2.logits(tokens[:, :-1])
    own = torch.stack([acts[site][0, 1] for site in stream_sites(gpt2)])
    found = residual_erasure(gpt2, tokens, own, positions=[1])
    assert float(found.l2.max()) < 1e-6


def test_means_leave_out_position_0_and_what_is_not_kept(model: ModelHandle) -> None:
    tokens = some_tokens(3)
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[2, 4:] = False
    found = mean_stream(model, tokens.split(2), keep)
    with capture(model, stream_sites(model)) as acts:
        model.forward(tokens)
    chosen = keep.clone()
    chosen[:, 0] = False
    for layer, site in enumerate(stream_sites(model)):
        torch.testing.assert_close(found[layer], acts[site][chosen].double().mean(0), rtol=1e-4, atol=1e-5)


def test_the_layer_from_which_a_token_is_no_longer_needed() -> None:
    l2 = torch.tensor([[[0.5, 0.0, 0.3], [0.05, 0.0, 0.4], [0.2, 0.0, 0.5], [0.0, 0.0, 0.6]]])
    found = Erasure([1, 2, 3], l2, torch.zeros_like(l2))
    assert found.needless_from(0.1).tolist() == [[3, 0, 4]]
    assert found.needless_from(0.3).tolist() == [[1, 0, 4]]


def test_bad_questions_are_refused(gpt2: ModelHandle) -> None:
    tokens, means = some_tokens(), torch.zeros(4, 32)
    with pytest.raises(ValueError, match=r"answers must lie in 1\.\.8, .* got 9"):
        residual_erasure(gpt2, tokens, means, answers=9)
    with pytest.raises(ValueError, match=r"\[4, 32\], got \[3, 32\]"):
        residual_erasure(gpt2, tokens, means[:3])
    with pytest.raises(ValueError, match=r"positions must lie in 0\.\.7"):
        residual_erasure(gpt2, tokens, means, positions=[8])
    with pytest.raises(ValueError, match="at least one finite token"):
        mean_stream(gpt2, [tokens[:, :1]])
