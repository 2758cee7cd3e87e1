"""Relevance of cells: a linear model whose contributions are measured, sums that must agree, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.attribution.relevance import relevance
from interp.hooks import patch
from interp.models import load_model
from interp.tasks import Custom, LogitDiff, Pairs

if TYPE_CHECKING:
    from interp.models import ModelHandle


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    generator = torch.Generator().manual_seed(4)
    clean, corrupt = torch.randint(0, 300, (2, 5, 6), generator=generator)
    answers = torch.randint(0, 300, (5, 2), generator=generator)
    return Pairs("toy", clean, corrupt, answers[:, :1], answers[:, 1:])


@pytest.fixture(scope="module")
def linear(make_module: Callable[..., torch.nn.Module]) -> ModelHandle:
    """A GPT-2 that is linear in its embeddings: no norms, no MLPs, uniform attention, no biases."""
    module = make_module("gpt2").double()
    core = module.transformer
    core.ln_f = torch.nn.Identity()
    for block in core.h:
        block.ln_1 = block.ln_2 = torch.nn.Identity()
        with torch.no_grad():
            block.attn.c_attn.weight[:, :64] = 0  # queries and keys
            block.mlp.c_proj.weight.zero_()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
    return load_model(module)


def effect(handle: ModelHandle, pairs: Pairs, site: str, *part: int) -> float:
    """What really becomes of the metric, averaged, when a part of an activation is set to zero."""

    def silence(value: Tensor) -> Tensor:
        value[(slice(None), *part)] = 0
        return value

    metric, rows = LogitDiff(pairs.correct, pairs.wrong), torch.arange(len(pairs))
    with patch(handle, site, silence):
        without = metric(handle.logits(pairs.clean)[:, -1:], rows)
    return float((metric(handle.logits(pairs.clean)[:, -1:], rows) - without).mean())


def test_in_a_linear_model_relevance_is_the_measured_effect(linear: ModelHandle, pairs: Pairs) -> None:
    kinds = ("resid_pre", "head_out", "attn_out", "resid_post")
    found = relevance(linear, pairs, batch=2, sites=kinds)
    for pos in (0, 3, 5):
        for kind in ("resid_pre", "attn_out"):
            wanted = [effect(linear, pairs, f"{kind}.{layer}", pos) for layer in range(3)]
            np.testing.assert_allclose(found.map(kind)[:, pos], wanted, atol=1e-10)
        for head in (0, 2):
            wanted = [effect(linear, pairs, f"head_out.{layer}", pos, head) for layer in range(3)]
            np.testing.assert_allclose(found.map("head_out")[:, pos, head], wanted, atol=1e-10)
    assert np.abs(found.map("head_out")[:2]).min() > 1e-6
    assert found.values["output"] == pytest.approx(found.values["clean"], abs=1e-10)
    np.testing.assert_allclose(found.completeness["gap"].to_numpy(), 0, atol=1e-10)
    for other in ("gradient", "attn_lrp"):  # nothing is left for the rules to differ in, but the halved values
        same = relevance(linear, pairs, preset=other, sites=kinds)
        agree = np.allclose(same.nodes["score"].to_numpy(), found.nodes["score"].to_numpy(), atol=1e-10)
        assert agree == (other == "gradient")


@pytest.mark.parametrize("view", ["hf", "bridge"])
def test_cells_have_the_axes_of_their_kind(model: ModelHandle, pairs: Pairs, view: str) -> None:
    kinds = ("embed", "resid_pre", "q", "v", "head_out", "mlp_act", "mlp_out")
    found = relevance(model, pairs, sites=kinds, view=view)
    learnt = {"pos_embed"} if model.family == "gpt2" else set()
    assert set(found.kinds) == {*kinds, *learnt}
    assert found.map("resid_pre").shape == (3, 6)
    assert found.map("embed").shape == (1, 6)
    assert found.map("head_out").shape == (3, 6, 4)
    assert found.map("v").shape == (3, 6, model.n_kv_heads)
    assert found.map("mlp_act").shape == (3, model.d_mlp)
    assert not found.map("q").any()  # the pattern is frozen: nothing reaches the queries
    assert found.map("mlp_act").any()
    assert found.direction == "relevance"
    assert found.effect == pytest.approx(found.values["clean"] - found.values["corrupt"])
    assert len(found.nodes["per_prompt"][0].as_py()) == 5
    assert found.nodes["score"][0].as_py() == pytest.approx(np.mean(found.nodes["per_prompt"][0].as_py()), rel=1e-5)


def test_embeddings_are_the_first_layer_taken_apart(model: ModelHandle, pairs: Pairs) -> None:
    found = relevance(model, pairs, sites=("embed", "resid_pre"))
    parts = found.map("embed")[0] + (found.map("pos_embed")[0] if model.family == "gpt2" else 0)
    np.testing.assert_allclose(parts, found.map("resid_pre")[0], rtol=1e-4, atol=1e-5)


def test_heads_make_up_what_attention_puts_out(llama: ModelHandle, pairs: Pairs) -> None:
    found = relevance(llama, pairs, sites=("head_out", "attn_out"))  # no biases there
    np.testing.assert_allclose(found.map("head_out").sum(-1), found.map("attn_out"), rtol=1e-4, atol=1e-5)


def test_batches_and_order_change_nothing(neox: ModelHandle, pairs: Pairs) -> None:
    heard: list[tuple[int, int]] = []
    whole = relevance(neox, pairs)
    parts = relevance(neox, pairs.take([4, 3, 2, 1, 0]), batch=2, on_progress=lambda *at: heard.append(at))
    assert heard == [(2, 5), (4, 5), (5, 5)]
    np.testing.assert_allclose(parts.nodes["score"].to_numpy(), whole.nodes["score"].to_numpy(), rtol=1e-4, atol=1e-5)


def test_tokens_are_explained_by_the_likeliest_next_one(gpt2: ModelHandle, pairs: Pairs) -> None:
    found = relevance(gpt2, pairs.clean[0])
    logits = gpt2.logits(pairs.clean[0])[0, -1]
    assert found.target == "top_logit"
    assert found.values["clean"] == pytest.approx(float(logits.max()), rel=1e-5)
    assert "corrupt" not in found.values
    assert found.nodes["stderr"].null_count == len(found.nodes)
    assert found.tokens == tuple(gpt2.token_strings(pairs.clean[0]))
    own = relevance(gpt2, pairs.clean[:1], lambda logits, rows: logits[:, -1, 7])
    assert own.values["clean"] == pytest.approx(float(logits[7]), rel=1e-4)


def test_bad_input_is_refused(gpt2: ModelHandle, neox: ModelHandle, pairs: Pairs) -> None:
    with pytest.raises(ValueError, match="no resid_mid"):
        relevance(neox, pairs, sites="resid_mid.0")
    with pytest.raises(ValueError, match="pattern has no relevance"):
        relevance(gpt2, pairs, sites="pattern")
    with pytest.raises(ValueError, match="not finite at prompt 0"):
        relevance(gpt2, pairs, lambda logits, rows: logits[:, -1, 0] * float("nan"))
    with pytest.raises(ValueError, match="one number per prompt"):
        relevance(gpt2, pairs, lambda logits, rows: logits[:, -1])
    with pytest.raises(ValueError, match="needs the answers"):
        relevance(gpt2, pairs.clean, "logit_diff")
    with pytest.raises(ValueError, match="batch must be at least 1"):
        relevance(gpt2, pairs, batch=0)
    with pytest.raises(ValueError, match="Token ids must lie"):
        relevance(gpt2, pairs.clean + 10_000)
    with pytest.raises(ValueError, match="'custom' has no gradient"):
        relevance(gpt2, pairs, Custom(lambda logits, _: logits[:, -1].argmax(-1).float()))
    assert torch._C._len_torch_function_stack() == 0
    assert not gpt2._captures
