"""The family `depth` through a profile: its numbers are those of the functions, on few and on odd texts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from interp.data import Blocks
from interp.layers.erasure import mean_stream, residual_erasure
from interp.layers.families.depth import DepthFamily, halves
from interp.layers.family import Family, FamilyResult
from interp.layers.path_gradients import layer_path_gradients
from interp.layers.profile import profile
from interp.layers.skipping import SkipMatrix, layer_effects, skip_effects
from interp.models import ModelHandle
from interp.sites import Site

FEW = {"erased_prompts": 1, "erased_positions": 2, "path_prompts": 1, "path_steps": 2, "path_tokens": 12, "answers": 2}


def some_blocks(count: int = 4, length: int = 20) -> Blocks:
    tokens = torch.randint(1, 300, (count, length), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    tokens[:, 0] = 0
    return Blocks(tokens, torch.ones_like(tokens, dtype=torch.bool), count, False, 0)


def measured(model: ModelHandle, blocks: Blocks, **changes: int) -> FamilyResult:
    return profile(model, [DepthFamily(**(FEW | changes))], blocks=blocks).results["depth"]


def value(found: FamilyResult, measure: str, part: str, layer: int) -> tuple[float, float | None, float | None]:
    rows = [
        row for row in found.layers.to_pylist()
        if (row["measure"], row["part"], row["layer"]) == (measure, part, layer)
    ]  # fmt: skip
    assert len(rows) == 1
    return rows[0]["value"], rows[0]["low"], rows[0]["high"]


@pytest.mark.parametrize("model", ["gpt2", "neox", pytest.param("llama", marks=pytest.mark.slow)], indirect=True)
def test_curves_are_what_the_functions_find(model: ModelHandle) -> None:
    blocks = some_blocks()
    found = measured(model, blocks)
    tokens = blocks.tokens.long()
    whole = SkipMatrix()
    whole.update(skip_effects(model, tokens))
    later, output = layer_effects(whole.change()["mean"]), whole.output()["mean"]
    for layer in range(3):
        if layer < 2:
            assert value(found, "later", "current", layer)[0] == pytest.approx(float(later[layer]), rel=1e-3)
        got, low, high = value(found, "output", "current", layer)
        assert got == pytest.approx(float(output[0, layer]), rel=1e-3)
        assert low is not None and high is not None and low <= got <= high  # noqa: PT018
        assert value(found, "output_kl", "current", layer)[0] == pytest.approx(float(output[1, layer]), rel=1e-3)
    text = tokens[0, :12]
    one = layer_path_gradients(model, text, answers=2, steps=2, most_steps=32)[1]
    assert value(found, "path_change", "block", 1)[0] == pytest.approx(one.change, abs=1e-6)
    assert value(found, "path_gap", "block", 1)[0] == pytest.approx(abs(one.gap), abs=1e-6)
    means = mean_stream(model, [row[None, :12] for row in tokens])
    erased = residual_erasure(model, text[None], means, answers=2, positions=[1, 6])
    assert value(found, "erased", "", -1)[0] == pytest.approx(float(erased.l2[0, 0].mean()), rel=1e-3)
    assert found.tables["erasure"].num_rows == 4 * 2
    assert found.tables["skips"].num_rows == 5 * 6
    assert (found.summary["prompts"], found.summary["prompts_of"], found.summary["tokens_current"]) == (4, 4, 4 * 19)


def test_an_even_sample_and_one_prompt_work(gpt2: ModelHandle) -> None:
    found = measured(gpt2, some_blocks(7), prompts=3)
    assert (found.summary["prompts"], found.summary["prompts_of"]) == (3, 7)
    assert measured(gpt2, some_blocks(20), prompts=1).summary["prompts"] == 1  # in the second batch of two
    alone = measured(gpt2, some_blocks(1))
    assert alone.summary["prompts"] == 1
    assert value(alone, "output", "current", 0)[1:] == (None, None)


def test_padding_changes_nothing(gpt2: ModelHandle) -> None:
    blocks = some_blocks(2, 18)
    padded = torch.cat([blocks.tokens, torch.zeros(2, 6, dtype=torch.int32)], 1)
    keep = torch.ones_like(padded, dtype=torch.bool)
    keep[:, 18:] = False
    usual = measured(gpt2, blocks)
    found = measured(gpt2, Blocks(padded, keep, 2, False, 0))
    for measure, part in (("later", "current"), ("output_kl", "mlp"), ("path_change", "attn"), ("output", "future")):
        assert value(found, measure, part, 0)[0] == pytest.approx(value(usual, measure, part, 0)[0], rel=1e-3)


def test_what_it_cannot_be_measured_on_is_refused(make_model: Callable[..., ModelHandle], gpt2: ModelHandle) -> None:
    odd = make_model("gpt2")
    odd.attach(Site(1, "resid_post"), lambda x: x / x.norm(dim=-1, keepdim=True))
    with pytest.raises(ValueError, match="The family depth: .* blocks that add to the stream"):
        measured(odd, some_blocks())
    with pytest.raises(ValueError, match="blocks of 16 tokens or more, got 9"):
        measured(gpt2, some_blocks(2, 9))
    for wrong in ({"prompts": 0}, {"answers": 12}):
        with pytest.raises(ValueError, match="1 or more and path_tokens above answers"):
            DepthFamily(**(FEW | wrong))


def test_halves_and_the_protocol() -> None:
    assert isinstance(DepthFamily(), Family)
    assert halves(torch.tensor([1.0, 3.0, 1.0, 0.0])) == 0.25
    assert halves(torch.tensor([1.0])) is None
    assert halves(torch.tensor([0.0, 1.0])) is None
