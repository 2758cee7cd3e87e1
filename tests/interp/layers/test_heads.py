"""Head scores on patterns made by hand, by slow loops, and on the embedded model's card."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from interp.layers.heads import (
    check_half,
    head_scores,
    layer_patterns,
    longest_half,
    pattern_scores,
    repeated_tokens,
)
from interp.models import ModelHandle, embedded_models, load_model


def attending(length: int, key_of: dict[int, int]) -> Tensor:
    """A pattern in which query q looks at key_of[q] alone, and at itself where that is not said."""
    pattern = torch.zeros(length, length)
    for q in range(length):
        pattern[q, key_of.get(q, q)] = 1
    return pattern


@pytest.mark.parametrize("bos", [0, 1])
def test_heads_made_by_hand(bos: int) -> None:
    half = 4
    length = bos + 2 * half  # x_1..x_4 x_1..x_4: positions bos..bos+7
    second = range(bos + half, length)
    induction = attending(length, {q: q - half + 1 for q in second})
    duplicate = attending(length, {q: q - half for q in second})
    previous = attending(length, {q: q - 1 for q in range(1, length)})
    found = pattern_scores(torch.stack([induction, duplicate, previous]), half)
    assert found["induction"].tolist() == [1, 0, 0]
    assert found["duplicate"].tolist() == [0, 1, 0]
    assert found["previous"][2] == 1
    # A token's first occurrence with its successor: what follows x_i is at i + 1, also for the last of them.
    assert induction[bos + half].argmax() == bos + 1


def test_scores_are_means_over_sequences_and_queries(gpt2: ModelHandle) -> None:
    found = head_scores(gpt2, sequences=3, half=6, seed=4)
    tokens = repeated_tokens(300, gpt2.bos_id, sequences=3, half=6, seed=4)
    patterns, logits = layer_patterns(gpt2, tokens)
    for layer in range(3):
        for head in range(4):
            pattern = patterns[layer][:, head]
            induction = [float(pattern[s, 1 + 6 + i, 1 + i + 1]) for s in range(3) for i in range(6)]
            duplicate = [float(pattern[s, 1 + 6 + i, 1 + i]) for s in range(3) for i in range(6)]
            previous = [float(pattern[s, q, q - 1]) for s in range(3) for q in range(1, 13)]
            assert found.induction[layer, head] == pytest.approx(sum(induction) / 18, rel=1e-5)
            assert found.duplicate[layer, head] == pytest.approx(sum(duplicate) / 18, rel=1e-5)
            assert found.previous[layer, head] == pytest.approx(sum(previous) / 36, rel=1e-5)
    losses = [[float(cross_entropy(logits[s, q], tokens[s, q + 1])) for q in range(12)] for s in range(3)]
    assert found.loss_first == pytest.approx(sum(sum(row[:6]) for row in losses) / 18, rel=1e-5)
    assert found.loss_second == pytest.approx(sum(sum(row[7:]) for row in losses) / 15, rel=1e-5)
    layer, head, value = found.best("induction")
    assert value == found.induction.max() == found.induction[layer, head]


def test_patterns_of_a_row_sum_to_one(model: ModelHandle) -> None:
    patterns, _ = layer_patterns(model, repeated_tokens(300, model.bos_id, sequences=2, half=5))
    assert len(patterns) == 3
    assert all(torch.allclose(p.sum(-1), torch.ones(2, 4, 11), atol=1e-5) for p in patterns)


def test_repeated_tokens_hold_bos_once() -> None:
    for bos in (0, 7, 299):
        tokens = repeated_tokens(300, bos, sequences=50, half=40, seed=1)
        assert (tokens[:, 0] == bos).all()
        assert (tokens[:, 1:] != bos).all()
        assert torch.equal(tokens[:, 1:41], tokens[:, 41:])
        assert tokens.max() <= 299
    assert repeated_tokens(300, None, sequences=2, half=40).shape == (2, 80)


def test_lengths_must_fit(gpt2: ModelHandle) -> None:
    assert longest_half(gpt2) == 31  # 1 + 2 * 31 <= 64
    assert check_half(gpt2, None) == 31
    with pytest.raises(ValueError, match=r"half must lie in 2..31: .* n_ctx=64, got 32"):
        head_scores(gpt2, half=32)
    with pytest.raises(ValueError, match="Patterns of twice 3 tokens have 6 or, with BOS, 7, got 9"):
        pattern_scores(torch.ones(9, 9), 3)


def test_the_embedded_model_scores_what_its_card_says() -> None:
    card = (embedded_models()["tiny"] / "README.md").read_text(encoding="utf-8")
    said = {}
    for kind, name in (("induction", "induction"), ("previous", "previous-token")):
        match = re.search(rf"best {name} head \| layer (\d+) head (\d+): ([\d.]+)", card)
        assert match, f"the card names no best {name} head"
        said[kind] = (int(match[1]), int(match[2]), float(match[3]))
    found = head_scores(load_model("tiny", device="cpu"))
    for kind, (layer, head, value) in said.items():
        got = found.best(kind)
        assert got[:2] == (layer, head)
        assert got[2] == pytest.approx(value, abs=0.006)  # the card has two digits
