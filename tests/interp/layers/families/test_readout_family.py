"""Family `readout`: its curves are those of the plain functions, shares add up, models that do not add are refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from interp.data import Blocks
from interp.hooks import capture, patch
from interp.layers.confidence import Confidence
from interp.layers.direct import direct_logits
from interp.layers.families.readout import ReadoutFamily
from interp.layers.family import Batch, Family, FamilyResult
from interp.layers.head_svd import head_rows
from interp.layers.neurons import RotationNull, neuron_directions, sharpness
from interp.layers.vocabulary import Vocabulary
from interp.models import ModelHandle

TOKENS = torch.randint(1, 300, (4, 11), generator=torch.Generator().manual_seed(2))
REAL = torch.ones_like(TOKENS, dtype=torch.bool)
REAL[1, 6:] = False


def measured(family: ReadoutFamily, handle: ModelHandle, real: Tensor = REAL) -> FamilyResult:
    family.begin(handle, Blocks(TOKENS, real, len(TOKENS), False, None))
    for tokens, there in zip(TOKENS.split(2), real.split(2), strict=True):
        with capture(handle, family.sites(handle)) as acts:
            logits = handle.logits(tokens)
        keep = there.clone()
        keep[:, 0] = False
        family.update(Batch(tokens, there, keep, logits, {site: x.flatten(2) for site, x in acts.items()}))
    return family.finish()


@pytest.mark.parametrize("model", ["gpt2", "neox", pytest.param("llama", marks=pytest.mark.slow)], indirect=True)
def test_curves_are_those_of_the_plain_functions(model: ModelHandle) -> None:
    family = ReadoutFamily(texts=3, neurons=20, draws=200, effects=2)
    assert isinstance(family, Family)
    result = measured(family, model)
    rows = {(r["layer"], r["measure"], r["part"]): r["value"] for r in result.layers.to_pylist()}
    means = []
    for i, length in enumerate((11, 6, 11)):
        where = torch.zeros(1, length, dtype=torch.bool)
        where[:, 1:-1] = True
        targets = TOKENS[i, 2:length]
        tokens = TOKENS[i : i + 1, :length]
        found = direct_logits(model, tokens, targets, against=torch.full_like(targets, -1), where=where)
        means.append(found.values.mean(0))
    each = torch.stack(means).mean(0)
    for layer in range(3):
        attn = sum(float(each[found.columns(kind, layer)].sum()) for kind in ("head", "attn_bias"))
        assert rows[layer, "dla", "attn"] == pytest.approx(attn, abs=1e-4)
        vocabulary = Vocabulary(model)
        directions = neuron_directions(model, layer)
        places = [i * len(directions) // 20 for i in range(20)]
        p = RotationNull(vocabulary, 200).p_values(sharpness(vocabulary, directions[places]))
        assert rows[layer, "neuron_share", ""] == pytest.approx(float((p <= 0.01).double().mean()))
        ranks = [row["ov_rank"] for row in head_rows(model, layer)]
        assert rows[layer, "ov_rank", ""] == pytest.approx(sum(ranks) / 4)
    assert result.summary["logit"] == pytest.approx(float(each.sum()), abs=1e-3)
    shares = sum(value for (_, measure, _), value in rows.items() if measure == "dla_share")
    assert shares + result.summary["constant_share"] == pytest.approx(1)
    assert result.summary["dla_error"] < 1e-3
    assert {row[1] for row in rows} == {measure.name for measure in family.measures}


def test_tables_hold_neurons_heads_and_effects(gpt2: ModelHandle) -> None:
    result = measured(ReadoutFamily(texts=4, neurons=8, draws=50, effects=2), gpt2)
    neurons, heads, effects = (result.tables[name].to_pylist() for name in ("neurons", "heads", "confidence"))
    assert len(neurons) == 3 * 8
    assert all(row["kurtosis"] >= later["kurtosis"] for row, later in pairwise(neurons[:8]))
    assert [(row["layer"], row["head"]) for row in heads] == [(layer, head) for layer in range(3) for head in range(4)]
    assert 2 <= len(effects) <= 4
    counts = torch.bincount(TOKENS[REAL], minlength=300)
    shape = Confidence(gpt2, counts).geometry(2)
    for row in effects:
        assert row["frequency"] == pytest.approx(float(shape.frequency[row["neuron"]]))
    assert effects[0]["neuron"] == int((shape.norm.square() * shape.null_share).argmax())


def test_a_model_without_a_tokenizer_has_ids(make_model: Callable[..., ModelHandle]) -> None:
    result = measured(ReadoutFamily(texts=1, neurons=4, draws=20, effects=1), make_model("llama"))
    assert all(word.isdigit() for row in result.tables["neurons"].to_pylist() for word in row["tokens"])


def test_texts_without_a_next_token_and_models_that_do_not_add_are_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="got none"):
        measured(ReadoutFamily(draws=5), gpt2, torch.zeros_like(REAL))
    with patch(gpt2, "resid_post.1", lambda x: 3 * x), pytest.raises(ValueError, match="leave this family out"):
        measured(ReadoutFamily(draws=5), gpt2)
    with pytest.raises(ValueError, match="neurons must be 1"):
        ReadoutFamily(neurons=0)
