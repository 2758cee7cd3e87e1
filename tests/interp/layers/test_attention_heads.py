"""What heads do on text: patterns made by hand, slow loops, the table of heads and the family."""

from __future__ import annotations

import math

import pytest
import torch

from interp.data import Blocks
from interp.layers.attention import PatternSums, head_table, pattern_statistics
from interp.layers.composition import compositions
from interp.layers.families.attention import AttentionFamily
from interp.layers.heads import head_scores, layer_patterns
from interp.layers.profile import profile
from interp.models import ModelHandle


def text(lengths: tuple[int, ...] = (9, 9, 6)) -> Blocks:
    """Random tokens after BOS, padded to 9."""
    tokens = torch.randint(1, 300, (len(lengths), 9), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    keep = torch.arange(9)[None] < torch.tensor(lengths)[:, None]
    return Blocks(tokens, keep, 1, False, 0)


def test_patterns_made_by_hand() -> None:
    n = 5
    even = torch.tril(torch.ones(n, n)) / torch.arange(1, n + 1)[:, None]
    self_only = torch.eye(n)
    before = torch.eye(n).roll(-1, 1).T.clone() * 0
    before[0, 0] = 1
    before[torch.arange(1, n), torch.arange(n - 1)] = 1
    sink = torch.zeros(n, n)
    sink[:, 0] = 1
    found = pattern_statistics(torch.stack([even, self_only, before, sink]), torch.ones(n, dtype=torch.bool))
    assert found["entropy"].tolist() == pytest.approx([1, 0, 0, 0])
    assert found["sink"].tolist() == pytest.approx([(1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4, 0, 1 / 4, 1])
    assert found["previous"].tolist() == pytest.approx([(1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4, 0, 1, 1 / 4])


@pytest.mark.parametrize("model", ["gpt2", "llama", pytest.param("neox", marks=pytest.mark.slow)], indirect=True)
def test_only_real_queries_count(model: ModelHandle) -> None:
    blocks, found = text(), PatternSums(model)
    found.add(blocks.tokens, blocks.keep)
    patterns, _ = layer_patterns(model, blocks.tokens)
    values = found.values()
    for layer, head, row, length in ((0, 1, 0, 9), (2, 3, 2, 6)):
        a = patterns[layer][row, head].tolist()
        entropy = [-sum(x * math.log(x) for x in a[i] if x > 0) / math.log(i + 1) for i in range(1, length)]
        assert float(values["entropy"][layer, row, head]) == pytest.approx(sum(entropy) / (length - 1), rel=1e-4)
        sink = sum(a[i][0] for i in range(1, length)) / (length - 1)
        assert float(values["sink"][layer, row, head]) == pytest.approx(sink, rel=1e-4)
        previous = sum(a[i][i - 1] for i in range(1, length)) / (length - 1)
        assert float(values["previous"][layer, row, head]) == pytest.approx(previous, rel=1e-4)
    whole = PatternSums(model)
    whole.add(torch.cat([blocks.tokens[:2], blocks.tokens[2:]]), blocks.keep)
    assert whole.sequences == 3


def test_texts_of_one_token_are_left_out_or_refused(gpt2: ModelHandle) -> None:
    blocks, found = text((9, 1, 9)), PatternSums(gpt2)
    found.add(blocks.tokens, blocks.keep)
    assert found.sequences == 2
    assert torch.isfinite(found.values()["entropy"]).all()
    alone = PatternSums(gpt2)
    alone.add(blocks.tokens[:, :1], blocks.keep[:, :1])
    with pytest.raises(ValueError, match="No sequence of 2 tokens"):
        alone.values()
    with pytest.raises(ValueError, match="single position"):
        pattern_statistics(torch.ones(2, 1, 1), torch.ones(1, dtype=torch.bool))


def test_the_table_has_every_head_with_its_strongest_source(model: ModelHandle) -> None:
    table = head_table(model, sequences=2, tokens=5)
    rows = table.to_pylist()
    assert [(row["layer"], row["head"]) for row in rows] == [(layer, head) for layer in range(3) for head in range(4)]
    scores = head_scores(model, sequences=2)
    assert table["induction"].to_pylist() == pytest.approx(scores.induction.flatten().tolist())
    assert table["previous_random"].to_pylist() == pytest.approx(scores.previous.flatten().tolist())
    assert all(row["k_composition"] is None and row["k_head"] is None for row in rows[:4])
    k = compositions(model)["k"]
    for row in rows[4:]:
        own = k[row["layer"], row["head"]]
        assert row["k_composition"] == pytest.approx(float(own.nan_to_num(-1).max()))
        assert row["k_composition"] == pytest.approx(float(own[row["k_layer"], row["k_head"]]))


def test_the_family_gives_mean_and_largest_head(model: ModelHandle) -> None:
    found = profile(model, [AttentionFamily(sequences=2, repeated=2, tokens=5)], blocks=text((9, 9, 9, 9))).results
    result, sums, blocks = found["attention"], PatternSums(model), text((9, 9, 9, 9))
    assert result.summary["sequences"] == 2
    sums.add(blocks.tokens[[1, 3]], blocks.keep[[1, 3]])  # evenly spread
    entropy = sums.values()["entropy"].mean(1)
    rows = {(row["layer"], row["measure"], row["part"]): row for row in result.layers.to_pylist()}
    for layer in range(3):
        mean = rows[layer, "entropy", "mean"]
        assert mean["value"] == pytest.approx(float(entropy[layer].mean()), rel=1e-4)
        assert mean["low"] <= mean["value"] <= mean["high"]
        assert rows[layer, "entropy", "max head"]["value"] == pytest.approx(float(entropy[layer].max()), rel=1e-4)
    assert (0, "k_composition", "mean") not in rows
    assert (1, "k_composition", "mean") in rows
    best = result.tables["heads"]["induction"].to_pylist()
    layer, head = divmod(best.index(max(best)), 4)
    assert result.summary["induction_head"] == f"{layer}.{head}"


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="sequences must be 1 or more, got 0"):
        AttentionFamily(sequences=0)
