"""Family `gradients`: its curves are those of the plain function, on as many texts as asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interp.data import Blocks
from interp.layers.families.gradients import GradientsFamily
from interp.layers.family import Batch, Family, FamilyResult
from interp.layers.gradient_data import Example
from interp.layers.gradients import layer_gradients
from interp.models import ModelHandle


def blocks_of(tokens: Tensor, real: Tensor) -> Blocks:
    return Blocks(tokens, real, len(tokens), False, None)


def measured(family: GradientsFamily, handle: ModelHandle, tokens: Tensor, real: Tensor) -> FamilyResult:
    family.begin(handle, blocks_of(tokens, real))
    for rows, there in zip(tokens.split(2), real.split(2), strict=True):
        family.update(Batch(rows, there, there, torch.zeros(*rows.shape, 1), {}))
    return family.finish()


@pytest.mark.parametrize("model", ["gpt2", "llama", pytest.param("neox", marks=pytest.mark.slow)], indirect=True)
def test_curves_are_those_of_the_first_texts(model: ModelHandle) -> None:
    tokens = torch.randint(1, 300, (5, 12), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[1, 7:] = False
    family = GradientsFamily(texts=3, length=9)
    assert isinstance(family, Family)
    result = measured(family, model, tokens, real)
    examples = [Example(tuple(tokens[i, :n].tolist()), 1) for i, n in ((0, 9), (1, 7), (2, 9))]
    found = layer_gradients(model, examples)
    assert result.summary["texts"] == 3
    assert result.summary["tokens"] == 8 + 6 + 8
    assert result.summary["loss"] == pytest.approx(float(found.losses.mean()))
    rows = {(r["layer"], r["measure"], r["part"]): r for r in result.layers.to_pylist()}
    for i, name in enumerate(found.names):
        for layer in range(3):
            row = rows[layer, "nuclear", name]
            each = found.each("nuclear")[:, layer, i]
            assert row["value"] == pytest.approx(float(each.mean()))
            assert row["high"] - row["value"] == pytest.approx(1.96 * float(each.std()) / 3**0.5)
        assert rows[0, "next_cosine", name]["value"] == pytest.approx(float(found.layer_cosine[i, 0, 1]))
    assert {row[1] for row in rows} == {measure.name for measure in family.measures}
    cosines = result.tables["cosines"].to_pylist()
    assert all(abs(row["cosine"]) <= 1 + 1e-9 for row in cosines)
    assert result.tables["matrices"].num_rows == 3 * len(found.names)
    again = measured(family, model, tokens, real)
    assert again.layers.equals(result.layers)  # begin forgets


def test_odd_settings_and_texts_are_refused(gpt2: ModelHandle, make_model: Callable[..., ModelHandle]) -> None:
    with pytest.raises(ValueError, match="length 2 or more"):
        GradientsFamily(length=1)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="a text of two tokens or more"):
        measured(GradientsFamily(), gpt2, tokens, torch.zeros_like(tokens, dtype=torch.bool))
