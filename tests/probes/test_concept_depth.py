"""Concept Depth: jump and converging points from their definition, intervals, noise, paired differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.capturing import Captured
from probes.concept_depth import (
    auc_drop,
    concept_depth,
    converging,
    converging_literal,
    depth,
    depth_intervals,
    jump,
    noisy,
    variation_rates,
)
from probes.logistic import LogisticProbe
from probes.roc import auroc
from probes.splits import grouped_split
from probes.sweep import Sweep, sweep


@pytest.mark.parametrize(
    ("curve", "j", "c", "literal"),
    [
        # rates 1.2, 1.25, 1.013, 1: first rise at layer 1, flat after layer 2, and flat at the last one
        ([0.5, 0.6, 0.75, 0.76, 0.76], 1 / 5, 2 / 5, 4 / 5),
        # starts high and stays: no jump, nothing to converge from
        ([0.95, 0.95, 0.96, 0.96], None, None, 3 / 4),
        # moves until the end
        ([0.5, 0.6, 0.7, 0.8], 1 / 4, None, None),
        # flat, a late rise of a tenth, then flat: converged where it rose
        ([0.5, 0.5, 0.5, 0.55, 0.55], 3 / 5, 3 / 5, 4 / 5),
        # a rise of less than a tenth is no jump but is no plateau either
        ([0.5, 0.54, 0.54], None, 1 / 3, 2 / 3),
        # falls at the end: flat in the middle only
        ([0.5, 0.7, 0.7, 0.5], 1 / 4, None, 2 / 4),
        ([0.5, 0.5], None, None, 1 / 2),
    ],
)
def test_depths_by_hand(curve: list[float], j: float | None, c: float | None, literal: float | None) -> None:
    found = depth(curve)
    assert (found.jump, found.converging, found.converging_literal) == (j, c, literal)
    assert found.best_layer == curve.index(max(curve))


def slowly(curve: list[float]) -> tuple[float | None, float | None, float | None]:
    """Return (J, C, literal C) by the words of the definitions."""
    d = len(curve)
    rate = {i: curve[i] / curve[i - 1] for i in range(1, d)}
    j = next((i / d for i in range(1, d) if rate[i] >= 1.1), None)
    first = next(i for i in range(d) if all(abs(rate[k] - 1) < 0.03 for k in range(i + 1, d)))
    c = None if first in (0, d - 1) else first / d
    literal = [i / d for i in range(1, d) if abs(rate[i] - 1) < 0.03]
    return j, c, max(literal, default=None)


@given(st.lists(st.floats(0.3, 1.0), min_size=2, max_size=9))
def test_depths_by_definition(curve: list[float]) -> None:
    assert (jump(curve), converging(curve), converging_literal(curve)) == slowly(curve)


@given(st.lists(st.floats(0.3, 1.0), min_size=2, max_size=9), st.floats(0.1, 10))
def test_depths_depend_on_ratios_alone(curve: list[float], factor: float) -> None:
    assert np.allclose(variation_rates(curve), variation_rates([factor * value for value in curve]))


def test_what_has_no_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="2 layers or more"):
        depth([0.5])
    with pytest.raises(ValueError, match="above 0"):
        jump([0.5, 0.0])
    with pytest.raises(ValueError, match="above 0"):
        jump([0.5, float("nan")])


def test_noise_is_a_fair_coin_before_the_text() -> None:
    texts = [f"text {i}" for i in range(400)]
    found = noisy(texts, seed=1)
    assert {one[:4] for one in found} == {"aaa ", "bbb "}
    assert [one[4:] for one in found] == texts
    assert 150 < sum(one.startswith("aaa") for one in found) < 250
    assert noisy(texts, seed=1) == found != noisy(texts, seed=2)


def planted(strengths: list[float], seed: int = 0, n: int = 160) -> tuple[Captured, np.ndarray, np.ndarray]:
    """Return (activations whose layers tell the label ever better, labels, groups of two)."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) // 2
    y = group % 2
    values = {}
    for layer, strength in enumerate(strengths):
        x = rng.normal(size=(n, 1, 4))
        x[:, 0, 0] += strength * y
        values[f"resid_post.{layer}"] = x.astype(np.float32)
    tokens = tuple(rng.integers(1, 9, 3) for _ in range(n))
    return Captured("m", f"{seed:064}", tuple(values), ("last",), values, tokens, 0), y, group


def measured(strengths: list[float], seed: int = 0) -> Sweep:
    acts, y, group = planted(strengths, seed)
    return sweep(
        acts,
        y,
        groups=group,
        split=grouped_split(y, group, test=0.4),
        probe=LogisticProbe(1.0),
        resamples=50,
        controls=False,
    )


def test_a_label_that_appears_at_a_layer_jumps_there() -> None:
    found = measured([0.0, 0.0, 6.0, 6.0, 6.0])
    study = concept_depth({"original": found}, resamples=100)
    (row,) = study.depths.to_pylist()
    assert row["jump"] == row["converging"] == 2 / 5
    assert row["jump_share"] > 0.9
    assert row["best_layer_shift"] == 0
    assert row["auc_drop_mean"] is None
    intervals = depth_intervals(found, resamples=100)
    assert intervals["jump"][0].value == 2 / 5
    assert intervals["jump"][0].low <= 2 / 5 <= intervals["jump"][0].high


def test_a_curve_without_a_jump_has_none_in_the_table() -> None:
    (row,) = concept_depth({"original": measured([8.0, 8.0, 8.0])}, resamples=50).depths.to_pylist()
    assert row["jump"] is None
    assert row["converging"] is None
    assert row["jump_share"] == 0


def test_what_a_copy_loses_is_drawn_in_pairs() -> None:
    original, copy = measured([0.0, 6.0, 1.5]), measured([0.0, 0.0, 6.0], seed=1)
    study = concept_depth({"original": original, "copy": copy}, resamples=100)
    rows = [row for row in study.layers.to_pylist() if row["variant"] == "copy"]
    for layer, row in enumerate(rows):
        spot = original.spots()[layer]
        y = original.labels[original.split.test]
        areas = [auroc(one.scores[spot][:, None], y == 1)[0, 0] for one in (original, copy)]
        assert row["auc_drop"] == pytest.approx(areas[0] - areas[1])
    assert rows[1]["auc_drop_low"] > 0.2
    assert rows[2]["auc_drop_high"] < 0
    assert study.depths.to_pylist()[1]["best_layer_shift"] == 1
    spot = original.spots()[1]
    same = auc_drop(original, original, spot)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_sweeps_of_different_divisions_are_not_subtracted() -> None:
    acts, y, group = planted([0.0, 1.0])
    one, other = (
        sweep(
            acts,
            y,
            groups=group,
            split=grouped_split(y, group, seed=seed),
            probe=LogisticProbe(1.0),
            resamples=5,
            controls=False,
        )
        for seed in (0, 1)
    )
    with pytest.raises(ValueError, match="one split"):
        auc_drop(one, other, one.spots()[0])
