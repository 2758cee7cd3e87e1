"""Attribution patching, RelP, gradient times input: exact where models are linear, and cell by cell from autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.attribution.estimates import attribution_patching, gradient_x_input, relp
from interp.attribution.patching import Cell, patch_map
from interp.hooks import capture, patch
from interp.models import ModelHandle
from interp.tasks import Custom, LogitDiff, metric_for
from tests.interp.attribution.estimate_models import (
    KINDS,
    double_model,
    linear_model,
    random_pairs,
    unbiased_model,
)

FAMILIES = ["gpt2", "neox", "llama"]
PAIRS = random_pairs()


def scores(found, kind: str, column: str = "score") -> np.ndarray:
    return np.nan_to_num(found.map(kind, column))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_on_a_linear_model_both_methods_are_patching(family: str, direction: str) -> None:
    handle = linear_model(family)
    kinds, pairs = ["resid_pre", "v", "head_out", "attn_out"], random_pairs(n=2, length=5)
    for parts in (("head",), ("pos", "head")) if direction == "noising" else (("pos", "head"),):
        truth = patch_map(handle, pairs, kinds, direction=direction, parts=parts)
        for method in (attribution_patching, relp):
            found = method(handle, pairs, kinds, direction=direction, parts=parts, check=0)
            for kind in kinds:
                assert np.abs(scores(truth, kind)).max() > 1e-3
                np.testing.assert_allclose(scores(found, kind), scores(truth, kind), atol=1e-10)
        assert np.abs(found.completeness["gap"].to_numpy()).max() < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_the_error_is_of_second_order_in_a_small_difference(family: str) -> None:
    errors = []
    for size in (0.004, 0.002):
        handle = double_model(family)
        words = handle.module.get_input_embeddings().weight
        way = torch.randn(words.shape[1], generator=torch.Generator().manual_seed(1), dtype=words.dtype)
        pairs = random_pairs(n=1)
        with torch.no_grad():
            words[pairs.corrupt[0, 1]] = words[pairs.clean[0, 1]] + size * way
            words[pairs.corrupt[0, 3]] = words[pairs.clean[0, 3]] - size * way
        kinds = ["resid_pre", "v", "attn_out", "mlp_out"]
        truth = patch_map(handle, pairs, kinds)
        found = attribution_patching(handle, pairs, kinds, check=0)
        largest = max(np.abs(scores(truth, kind)).max() for kind in kinds)
        error = max(np.abs(scores(found, kind) - scores(truth, kind)).max() for kind in kinds)
        assert error < 0.1 * largest
        errors.append(error)
    assert 3 < errors[0] / errors[1] < 5.5


def derivative(handle: ModelHandle, cell: Cell, way: torch.Tensor) -> torch.Tensor:
    """Return d metric / d t of the corrupted runs with t times the part `cell` of `way` added."""
    step = torch.zeros(len(way), requires_grad=True, dtype=way.dtype)
    mask = torch.zeros_like(way)
    index = [slice(None), slice(None) if cell.pos is None else cell.pos]
    index += [slice(None) if cell.head is None else cell.head] if way.ndim == 4 else []
    index += [cell.neuron] if cell.neuron is not None else []
    mask[tuple(index)] = 1
    metric = LogitDiff(PAIRS.correct, PAIRS.wrong)
    with patch(handle, cell.site, lambda x: x + step.view(-1, *[1] * (x.ndim - 1)) * mask * way):
        logits = handle.forward(PAIRS.corrupt, grad=True)
    assert logits is not None
    return torch.autograd.grad(metric(logits[:, -1:], torch.arange(len(way))).sum(), step)[0]


CELLS = [
    (("pos",), Cell("resid_pre", 1, pos=3)),
    (("pos",), Cell("mlp_out", 0, pos=1)),
    (("pos", "head"), Cell("head_out", 1, pos=4, head=2)),
    (("head",), Cell("q", 2, head=1)),
    (("head",), Cell("k", 1, head=0)),
    (("pos", "head"), Cell("v", 0, pos=3, head=1)),
    (("pos", "neuron"), Cell("mlp_act", 1, pos=3, neuron=17)),
    (("neuron",), Cell("mlp_act", 0, neuron=5)),
    ((), Cell("attn_out", 1)),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_cells_are_derivatives_along_the_difference(family: str) -> None:
    handle = double_model(family)
    for parts, cell in CELLS:
        acts = []
        for tokens in (PAIRS.clean, PAIRS.corrupt):
            with capture(handle, cell.site) as found:
                handle.forward(tokens)
            acts.append(found[cell.site])
        slow = derivative(handle, cell, acts[0] - acts[1])
        fast = attribution_patching(handle, PAIRS, cell.site, parts=parts, check=0)
        wanted = {"pos": cell.pos, "head": cell.head, "neuron": cell.neuron}
        row = next(row for row in fast.nodes.to_pylist() if all(row[name] == value for name, value in wanted.items()))
        assert row["score"] == pytest.approx(float(slow.mean()), rel=1e-9, abs=1e-12)
        assert row["stderr"] == pytest.approx(float(slow.std()) / len(PAIRS) ** 0.5, rel=1e-9)
        assert row["per_prompt"] == pytest.approx(slow.tolist(), rel=1e-5)
        assert row["measured"] is None


def test_noising_takes_the_gradient_at_the_clean_run(model: ModelHandle) -> None:
    noising = attribution_patching(model, PAIRS, "resid_pre", direction="noising", check=0)
    swapped = attribution_patching(model, PAIRS.swapped(), "resid_pre", check=0, metric=metric_for(PAIRS))
    assert noising.direction == "noising"
    np.testing.assert_allclose(scores(noising, "resid_pre"), -scores(swapped, "resid_pre"), rtol=1e-4, atol=1e-6)


def test_batches_do_not_matter(model: ModelHandle) -> None:
    heard: list[tuple[int, int]] = []
    one = relp(model, PAIRS, KINDS, batch=1, check=0, on_progress=lambda *done: heard.append(done))
    all_at_once = relp(model, PAIRS, KINDS, batch=16, check=0)
    for kind in KINDS:
        np.testing.assert_allclose(scores(one, kind), scores(all_at_once, kind), rtol=1e-3, atol=2e-6)
    assert heard == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bridge_gives_the_same_and_patterns_too(family: str) -> None:
    handle = double_model(family)
    plain = attribution_patching(handle, PAIRS, ["head_out", "mlp_out"], parts=("pos", "head"), check=0)
    bridge = attribution_patching(handle, PAIRS, ["head_out", "mlp_out", "pattern"], parts=("pos", "head"), check=0)
    for kind in ("head_out", "mlp_out"):
        np.testing.assert_allclose(scores(bridge, kind), scores(plain, kind), rtol=1e-4, atol=1e-6)
    assert bridge.map("pattern").shape == (3, 6, 4)
    assert np.abs(bridge.map("pattern")[:, 0]).max() < 1e-12  # the first query sees itself alone


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_heads_add_up_to_attention_and_positions_to_layers(family: str) -> None:
    handle = double_model(family)
    by_head = attribution_patching(handle, PAIRS, ["head_out", "mlp_act"], parts=("pos", "head", "neuron"), check=0)
    by_pos = attribution_patching(handle, PAIRS, ["head_out", "attn_out", "mlp_act", "mlp_out"], check=0)
    whole = attribution_patching(handle, PAIRS, ["attn_out"], parts=(), check=0)
    np.testing.assert_allclose(by_head.map("head_out").sum(-1), by_pos.map("attn_out"), atol=1e-12)
    np.testing.assert_allclose(by_head.map("mlp_act").sum(-1), by_pos.map("mlp_out"), atol=1e-12)
    np.testing.assert_allclose(by_pos.map("attn_out").sum(-1), whole.map("attn_out"), atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_relp_against_zero_adds_up_in_every_layer_without_biases(family: str) -> None:
    handle = unbiased_model(family)
    found = relp(handle, PAIRS, ["resid_pre", "resid_post"], baseline="zero", check=0)
    assert found.direction == "noising"
    assert abs(found.values["clean"]) > 1e-2
    assert len(found.completeness) == 6
    rounding = 1e-6 if family == "llama" else 1e-8  # transformers computes its norm in float32
    assert np.abs(found.completeness["gap"].to_numpy()).max() < rounding
    plain = gradient_x_input(handle, PAIRS, ["resid_pre"], check=0)  # without the rules it does not
    assert np.abs(plain.completeness["gap"].to_numpy()).max() > 1e-3


def test_relp_of_differences_is_no_sum_over_the_stream() -> None:
    found = relp(unbiased_model("gpt2"), PAIRS, "resid_pre", check=0)
    np.testing.assert_allclose(found.completeness["total"].to_numpy(), found.effect)
    assert np.ptp(found.completeness["explained"].to_numpy()) > 1e-3


def test_gradient_x_input_is_attribution_patching_against_zero(model: ModelHandle) -> None:
    one = gradient_x_input(model, PAIRS, KINDS, check=0)
    other = attribution_patching(model, PAIRS, KINDS, baseline="zero", check=0)
    for kind in KINDS:
        np.testing.assert_array_equal(scores(one, kind), scores(other, kind))
    with pytest.raises(ValueError, match="direction noising, baseline zero"):
        gradient_x_input(model, PAIRS, KINDS, baseline="corrupt")


def test_mean_baseline_on_a_linear_model_is_mean_ablation() -> None:
    handle = linear_model("llama")
    for baseline in ("mean", "resample", "zero"):
        truth = patch_map(handle, PAIRS, ["attn_out"], baseline=baseline)
        found = attribution_patching(handle, PAIRS, ["attn_out"], baseline=baseline, check=0, batch=2)
        np.testing.assert_allclose(scores(found, "attn_out"), scores(truth, "attn_out"), atol=1e-10)


def test_bad_input_is_refused(gpt2: ModelHandle, neox: ModelHandle) -> None:
    with pytest.raises(ValueError, match="no resid_mid"):
        attribution_patching(neox, PAIRS, "resid_mid.0")
    with pytest.raises(ValueError, match="'nosing'.*noising"):
        attribution_patching(gpt2, PAIRS, "resid_pre", direction="nosing")
    with pytest.raises(ValueError, match="direction must be 'noising'"):
        attribution_patching(gpt2, PAIRS, "resid_pre", direction="denoising", baseline="zero")
    with pytest.raises(ValueError, match="heads"):
        attribution_patching(gpt2, PAIRS, "resid_pre", parts=("head",))
    with pytest.raises(ValueError, match="batch must be 1 or more, got 0"):
        attribution_patching(gpt2, PAIRS, "resid_pre", batch=0)
    with pytest.raises(ValueError, match="no relevance reaches k, q"):
        relp(gpt2, PAIRS, ["q", "k", "v"])
    with pytest.raises(ValueError, match="no gradient"):
        attribution_patching(
            gpt2, PAIRS, "resid_pre", metric=Custom(lambda logits, _: logits[:, -1].argmax(-1).float())
        )
    with pytest.raises(ValueError, match="one number per prompt"):
        attribution_patching(gpt2, PAIRS, "resid_pre", metric=Custom(lambda logits, _: logits.mean()))
    with pytest.raises(ValueError, match="not finite at prompt 0"):
        attribution_patching(gpt2, PAIRS, "resid_pre", metric=Custom(lambda logits, _: logits[:, -1, 0] * torch.nan))
    with pytest.raises(ValueError, match="n_ctx"):
        attribution_patching(gpt2, random_pairs(length=65), "resid_pre")


def test_relp_reaches_queries_with_rules_that_let_it(gpt2: ModelHandle) -> None:
    found = relp(gpt2, PAIRS, ["q", "k"], rules="relp_qk", parts=("head",), check=0)
    assert np.abs(found.map("q")).max() > 0
    assert found.about["rules"] == "relp_qk"
