"""Shuffled weights: what a copy keeps, and that attributions of the model do not survive it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.attribution import Attribution, patch_map, randomisation_check, randomised
from interp.attribution.scoring import correlation
from interp.models import ModelHandle, ModelSpec, compiled_model, load_model
from interp.tasks import Pairs


def test_shuffling_keeps_every_tensors_values_and_the_model_itself(model: ModelHandle) -> None:
    before = {name: value.clone() for name, value in model.module.named_parameters()}
    copy = randomised(model, seed=1)
    for name, value in copy.module.named_parameters():
        assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values)
        assert torch.equal(dict(model.module.named_parameters())[name], before[name])
    assert copy.digest() != model.digest()
    assert copy.digest() == randomised(model, seed=1).digest()
    assert copy.digest() != randomised(model, seed=2).digest()


def test_only_the_later_blocks_can_be_shuffled(model: ModelHandle) -> None:
    last = model.n_layers - 1
    copy = randomised(model, first_layer=last)
    changed = {
        name
        for name, value in copy.module.named_parameters()
        if not torch.equal(value, dict(model.module.named_parameters())[name])
    }
    assert changed
    assert all(f".{last}." in name for name in changed)
    with pytest.raises(ValueError, match=r"first_layer must lie in 0\.\.2, got 3"):
        randomised(model, first_layer=3)


def random_pairs(model: ModelHandle, n: int = 6) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(1, model.d_vocab, (2, n, 7), generator=generator)
    answers = torch.randint(1, model.d_vocab, (n, 2), generator=generator)
    return Pairs("random", clean, corrupt, answers[:, :1], answers[:, 1:])


def test_patching_forgets_a_shuffled_model_and_a_map_of_the_input_does_not(gpt2: ModelHandle) -> None:
    pairs = random_pairs(gpt2)

    def patched(handle: ModelHandle) -> Attribution:
        return patch_map(handle, pairs, ["attn_out.0", "attn_out.1", "mlp_out.0", "mlp_out.1"])

    def positions(handle: ModelHandle) -> Attribution:
        found = patched(gpt2)
        nodes = found.nodes
        column = nodes.column_names.index("score")
        return found.with_nodes(nodes.set_column(column, "score", [nodes["pos"].cast("float64").combine_chunks()]))

    rows = randomisation_check(patched, gpt2, seeds=(0, 1)).to_pylist()
    assert [(row["kind"], row["seed"]) for row in rows] == [
        (kind, seed) for seed in (0, 1) for kind in ("attn_out", "mlp_out")
    ]
    assert all(row["cells"] == 14 and abs(row["pearson"]) < 0.9 for row in rows)
    blind = randomisation_check(positions, gpt2, seeds=(0,)).to_pylist()
    assert all(row["pearson"] == pytest.approx(1.0) and row["spearman"] == pytest.approx(1.0) for row in blind)


def test_the_heads_of_a_compiled_circuit_are_forgotten() -> None:
    handle = load_model(ModelSpec("compiled/induction", dtype="float64"), device="cpu")
    pairs = compiled_model("compiled/induction").pairs(4)

    def patched(handle: ModelHandle) -> Attribution:
        return patch_map(handle, pairs, ["head_out.0", "head_out.1"], parts=("head",))

    before, after = patched(handle), patched(randomised(handle))
    scores = [found.nodes["score"].to_numpy() for found in (before, after)]
    assert np.abs(scores[0]).max() > 1.0
    row = randomisation_check(patched, handle, seeds=(0,)).to_pylist()[0]
    assert row["pearson"] == pytest.approx(correlation(scores[0], scores[1], ranks=False))
    assert row["pearson"] is None or abs(row["pearson"]) < 0.9
