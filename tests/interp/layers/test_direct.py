"""Direct logit attribution: it adds up to the logit, part by part as a slow loop says; what removal does instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interp.attribution.relevance.conservation import Wide
from interp.hooks import capture, patch
from interp.layers.direct import DirectLogits, Part, direct_logits
from interp.layers.norms import block_norm, final_norm, norm_parts
from interp.layers.weights import layer_bias, layer_matrices
from interp.models import ModelHandle
from interp.models.compiled.blank import without_norms

Make = Callable[..., ModelHandle]


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def wide(make: Make, family: str, **changes: object) -> ModelHandle:
    """Return a random model in float64."""
    handle = make(family, **changes)
    handle.module.double()
    return handle


MODELS = [
    ("gpt2", {}),
    ("neox", {}),
    ("neox", {"use_parallel_residual": False}),
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
]


@pytest.mark.parametrize(("family", "changes"), MODELS)
@pytest.mark.parametrize("neurons", [False, True])
def test_parts_add_up_to_the_logit(make_model: Make, family: str, changes: dict, neurons: bool) -> None:
    handle, tokens = wide(make_model, family, **changes), ids(3, 10)
    where = ids(3, 10, seed=4) > 150
    rows = int(where.sum())
    targets, other = ids(2, rows, seed=5)
    mean = torch.full((rows,), -1)
    with Wide():
        logits = handle.logits(tokens)[where]
        expected = {"plain": (None, 0), "other": (other, logits.gather(1, other[:, None])[:, 0])}
        expected["mean"] = (mean, logits.mean(1))
        for against, less in expected.values():
            found = direct_logits(handle, tokens, targets, against=against, where=where, neurons=neurons)
            assert torch.allclose(found.logits, logits.gather(1, targets[:, None])[:, 0] - less, atol=1e-12)
            assert float(found.error.abs().max()) < 1e-10
    assert len(set(found.parts)) == len(found.parts) == found.values.shape[1]
    assert ("neuron" in {part.kind for part in found.parts}) == neurons


def slow_parts(handle: ModelHandle, tokens: Tensor, target: int) -> dict[Part, Tensor]:
    """Return {part: its vector in the stream} at the last position of one sequence, by the bridge's own parts."""
    sites = [f"{kind}.{layer}" for layer in range(3) for kind in ("head_out", "attn_out", "mlp_act", "mlp_out")]
    with capture(handle, [*sites, "resid_pre.0"]) as acts:
        handle.forward(tokens)
    embed = handle.module.get_input_embeddings().weight[tokens[0, -1]]
    found = {Part("embed", -1): embed}
    if handle.family == "gpt2":
        found[Part("pos", -1)] = handle.module.transformer.wpe.weight[tokens.shape[1] - 1]
    for layer in range(3):
        o = layer_matrices(handle, layer)["o"]
        width, total = handle.d_head, 0
        for head in range(handle.n_heads):
            c = o[:, head * width : (head + 1) * width] @ acts[f"head_out.{layer}"][0, -1, head]
            found[Part("head", layer, head)] = c
            total = total + c
        rest = acts[f"attn_out.{layer}"][0, -1] - total
        if float(rest.abs().max()) > 1e-9:
            found[Part("attn_bias", layer)] = rest
        bias = layer_bias(handle, layer, "mlp_out")
        found[Part("mlp", layer)] = acts[f"mlp_out.{layer}"][0, -1] - (0 if bias is None else bias)
        if bias is not None:
            found[Part("mlp_bias", layer)] = bias
    return found


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_each_part_is_its_dot_product_and_its_removal_that_of_a_patched_stream(make_model: Make, family: str) -> None:
    handle, tokens, target = wide(make_model, family), ids(1, 8), 17
    with Wide():
        found = direct_logits(handle, tokens, torch.tensor([target]), removal=True)
        vectors = slow_parts(handle, tokens, target)
        with capture(handle, "resid_post.2") as acts:
            logits = handle.logits(tokens)
        stream = acts["resid_post.2"][0, -1]
        u, norm = handle.unembed()[target], handle.final_norm
        centred = stream - stream.mean() if family != "llama" else stream
        scale = (centred.square().mean() + (norm.eps if family != "llama" else norm.variance_epsilon)).sqrt()
        assert found.removed is not None
        for part, c in vectors.items():
            i = found.parts.index(part)
            direction = c - c.mean() if family != "llama" else c
            assert float(found.values[0, i]) == pytest.approx(float((u * norm.weight * direction).sum() / scale))
            with patch(handle, "resid_post.2", lambda x, c=c: x - c):
                without = handle.logits(tokens)[0, -1, target]
            assert float(found.removed[0, i]) == pytest.approx(float(logits[0, -1, target] - without), abs=1e-10)
        assert set(found.parts) - set(vectors) == {Part("norm_bias", 3), Part("unembed_bias", 3)}
        assert torch.allclose(sum(vectors.values()), stream)
    assert found.removal_error() > 0.01  # with a norm the two are not the same


@pytest.mark.parametrize("neurons", [False, True])
def test_without_norms_a_contribution_is_what_removal_takes(make_module: Callable, neurons: bool) -> None:
    from interp.models import load_model

    handle = load_model(without_norms(make_module("gpt2", initializer_range=0.05)).double())
    found = direct_logits(handle, ids(2, 6), torch.tensor([3, 4]), removal=True, neurons=neurons)
    assert float(found.error.abs().max()) < 1e-10
    assert found.removal_error() < 1e-12


def test_neurons_add_up_to_their_mlp(gpt2: ModelHandle) -> None:
    tokens, targets = ids(2, 9), torch.tensor([5, 6])
    whole = direct_logits(gpt2, tokens, targets)
    each = direct_logits(gpt2, tokens, targets, neurons=True)
    for layer in range(3):
        total = each.values[:, each.columns("neuron", layer)].sum(1)
        assert torch.allclose(total, whole.values[:, whole.columns("mlp", layer)][:, 0], atol=1e-5)
    assert len(whole.columns("head")) == 3 * len(whole.columns("head", 1)) == 12


def test_the_sum_holds_to_float32_precision_in_a_float32_model(model: ModelHandle) -> None:
    found = direct_logits(model, ids(4, 20), torch.tensor([1, 2, 3, 4]))
    assert float(found.error.abs().max()) < 1e-5 * max(1.0, float(found.values.abs().max()))
    assert found.removal_error() != found.removal_error()


def test_a_wrong_number_of_targets_and_odd_norms_are_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="each of the 2 rows, got 1"):
        direct_logits(gpt2, ids(2, 5), torch.tensor([3]))
    with pytest.raises(ValueError, match="got BatchNorm1d"):
        norm_parts(torch.nn.BatchNorm1d(4), 4)


@pytest.mark.parametrize("part", ["attn", "mlp"])
def test_norms_are_taken_apart(model: ModelHandle, part: str) -> None:
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    u = torch.randn(32, generator=torch.Generator().manual_seed(1)).double()
    for one, module in ((final_norm(model), model.final_norm), (block_norm(model, 1, part), None)):
        y = one(x)
        if module is not None:
            assert torch.allclose(y, module(x).double(), atol=1e-5)
        assert torch.allclose(y @ u, x.double() @ one.pull_back(u) / one.scale(x) + u @ one.bias)
        assert (float(one.bias.abs().max()) > 0) == (model.family != "llama")


def test_a_result_says_which_sum_it_is(gpt2: ModelHandle) -> None:
    found = DirectLogits((Part("embed", -1),), torch.tensor([[2.0]]).double(), torch.tensor([1.5]).double())
    assert found.error.tolist() == [0.5]


@pytest.mark.slow
def test_contributions_are_those_of_transformer_lens(make_model: Make) -> None:
    handle, tokens = make_model("gpt2", tie_word_embeddings=False), ids(2, 9)
    with torch.no_grad():  # transformer-lens moves what biases make of v from heads to the bias of the block
        for block in handle.module.transformer.h:
            block.attn.c_attn.bias[64:] = 0
            block.ln_1.bias.zero_()
    right, wrong = torch.tensor([5, 6]), torch.tensor([7, 8])
    found = direct_logits(handle, tokens, right, against=wrong)
    bridge = handle.bridge
    bridge.enable_compatibility_mode()
    with torch.no_grad():
        _, cache = bridge.run_with_cache(tokens)
        stack, names = cache.get_full_resid_decomposition(
            layer=3, expand_neurons=False, pos_slice=-1, return_labels=True
        )
        expected = cache.logit_attrs(stack, tokens=right, incorrect_tokens=wrong, pos_slice=-1).T.double()
    ours = {f"L{part.layer}H{part.index}": [i] for i, part in enumerate(found.parts) if part.kind == "head"}
    for layer in range(3):
        ours[f"{layer}_mlp_out"] = found.columns("mlp", layer) + found.columns("mlp_bias", layer)
    ours |= {"embed": found.columns("embed"), "pos_embed": found.columns("pos")}
    assert set(names) == {*ours, "bias"}
    for i, name in enumerate(names):
        if name != "bias":
            assert torch.allclose(found.values[:, ours[name]].sum(1), expected[:, i], atol=1e-5), name
