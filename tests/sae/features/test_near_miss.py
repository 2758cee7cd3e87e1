from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sae.features import near_miss
from sae.features.near_miss import NearMisses, Watched, silence
from sae.rules import Context


def slow(pre: np.ndarray, silent: np.ndarray, context: int, n: int) -> list[list[tuple[float, int]]]:
    """Return for each latent the n best (pre, token): one per block, silent and kept tokens only."""
    found = []
    for latent in range(pre.shape[1]):
        best = []
        for block in range(len(pre) // context):
            tokens = [t for t in range(block * context, (block + 1) * context) if silent[t, latent]]
            if tokens:
                token = max(tokens, key=lambda t: (pre[t, latent], -t))
                best.append((float(pre[token, latent]), token))
        found.append(sorted(best, key=lambda pair: (-pair[0], pair[1]))[:n])
    return found


@pytest.mark.parametrize("rule", ["topk", "abs_topk", "threshold"])
@pytest.mark.parametrize("step", [1, 4, 30])
def test_near_misses_are_the_best_silent_kept_token_of_the_best_blocks(
    rule: str, step: int, gpt2: Any, bench: Any
) -> None:
    sae, blocks = bench.sae(rule), bench.blocks()
    dense = bench.dense(gpt2, sae, blocks)
    silent = dense.kept[:, None] & (dense.code == 0)
    near = NearMisses(sae.d_sae, 5)
    pre = torch.from_numpy(np.where(silent, dense.pre, -np.inf)).unflatten(0, (-1, dense.context))
    for first in range(0, len(blocks), step):
        near.add(pre[first : first + step], first * dense.context)
    for latent, expected in enumerate(slow(dense.pre, silent, dense.context, 5)):
        found = [
            (float(v), int(t)) for v, t in zip(near.values[latent], near.tokens[latent], strict=True) if v > -np.inf
        ]
        assert found == expected


def test_equal_preactivations_go_to_the_earlier_token_whatever_the_batches() -> None:
    pre = torch.zeros(6, 3, 2)
    whole, parts = NearMisses(2, 4), NearMisses(2, 4)
    whole.add(pre.clone(), 0)
    for first in range(6):
        parts.add(pre[first : first + 1].clone(), 3 * first)
    assert whole.tokens.tolist() == [[0, 3, 6, 9]] * 2
    assert parts.tokens.tolist() == whole.tokens.tolist()


def test_silence_removes_active_and_unkept_entries(bench: Any) -> None:
    sae = bench.sae("abs_topk")
    x = torch.randn(6, sae.d_in)
    code = sae.encode_normalised(x)
    kept = torch.tensor([True, True, False, True, True, True])
    pre = silence(sae.pre(x).clone(), code, kept)
    assert torch.equal(pre == -torch.inf, (code.dense() != 0) | ~kept[:, None])


@pytest.mark.parametrize(("rule", "reused"), [("topk", True), ("abs_topk", True), ("threshold", False)])
def test_the_rules_own_product_is_reused_exactly_where_it_is_untouched(
    rule: str, reused: bool, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, x = bench.sae(rule), torch.randn(9, 32)
    watched = Watched.of(sae)
    with torch.no_grad():
        expected, code = sae.pre(x).clone(), sae.encode_normalised(x)
        watched_code = watched.rule.encode(x, watched, Context())
        assert torch.equal(watched_code.dense(), code.dense())
        held = watched.last
        found = watched.preactivations(x)
    assert torch.equal(found, expected)
    assert (found is held) == reused


def test_preactivations_of_other_rows_are_not_taken(bench: Any) -> None:
    sae = bench.sae()
    watched = Watched.of(sae)
    with torch.no_grad():
        for rows in (torch.zeros(6, 32), torch.zeros(4, 32)):
            watched.pre(rows)
            assert torch.equal(watched.preactivations(torch.ones(4, 32)), sae.pre(torch.ones(4, 32)))


def test_watching_shares_the_parameters_and_leaves_the_dictionary_alone(bench: Any) -> None:
    sae = bench.sae()
    watched = Watched.of(sae)
    watched.pre(torch.zeros(2, 32))
    assert watched.W_enc is sae.W_enc
    assert not hasattr(sae, "last")
    assert type(sae) is not Watched


def test_positions_are_searched_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pre = torch.randn(5, 7, 6)
    whole, pieces = NearMisses(6, 3), NearMisses(6, 3)
    whole.add(pre.clone(), 0)
    monkeypatch.setattr(near_miss, "GATHER_FLOATS", 8)
    pieces.add(pre.clone(), 0)
    assert torch.equal(whole.tokens, pieces.tokens)
    assert torch.equal(whole.values, pieces.values)


def test_no_near_misses_are_kept_when_none_are_wanted() -> None:
    near = NearMisses(3, 0)
    near.add(torch.zeros(2, 2, 3), 0)
    assert near.values.shape == (3, 0)
