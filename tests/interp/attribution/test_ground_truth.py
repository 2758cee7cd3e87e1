"""Every method on models whose circuit is known: exact on the linear one, and where methods are blind, blind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from interp.attribution import METHODS, Attribution, randomisation_check
from interp.attribution.relevance import relevance
from interp.attribution.result import CELL
from interp.models import ModelHandle, ModelSpec, compiled_model, compiled_models, load_model

TOLERANCE = 1e-9
"""Of effects of size 1, in float64."""
WRITTEN = ("attn_out", "mlp_out", "head_out", "v", "mlp_act")
"""Kinds that hold what tokens are worth and no positions, so that setting them to 0 leaves attention as it is."""
STREAM = ("resid_pre", "resid_mid", "resid_post")
CASES = [
    *((name, {}) for name in METHODS if name not in ("atp_star", "gradient_x_input")),
    ("atp_star", {"grad_drop": False}),
    *(("relp", {"rules": rules}) for rules in ("cp_lrp", "relp")),
]
"""Methods that compare clean and corrupted runs, with their arguments."""


def loaded(name: str) -> ModelHandle:
    return load_model(ModelSpec(name, dtype="float64"), device="cpu")


def both(found: Attribution, truth: pa.Table, kinds: tuple[str, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (scores, exact effects) of the cells of `found`, which must all be in the truth."""
    exact = {tuple(row[name] for name in CELL): row["effect"] for row in truth.to_pylist()}
    rows = [row for row in found.nodes.to_pylist() if kinds is None or row["kind"] in kinds]
    assert rows
    return np.array([row["score"] for row in rows]), np.array([exact[tuple(row[n] for n in CELL)] for row in rows])


def to_nothing(pairs: Any) -> Any:
    """Return pairs whose corrupted prompts are BOS throughout: what a BOS of `compiled/additive` is worth is 0."""
    return replace(pairs, corrupt=torch.zeros_like(pairs.clean))


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_on_the_linear_model_every_method_gives_the_exact_effect(
    name: str, arguments: dict[str, Any], direction: str
) -> None:
    one, handle = compiled_model("compiled/additive"), loaded("compiled/additive")
    pairs = one.pairs(4)
    rest = {} if name == "patching" else {"check": 0}
    found = METHODS[name](
        handle, pairs, (*STREAM, *WRITTEN[:-1]), direction=direction, parts=("pos", "head"), **rest, **arguments
    )
    scores, effects = both(found, one.truth(pairs, direction))
    assert np.abs(effects).max() > 0.5
    assert (effects != 0).sum() > 50
    np.testing.assert_allclose(scores, effects, atol=TOLERANCE)
    found = METHODS[name](handle, pairs, "mlp_act", direction=direction, parts=("neuron",), **rest, **arguments)
    scores, effects = both(found, one.truth(pairs, direction))
    assert np.abs(effects).max() > 0.5
    np.testing.assert_allclose(scores, effects, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["cp_lrp", "relp"])
def test_relevance_on_the_linear_model_is_the_effect_of_leaving_the_cell_out(name: str) -> None:
    """Positions have no relevance while attention is held fixed, so that it holds in the stream too."""
    one, handle = compiled_model("compiled/additive"), loaded("compiled/additive")
    pairs = one.pairs(4)
    found = relevance(handle, pairs, preset=name, sites=(*STREAM, *WRITTEN))
    scores, effects = both(found, one.truth(to_nothing(pairs), "noising"))
    assert np.abs(effects).max() > 0.5
    np.testing.assert_allclose(scores, effects, atol=TOLERANCE)


def test_gradient_times_input_on_the_linear_model_is_the_effect_of_leaving_the_cell_out() -> None:
    """In the stream it is not: a gradient sees that positions move attention."""
    one, handle = compiled_model("compiled/additive"), loaded("compiled/additive")
    pairs = one.pairs(4)
    truth = one.truth(to_nothing(pairs), "noising")
    found = METHODS["gradient_x_input"](
        handle, pairs, ("resid_pre", "attn_out", "mlp_out", "head_out", "v"), parts=("pos", "head"), check=0
    )
    np.testing.assert_allclose(*both(found, truth, WRITTEN), atol=TOLERANCE)
    scores, effects = both(found, truth, ("resid_pre",))
    assert np.abs(scores - effects).max() > 0.01


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", sorted(compiled_models()))
def test_patching_gives_the_truth_of_every_compiled_model(name: str, direction: str) -> None:
    one, handle = compiled_model(name), loaded(name)
    pairs = one.pairs(2)
    truth = one.truth(pairs, direction)
    kinds = (*STREAM, "attn_out", "mlp_out", "head_out", "q", "k", "v")
    for sites, parts in ((kinds, ("pos", "head")), (("head_out", "q", "k", "v"), ("head",))):
        found = METHODS["patching"](handle, pairs, sites, direction=direction, parts=parts)
        scores, effects = both(found, truth)
        np.testing.assert_allclose(scores, effects, atol=TOLERANCE)
    assert np.abs(effects).max() > 0.1  # single heads


def test_grad_drop_is_blind_where_all_runs_through_one_later_layer() -> None:
    """With that layer dropped nothing is left, and a block's own layer does not count."""
    one, handle = compiled_model("compiled/additive"), loaded("compiled/additive")
    pairs = one.pairs(4)
    found = METHODS["atp_star"](handle, pairs, "head_out", parts=("head",), check=0)
    effects = METHODS["patching"](handle, pairs, "head_out", parts=("head",)).map("head_out")
    assert np.abs(effects[0]).max() > 0.5
    np.testing.assert_allclose(found.map("head_out")[0], 0.0, atol=TOLERANCE)


def test_relp_is_blind_to_a_head_that_acts_through_keys() -> None:
    one, handle = compiled_model("compiled/induction"), loaded("compiled/induction")
    pairs = one.pairs(4)
    arguments = {"direction": "noising", "parts": ("head",)}
    effects = METHODS["patching"](handle, pairs, "head_out", **arguments).map("head_out")
    scores = METHODS["relp"](handle, pairs, "head_out", check=0, **arguments).map("head_out")
    assert effects[0, 2] > 10  # logits: the previous-token head
    assert abs(scores[0, 2]) < TOLERANCE
    assert scores[1, 1] == pytest.approx(effects[1, 1], rel=1e-6)


def test_attribution_patching_forgets_a_shuffled_model() -> None:
    """The other compiled models have so few weights that shuffled ones pass nothing on: no correlation at all."""
    one, handle = compiled_model("compiled/distractors"), loaded("compiled/distractors")
    pairs = one.pairs(8)

    def attribute(of: ModelHandle) -> Attribution:
        return METHODS["atp"](of, pairs, "head_out", parts=("pos", "head"), check=0)

    table = randomisation_check(attribute, handle)
    assert table["cells"].to_pylist() == [12 * pairs.n_pos] * 3
    assert np.abs(table["pearson"].to_numpy()).mean() < 0.5
    assert table["spearman"].to_numpy().max() < 0.5
    np.testing.assert_array_equal(attribute(loaded(one.name)).map("head_out"), attribute(handle).map("head_out"))
