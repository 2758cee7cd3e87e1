"""The family `importance` through a profile: its numbers are those of the functions, on few and on odd texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from interp.data import Blocks
from interp.layers.families.importance import ImportanceFamily
from interp.layers.family import Family, FamilyResult
from interp.layers.gates import gate_gradients
from interp.layers.influence import weight_outliers
from interp.layers.layer_relevance import layer_relevance
from interp.layers.profile import profile
from interp.layers.sampling import bootstrap
from interp.layers.skip_loss import SkipLoss, greedy_order
from interp.models import ModelHandle
from interp.sites import Site
from tests.interp.layers.families.test_depth_family import some_blocks, value


def measured(model: ModelHandle, blocks: Blocks, **changes: float) -> FamilyResult:
    return profile(model, [ImportanceFamily(resamples=20, **changes)], blocks=blocks).results["importance"]  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["gpt2", "neox", pytest.param("llama", marks=pytest.mark.slow)], indirect=True)
def test_curves_are_what_the_functions_find(model: ModelHandle) -> None:
    blocks = some_blocks()
    tokens = blocks.tokens.long()
    found, loss = measured(model, blocks), SkipLoss(model)
    loss.add(tokens)
    gates, relevance, zd = gate_gradients(model, tokens), layer_relevance(model, tokens), weight_outliers(model)
    for layer in range(3):
        single = loss.means((layer,))
        expected = {
            **{f"skip_{name}": number for name, number in single.items()},
            "scaled_loss": loss.means((layer,), 0.25)["loss"],
            "taylor": float(gates.taylor[layer]),
            "taylor_abs": float(gates.taylor_abs[layer]),
            "fisher": float(gates.fisher[layer, layer]),
            "relevance": float(relevance.share[layer]),
            "weight_outliers": float(zd[layer]),
        }
        for measure, number in expected.items():
            got, low, high = value(found, measure, "", layer)
            assert got == pytest.approx(number, rel=1e-3, abs=1e-5), measure
            assert (low is None) == (measure == "weight_outliers")
            assert low is None or (high is not None and low <= got <= high)
    greedy = [row["block"] for row in found.tables["greedy"].to_pylist()]
    assert greedy == [block for block, _ in greedy_order(loss)]
    assert found.summary["greedy_order"] == " ".join(map(str, greedy))
    assert found.summary["tokens"] == 4 * 19


def rank(peer: Any, x: Any, y: Any) -> float:
    return float(peer(x, y).statistic)


def test_agreement_is_scipys_with_the_measured_loss(gpt2: ModelHandle) -> None:
    found = measured(gpt2, some_blocks())
    rows = found.layers.to_pandas()
    curves = {name: part.sort_values("layer")["value"].to_numpy() for name, part in rows.groupby("measure")}
    for row in found.tables["agreement"].to_pylist():
        score = curves[row["measure"]] * (-1 if row["measure"] == "weight_outliers" else 1)
        assert row["spearman"] == pytest.approx(rank(stats.spearmanr, score, curves["skip_loss"]))
        assert row["kendall"] == pytest.approx(rank(stats.kendalltau, score, curves["skip_loss"]))
    pairs = found.tables["pairs"].to_pandas()
    single = curves["skip_loss"]
    np.testing.assert_allclose(
        pairs["interaction"], pairs["joint_loss"] - single[pairs["a"]] - single[pairs["b"]], atol=1e-9
    )
    assert found.summary["pair_spearman"] == pytest.approx(rank(stats.spearmanr, pairs["fisher"], pairs["interaction"]))
    assert found.tables["angles"].num_rows == 6


def test_an_even_sample_and_one_prompt_work(gpt2: ModelHandle) -> None:
    found = measured(gpt2, some_blocks(7), prompts=3)
    assert (found.summary["prompts"], found.summary["prompts_of"]) == (3, 7)
    assert measured(gpt2, some_blocks(20), prompts=1).summary["prompts"] == 1  # in the second batch of two
    alone = measured(gpt2, some_blocks(1))
    assert value(alone, "skip_loss", "", 0)[1:] == (None, None)
    assert all(row["spearman_low"] is None for row in alone.tables["agreement"].to_pylist())


def test_padding_changes_nothing(llama: ModelHandle) -> None:
    blocks = some_blocks(2, 18)
    padded = torch.cat([blocks.tokens, torch.zeros(2, 6, dtype=torch.int32)], 1)
    keep = torch.ones_like(padded, dtype=torch.bool)
    keep[:, 18:] = False
    usual, found = measured(llama, blocks), measured(llama, Blocks(padded, keep, 2, False, 0))
    for measure in ("skip_loss", "influence", "taylor", "fisher", "relevance", "influence_first"):
        assert value(found, measure, "", 1)[0] == pytest.approx(value(usual, measure, "", 1)[0], rel=1e-3, abs=1e-5)


def test_an_activation_without_a_rule_costs_the_relevance_only(make_model: Callable[..., ModelHandle]) -> None:
    model = make_model("gpt2", activation_function="tanh")
    found = measured(model, some_blocks(2))
    assert "Identity-rule" in str(found.summary["relevance_refused"])
    measures = set(found.layers.column("measure").to_pylist())
    assert "relevance" not in measures
    assert {"skip_loss", "taylor", "influence"} <= measures


def test_a_loss_that_overflows_has_no_interval() -> None:
    sums, ones = np.array([1.0, math.inf, 2.0]), np.ones(3)
    assert all(math.isnan(end) for end in bootstrap(sums, ones, 20, 0))
    assert all(math.isfinite(end) for end in bootstrap(sums[[0, 2]], ones[:2], 20, 0))


def test_what_it_cannot_be_measured_on_is_refused(make_model: Callable[..., ModelHandle], gpt2: ModelHandle) -> None:
    odd = make_model("gpt2")
    odd.attach(Site(1, "resid_post"), lambda x: x / x.norm(dim=-1, keepdim=True))
    with pytest.raises(ValueError, match="The family importance: .* blocks that add to the stream"):
        measured(odd, some_blocks())
    with pytest.raises(ValueError, match="3 tokens or more, got 2"):
        measured(gpt2, some_blocks(2, 2))
    with pytest.raises(ValueError, match="beta between 0 and 1"):
        ImportanceFamily(beta=1)
    assert isinstance(ImportanceFamily(), Family)
