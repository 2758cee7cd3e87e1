"""Integrated gradients: sums close as steps grow, along both paths, and they are exact where models are linear."""

from __future__ import annotations

import numpy as np
import pytest

from interp.attribution.estimates import integrated_gradients
from interp.attribution.patching import patch_map
from interp.models import ModelHandle
from tests.interp.attribution.estimate_models import double_model, linear_model, random_pairs

PAIRS = random_pairs(n=2)
SITES = ["resid_pre.0", "head_out.1", "attn_out.1", "mlp_out.0"]


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_gap_closes_with_the_square_of_the_steps(family: str, direction: str) -> None:
    handle = double_model(family)
    few, many = (
        integrated_gradients(handle, PAIRS, SITES, direction=direction, steps=steps, batch=64, check=0)
        for steps in (10, 40)
    )
    assert len(many.completeness) == len(SITES)
    gaps = [np.abs(found.completeness["gap"].to_numpy()) for found in (few, many)]
    assert gaps[1].max() < 2e-3 * np.abs(many.completeness["total"].to_numpy()).max()
    assert gaps[1].sum() < gaps[0].sum() / 8


def test_totals_are_the_effect_of_patching_the_whole_site(gpt2: ModelHandle) -> None:
    found = integrated_gradients(gpt2, PAIRS, SITES, parts=("pos", "head"), check=0)
    whole = patch_map(gpt2, PAIRS, SITES, parts=())
    truth = {(row["kind"], row["layer"]): row["score"] for row in whole.nodes.to_pylist()}
    for row in found.completeness.to_pylist():
        assert row["total"] == pytest.approx(truth[row["kind"], row["layer"]], abs=1e-5)
    at_input = next(row for row in found.completeness.to_pylist() if row["kind"] == "resid_pre")
    assert at_input["total"] == pytest.approx(found.effect, abs=1e-5)


def test_the_path_of_the_inputs_is_the_path_of_the_first_site() -> None:
    handle = double_model("gpt2")
    inputs = integrated_gradients(handle, PAIRS, ["resid_pre", "mlp_out"], steps=6, path="inputs", check=0)
    site = integrated_gradients(handle, PAIRS, ["resid_pre.0"], steps=6, check=0)
    np.testing.assert_allclose(inputs.map("resid_pre")[0], site.map("resid_pre")[0], atol=1e-10)
    assert inputs.method == "ig_inputs"
    totals = inputs.completeness
    assert totals["kind"].to_pylist() == ["resid_pre"] * 3
    np.testing.assert_allclose(totals["total"].to_numpy(), inputs.effect)


def test_rows_of_points_are_cut_into_batches(gpt2: ModelHandle) -> None:
    together = integrated_gradients(gpt2, PAIRS, SITES, steps=5, batch=64, check=0)
    apart = integrated_gradients(gpt2, PAIRS, SITES, steps=5, batch=1, check=0)
    np.testing.assert_allclose(together.nodes["score"].to_numpy(), apart.nodes["score"].to_numpy(), atol=1e-5)


def test_one_step_is_exact_on_a_linear_model() -> None:
    handle = linear_model("neox")
    truth = patch_map(handle, PAIRS, ["resid_pre", "attn_out"])
    for path in ("activations", "inputs"):
        found = integrated_gradients(handle, PAIRS, ["resid_pre", "attn_out"], steps=1, path=path, check=0)
        for kind in ("resid_pre", "attn_out"):
            np.testing.assert_allclose(found.map(kind), truth.map(kind), atol=1e-10)


def test_bad_input_is_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        integrated_gradients(gpt2, PAIRS, SITES, steps=0)
    with pytest.raises(ValueError, match="'input'.*inputs"):
        integrated_gradients(gpt2, PAIRS, SITES, path="input")
    with pytest.raises(ValueError, match="got baseline 'zero'"):
        integrated_gradients(gpt2, PAIRS, SITES, baseline="zero")
