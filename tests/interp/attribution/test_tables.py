"""The tables that all methods share: means, standard errors, nulls, types."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from scipy.stats import sem

from interp.attribution.result import CELL
from interp.attribution.tables import (
    completeness_table,
    nodes_table,
    score_columns,
    standard_error,
    token_labels,
    token_texts,
)
from interp.models import ModelHandle
from interp.tasks import Pairs

FOUND = np.random.default_rng(0).normal(size=(4, 5))


def test_scores_are_means_with_their_standard_errors() -> None:
    columns = score_columns(FOUND)
    np.testing.assert_allclose(columns["score"].to_numpy(), FOUND.mean(1), rtol=1e-14)
    np.testing.assert_allclose(columns["stderr"].to_numpy(), sem(FOUND, axis=1), rtol=1e-12)
    np.testing.assert_array_equal(columns["per_prompt"].to_pylist(), FOUND.astype(np.float32))
    np.testing.assert_array_equal(score_columns(FOUND.T.copy().T)["per_prompt"].to_pylist(), FOUND.astype(np.float32))


def test_one_prompt_has_no_standard_error() -> None:
    assert score_columns(FOUND[:, :1])["stderr"].null_count == len(FOUND)
    assert np.isnan(standard_error(FOUND[:, :1])).all()


def test_nodes_have_every_column_of_a_cell() -> None:
    cells = {"kind": ["attn_out"] * 4, "layer": np.full(4, 2), "pos": [0, 1, None, 3]}
    estimated, measured = (nodes_table(cells, FOUND, measured=known) for known in (False, True))
    assert tuple(estimated.column_names[: len(CELL)]) == CELL
    assert estimated["pos"].to_pylist() == [0, 1, None, 3]
    assert all(estimated[name].null_count == 4 for name in ("head", "neuron", "latent", "measured", "measured_stderr"))
    assert measured["measured"].equals(measured["score"])
    assert measured["measured_stderr"].equals(measured["stderr"])
    assert pa.concat_tables([estimated, measured]).num_rows == 8  # one schema


def test_the_gap_is_what_the_scores_leave() -> None:
    found = completeness_table([("resid_pre", 1, "all", 0.75, 1.0), ("mlp_out", 0, "pos", 2.0, -1.0)])
    assert found["gap"].to_pylist() == [0.25, -3.0]
    assert completeness_table([]).schema == found.schema


def test_positions_are_named_by_role_or_token(gpt2: ModelHandle, llama: ModelHandle) -> None:
    ids, answers = torch.tensor([[66, 67]]), torch.tensor([[1]])
    pairs = Pairs("named", ids, ids, answers, answers)
    assert token_labels(gpt2, pairs) == tuple(gpt2.token_strings(ids[0]))
    assert token_labels(gpt2, replace(pairs, roles=("first", "second"))) == ("first", "second")
    bare = ModelHandle(llama.spec, llama.module, None)
    assert token_texts(bare, ids[0]) == ("66", "67")
