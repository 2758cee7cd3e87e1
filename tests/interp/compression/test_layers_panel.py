"""The panel layers: families on both models of a pair, equal to each model's own profile."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp.compression import read_recipe
from interp.compression.compare import build_panels, compare
from interp.compression.panels import Layers
from interp.data import Blocks
from interp.layers.profile import profile
from interp.models import ModelHandle, ModelSpec, load_model

SOME = ("stream", "geometry", "spectra")


def text(blocks: int = 6, context: int = 20) -> Blocks:
    tokens = torch.randint(1, 300, (blocks, context), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    tokens[:, 0] = 0
    return Blocks(tokens, torch.ones_like(tokens, dtype=torch.bool), 1, True, 0)


@pytest.fixture(scope="module")
def pair(model_folder: Any) -> tuple[ModelHandle, ModelHandle]:
    recipe = read_recipe("[{step: rtn, bits: 3}]")
    return load_model(str(model_folder)), load_model(ModelSpec(str(model_folder), recipe=recipe))


def test_values_are_those_of_each_models_profile(pair: tuple[ModelHandle, ModelHandle]) -> None:
    blocks = text()
    found = compare(*pair, [Layers(SOME)], blocks=blocks, batch_blocks=4).results["layers"]
    for side, handle in zip("ab", pair, strict=True):
        own = profile(handle, SOME, blocks=blocks).results
        rows = found.tables["layers"].to_pylist()
        assert len(rows) == sum(result.layers.num_rows for result in own.values())
        for row in rows:
            wanted = [
                one["value"]
                for one in own[row["family"]].layers.to_pylist()
                if all(one[key] == row[key] for key in ("measure", "part", "layer"))
            ]
            assert row[f"value_{side}"] == pytest.approx(wanted[0], rel=1e-5, abs=1e-7), row
    assert found.summary["families"] == 3
    assert found.summary["stream_norm_a"] != found.summary["stream_norm_b"]
    titles = found.tables["measures"].to_pylist()
    assert {(one["family"], one["measure"]) for one in titles} >= {("stream", "norm"), ("spectra", "alpha")}


def test_families_that_differentiate_run_within_a_comparison(pair: tuple[ModelHandle, ModelHandle]) -> None:
    found = compare(pair[0], pair[0], [Layers(("importance", "gradients"))], blocks=text(2)).results["layers"]
    assert found.summary["families"] == 2
    rows = found.tables["layers"].to_pylist()
    assert {"taylor", "skip_loss"} <= {row["measure"] for row in rows}
    assert all(
        row["value_a"] == pytest.approx(row["value_b"], nan_ok=True) for row in rows if row["value_a"] is not None
    )


def test_a_sample_of_the_blocks_is_read_and_who_refuses_is_left_out(neox: ModelHandle, gpt2: ModelHandle) -> None:
    blocks = text(8)
    found = compare(gpt2, gpt2, [Layers(("geometry",), blocks=2)], blocks=blocks, batch_blocks=3).results["layers"]
    alone = profile(gpt2, ["geometry"], blocks=blocks.select(torch.tensor([3, 7]))).results["geometry"]
    assert [row["value_a"] for row in found.tables["layers"].to_pylist()] == pytest.approx(
        [row["value"] for row in alone.layers.to_pylist()], rel=1e-5
    )
    short = compare(gpt2, gpt2, [Layers(("depth", "geometry"))], blocks=text(3, 8)).results["layers"]
    assert short.summary["families"] == 1
    assert "blocks of 16 tokens or more" in str(short.summary["depth_refused"])


def test_it_runs_only_where_it_is_named() -> None:
    assert "layers" not in [panel.name for panel in build_panels()]
    assert [panel.name for panel in build_panels(["layers"])] == ["layers"]
    with pytest.raises(ValueError, match="Unknown family 'streem'"):
        Layers(("streem",))
    with pytest.raises(ValueError, match="blocks must be 1 or more, got 0"):
        Layers(blocks=0)
