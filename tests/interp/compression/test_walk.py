from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from interp.compression.steps import Magnitude, Rtn
from interp.compression.walk import choose
from interp.models import ModelSpec, load_model

Make = Callable[..., Any]


@pytest.mark.parametrize(("family", "per_block"), [("gpt2", 4), ("neox", 4), ("llama", 7)])
def test_every_matrix_of_the_blocks_and_no_other(family: str, per_block: int, make_module: Make) -> None:
    module = make_module(family)
    choice = choose(module, (), ())
    assert len(choice.weights) == 3 * per_block
    blocks = {"gpt2": "transformer.h", "neox": "gpt_neox.layers", "llama": "model.layers"}[family]
    expected = sum(p.numel() for p in module.get_submodule(blocks).parameters() if p.ndim == 2)
    assert choice.eligible == choice.asked == expected
    rows = {weight.name.rpartition(".")[2]: weight.matrix.shape for weight in choice.weights}
    assert rows[{"gpt2": "c_fc", "neox": "dense_h_to_4h", "llama": "up_proj"}[family]] == (
        {"gpt2": 128, "neox": 64, "llama": 48}[family],
        32,
    )


def test_patterns_choose(make_module: Make) -> None:
    module = make_module("gpt2")
    names = lambda include=(), exclude=(): [w.name for w in choose(module, include, exclude).weights]  # noqa: E731
    assert names(("*.mlp.*",)) == [f"transformer.h.{i}.mlp.{m}" for i in range(3) for m in ("c_fc", "c_proj")]
    assert names(("*.1.*",), ("*attn*",)) == ["transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"]
    assert names(("*",)) == names()  # a pattern that means blocks means no embedding
    assert names(("lm_head",)) == ["lm_head"]
    assert names(("transformer.wpe",)) == ["transformer.wpe"]


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (("mlp.c_fc",), (), "did you mean 'transformer.h.*.mlp.c_fc'?"),
        (("*.mpl.*",), (), "Unknown module or pattern (it matches nothing) '*.mpl.*'"),
        ((), ("*.attention.*",), "Known: lm_head, transformer.h.*.attn.c_attn,"),
        (("*.mlp.*",), ("*.mlp.*",), "exclude=['*.mlp.*'] leaves nothing of what include=['*.mlp.*'] means."),
    ],
)
def test_patterns_that_match_nothing(include: tuple, exclude: tuple, message: str, make_module: Make) -> None:
    with pytest.raises(ValueError) as found:
        choose(make_module("gpt2"), include, exclude)
    assert message in str(found.value)


def test_coverage_is_of_all_that_is_eligible(make_module: Make) -> None:
    module = make_module("gpt2")
    report = Rtn(4, include=("*.mlp.*",)).apply(module)
    assert report.coverage == pytest.approx(2 * 32 * 128 / (2 * 32 * 128 + 4 * 32 * 32))
    assert report.coverage == report.parameters / report.eligible
    with pytest.raises(ValueError, match=r"rtn-4bit@\*.mlp.\* reaches 24,576 of 36,864 eligible parameters \(66.7%\)"):
        Rtn(4, include=("*.mlp.*",), least_coverage=0.7).apply(module)


class Packed(nn.Module):
    """A layer that keeps its matrix in a form of its own."""

    def __init__(self, rows: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows, inputs), requires_grad=False)


def test_what_no_step_can_act_on_is_an_error(make_module: Make) -> None:
    """A library's own layer would be passed over without a word, and the model look almost lossless."""
    module = make_module("llama")
    module.model.layers[1].mlp.up_proj = Packed(48, 32)
    with pytest.raises(ValueError, match=r"no step can act on model.layers.1.mlp.up_proj \(Packed\). Exclude these"):
        Magnitude(0.5).apply(module)
    assert not (module.model.layers[0].mlp.up_proj.weight == 0).any()
    report = Magnitude(0.5, least_coverage=0.9).apply(module)
    assert 0.9 < report.coverage < 1
    assert Magnitude(0.5, exclude=("*.1.mlp.up_proj",)).apply(module).coverage == report.coverage


@pytest.mark.parametrize("pattern", ["lm_head", "transformer.wte"])
def test_tied_embeddings_are_split_first(pattern: str, model_folder: Path) -> None:
    plain = load_model(str(model_folder), device="cpu")
    assert plain.module.lm_head.weight is plain.module.transformer.wte.weight
    step = Rtn(4, include=(pattern,))
    handle = load_model(ModelSpec(str(model_folder), recipe=(step,)), device="cpu")
    head, embedding = handle.module.lm_head.weight, handle.module.transformer.wte.weight
    assert head.data_ptr() != embedding.data_ptr()
    assert not head.requires_grad
    old = plain.module.lm_head.weight
    assert torch.equal(head, old) == (pattern != "lm_head")
    assert torch.equal(embedding, old) == (pattern == "lm_head")
    assert handle.reports[0].notes == (
        "embedding and unembedding were one tensor and are two now: 9,600 parameters more",
    )
    assert handle.n_parameters == plain.n_parameters + 9600
    assert handle.storage.parameters == handle.n_parameters
    assert handle.verify() < 1e-4
    assert handle.base_digest() == plain.digest()


def test_embeddings_count_only_where_they_are_asked_for(make_module: Make) -> None:
    module = make_module("llama")
    inside = choose(module, (), ()).eligible
    both = choose(module, ("*", "lm_head"), ())
    assert both.eligible == both.asked == inside + 300 * 32
    assert choose(module, ("lm_head",), ()).asked == 300 * 32
    assert both.notes == []  # not tied
