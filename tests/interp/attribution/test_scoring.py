"""Scores of attributions against references written from the definitions, and on models whose truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from interp.attribution import Attribution, against_measured, against_truth, completeness_gap, patch_map
from interp.attribution.scoring import auroc, correlation, rank_accuracy, relevance_mass, sign_agreement
from interp.models import ModelSpec, compiled_model, compiled_models, load_model


def by_hand(scores: list[float], measured: list[float | None] | None = None, kind: str = "resid_pre") -> Attribution:
    """Return an attribution of one layer with these scores by position."""
    n = len(scores)
    nothing = pa.nulls(n, pa.int32())
    nodes = pa.table(
        {
            "kind": [kind] * n,
            "layer": pa.array([0] * n, pa.int32()),
            "pos": pa.array(range(n), pa.int32()),
            "head": nothing,
            "neuron": nothing,
            "latent": nothing,
            "score": pa.array(scores, pa.float64()),
            "measured": pa.array(measured or [None] * n, pa.float64()),
        }
    )
    gaps = pa.table({"kind": [kind, kind], "layer": [0, 1], "total": [-4.0, 2.0], "gap": [0.5, -1.0]})
    return Attribution("by hand", "logit_diff", "corrupt", "denoising", nodes, gaps)


def truth_of(circuit: list[bool], effects: list[float | None]) -> pa.Table:
    found = by_hand([0.0] * len(circuit)).nodes.select(["kind", "layer", "pos", "head", "neuron", "latent"])
    found = found.append_column("in_circuit", pa.array(circuit))
    return found.append_column("effect", pa.array(effects, pa.float64()))


def slow_auroc(scores: np.ndarray, circuit: np.ndarray) -> float:
    """Return how often a cell of the circuit beats one outside, a draw counting half."""
    wins = [
        1.0 if abs(a) > abs(b) else 0.5 if abs(a) == abs(b) else 0.0 for a in scores[circuit] for b in scores[~circuit]
    ]
    return sum(wins) / len(wins)


def slow_rank_accuracy(scores: np.ndarray, circuit: np.ndarray) -> float:
    """Return the mean share over every order of the cells that does not contradict |scores|."""
    n = int(circuit.sum())
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(abs(scores[a]) >= abs(scores[b]) for a, b in itertools.pairwise(order))
    ]
    return float(np.mean([circuit[list(order[:n])].mean() for order in orders]))


@pytest.mark.parametrize("seed", range(6))
def test_measures_equal_their_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, 6).astype(float)  # with ties
    circuit = np.arange(6) < 1 + seed % 4
    rng.shuffle(circuit)
    assert rank_accuracy(scores, circuit) == pytest.approx(slow_rank_accuracy(scores, circuit))
    assert auroc(scores, circuit) == pytest.approx(slow_auroc(scores, circuit))
    if np.abs(scores).sum() > 0:
        inside = sum(abs(s) for s, member in zip(scores, circuit, strict=True) if member)
        assert relevance_mass(scores, circuit) == pytest.approx(inside / sum(abs(s) for s in scores))
    effects = rng.normal(size=6) * (rng.random(6) < 0.7)
    signs = [np.sign(s) == np.sign(e) for s, e in zip(scores, effects, strict=True) if e != 0]
    assert sign_agreement(scores, effects) == pytest.approx(np.mean(signs))


def test_measures_do_not_depend_on_the_unit() -> None:
    rng = np.random.default_rng(0)
    scores, effects, circuit = rng.normal(size=20), rng.normal(size=20), rng.random(20) < 0.3
    for measure in (rank_accuracy, auroc, relevance_mass):
        assert measure(1e-5 * scores, circuit) == pytest.approx(measure(scores, circuit))
        assert measure(-scores, circuit) == pytest.approx(measure(scores, circuit))
    assert sign_agreement(-scores, effects) == pytest.approx(1 - (sign_agreement(scores, effects) or 0))
    assert correlation(7 * scores, effects, ranks=False) == pytest.approx(np.corrcoef(scores, effects)[0, 1])


def test_what_cannot_be_said_is_null() -> None:
    nothing, some = np.zeros(4), np.array([True, False, False, False])
    assert relevance_mass(nothing, some) is None
    assert rank_accuracy(nothing, some) == pytest.approx(0.25)
    assert auroc(nothing, some) == pytest.approx(0.5)
    assert auroc(np.arange(4.0), np.ones(4, bool)) is None
    assert rank_accuracy(np.arange(4.0), np.zeros(4, bool)) is None
    assert sign_agreement(np.arange(4.0), nothing) is None
    assert correlation(np.arange(4.0), np.full(4, 2.0), ranks=True) is None
    assert correlation(np.arange(2.0), np.arange(2.0), ranks=False) is None


def test_rounding_has_no_rank() -> None:
    """Zeros that came out as 1e-16 must not be ranked among each other."""
    effects = np.array([3.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    noise = np.array([0.0, 0.0, 1e-16, -3e-16, 2e-16, 5e-17])
    assert correlation(effects + noise, effects, ranks=True) == pytest.approx(1.0)
    assert sign_agreement(noise + effects, effects) == 1.0


def test_a_truth_is_joined_by_cell() -> None:
    found = by_hand([4.0, -1.0, 0.0, 0.5])
    row = against_truth(found, truth_of([True, False, True, False], [4.0, 1.0, 0.0, 0.5])).to_pylist()[0]
    assert (row["kind"], row["cells"], row["circuit"]) == ("resid_pre", 4, 2)
    assert row["relevance_mass"] == pytest.approx(4.0 / 5.5)
    assert row["rank_accuracy"] == pytest.approx(0.5)
    assert row["sign_agreement"] == pytest.approx(2 / 3)
    assert row["error"] == pytest.approx((2 / 4) / (5.5 / 4))
    shuffled = truth_of([True, False, True, False], [4.0, 1.0, 0.0, 0.5]).take([3, 1, 0, 2])
    assert against_truth(found, shuffled).to_pylist()[0] == row
    unknown = against_truth(found, truth_of([True, False, True, False], [None] * 4)).to_pylist()[0]
    assert unknown["pearson"] is None
    assert unknown["rank_accuracy"] == pytest.approx(0.5)


def test_measured_columns_and_maps_are_the_same_comparison() -> None:
    found = by_hand([4.0, -1.0, 0.0, 0.5], [3.0, -2.0, None, 0.4])
    one = against_measured(found).to_pylist()[0]
    assert one["cells"] == 3
    assert one["pearson"] == pytest.approx(np.corrcoef([4.0, -1.0, 0.5], [3.0, -2.0, 0.4])[0, 1])
    other = against_measured(by_hand([4.0, -1.0, 0.5]), by_hand([3.0, -2.0, 0.4])).to_pylist()[0]
    assert {**one, "cells": 0} == pytest.approx({**other, "cells": 0})


def test_the_gap_is_relative_to_what_was_to_be_explained() -> None:
    assert completeness_gap(by_hand([1.0, 2.0])) == {"resid_pre": pytest.approx(0.25)}


@pytest.mark.parametrize("name", sorted(compiled_models()))
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_patching_has_a_perfect_score_on_every_compiled_model(name: str, direction: str) -> None:
    handle, one = load_model(ModelSpec(name, dtype="float64"), device="cpu"), compiled_model(name)
    pairs = one.pairs(2)
    truth = one.truth(pairs, direction)
    last = handle.n_layers - 1
    for sites, parts in ((["resid_pre.0", f"resid_mid.{last}"], ("pos",)), (["head_out.0", f"v.{last}"], ("head",))):
        found = patch_map(handle, pairs, sites, direction=direction, parts=parts)
        for row in against_truth(found, truth).to_pylist():
            assert row["error"] is None or row["error"] < 1e-9
            assert row["sign_agreement"] in (None, 1.0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="says nothing of the cell kind resid_pre, layer 0, pos 3"):
        against_truth(by_hand([1.0] * 4), truth_of([True] * 3, [0.0] * 3))
    with pytest.raises(ValueError, match="1 of 2 scores of by hand are not finite"):
        against_truth(by_hand([1.0, float("nan")]), truth_of([True] * 2, [0.0] * 2))
    with pytest.raises(ValueError, match="No cell of by hand has a measured effect"):
        against_measured(by_hand([1.0, 2.0]))
    with pytest.raises(ValueError, match="No cell of by hand has a measured effect"):
        against_measured(by_hand([1.0, 2.0]), by_hand([1.0, 2.0], kind="mlp_out"))
