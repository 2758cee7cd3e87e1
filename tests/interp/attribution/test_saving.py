"""Attributions as runs: what is written comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from interp.attribution.result import Attribution
from interp.attribution.saving import cell_name, load_attribution, prompts_table, summary, write_attribution
from interp.models import ModelHandle
from interp.runs import RunDamaged, open_run, start_run
from interp.tasks import NOTHING, Pairs


def example() -> Attribution:
    nulls = pa.nulls(2, pa.int32())
    nodes = pa.table(
        {
            "kind": ["resid_pre", "resid_pre"],
            "layer": pa.array([0, 1], pa.int32()), "pos": pa.array([2, 0], pa.int32()),
            "head": nulls, "neuron": nulls, "latent": nulls, "score": [0.5, -2.0], "stderr": [0.1, 0.2],
        }
    )  # fmt: skip
    sums = pa.table(
        {"kind": ["resid_pre"], "layer": [0], "part": ["pos"], "explained": [1.0], "total": [2.0], "gap": [1.0]}
    )
    edges = pa.table({"source_kind": ["head_out"], "target_kind": ["logits"], "score": [0.25]})
    about = {"task": "induction", "n": 2}
    return Attribution(
        "relp",
        "logit_diff",
        "corrupt",
        "denoising",
        nodes,
        sums,
        ("a", "b", "c"),
        {"clean": 3.0, "corrupt": 1.0},
        edges,
        about,
    )


@pytest.fixture
def pairs() -> Pairs:
    clean = torch.tensor([[0, 5, 6], [0, 7, 8]])
    return Pairs("t", clean, clean + 1, torch.tensor([[9, NOTHING], [10, 11]]), torch.tensor([[12], [13]]))


def test_round_trip(tmp_path: Path, gpt2: ModelHandle, pairs: Pairs) -> None:
    found = example()
    prompts = prompts_table(gpt2, pairs, torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]))
    with start_run("attribution", {"n": 2}, slug="x", root=tmp_path) as run:
        write_attribution(run, found, prompts)
        run.finish(summary(found))
    again = load_attribution(open_run(run.ref, tmp_path))
    assert again.nodes.equals(found.nodes)
    assert again.completeness.equals(found.completeness)
    assert again.edges is not None
    assert again.edges.equals(found.edges)
    assert (again.tokens, again.values, again.about) == (found.tokens, found.values, found.about)
    assert run.summary["top"] == "resid_pre.1 pos 0"
    assert run.summary["top_score"] == -2.0
    table = open_run(run.ref, tmp_path).table("prompts.parquet").to_pylist()
    assert table[0]["correct"] == [9]
    assert table[1]["correct"] == [10, 11]
    assert table[1]["clean_value"] == 2.0
    assert table[0]["clean"] == [0, 5, 6]
    assert table[0]["corrupt_tokens"] == gpt2.token_strings([1, 6, 7])
    assert table[1]["correct_tokens"] == gpt2.token_strings([10, 11])
    light = load_attribution(open_run(run.ref, tmp_path), columns=("kind", "layer", "score"))
    assert light.nodes.column_names == ["kind", "layer", "score"]
    assert light.nodes["score"].equals(found.nodes["score"])


def test_without_a_tokenizer_there_are_no_texts(gpt2: ModelHandle, pairs: Pairs) -> None:
    tokenizer, gpt2.tokenizer = gpt2.tokenizer, None
    try:
        table = prompts_table(gpt2, pairs)
    finally:
        gpt2.tokenizer = tokenizer
    assert table["clean_tokens"].null_count == 2
    assert table["clean_value"].null_count == 2


def test_other_runs_and_broken_ones_are_refused(tmp_path: Path) -> None:
    with start_run("sae", {}, slug="x", root=tmp_path) as run:
        run.finish({})
    with pytest.raises(ValueError, match="holds no attribution: its kind is 'sae'"):
        load_attribution(open_run(run.ref, tmp_path))
    with start_run("attribution", {}, slug="x", root=tmp_path) as run:
        write_attribution(run, example())
        run.save_json("attribution.json", {"method": "relp"})
        run.finish({})
    with pytest.raises(RunDamaged, match="lacks target"):
        load_attribution(open_run(run.ref, tmp_path))


def test_cell_names() -> None:
    cell = {"kind": "head_out", "layer": 3, "head": 2, "pos": 5, "neuron": None, "latent": None}
    assert cell_name(cell) == "head_out.3 head 2 pos 5"
    assert cell_name({"kind": "mlp_out", "layer": np.int32(1)}) == "mlp_out.1"
