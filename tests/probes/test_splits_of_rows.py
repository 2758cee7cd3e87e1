"""Divisions by groups, leaks, intervals over groups, and the controls."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from interp.attribution.randomisation import randomised
from probes.controls import (
    bag_of_tokens,
    control_task,
    majority,
    position_only,
    selectivity,
    shuffled_labels,
)
from probes.intervals import bootstrap, weighted_auroc, weighted_balanced, weighted_mean
from probes.logistic import LogisticProbe
from probes.ridge import RidgeProbe
from probes.splits import LeakWarning, Split, grouped_split, groups_of_texts, leaks, warn_of_leaks

GROUPS = np.repeat(np.arange(50), 4)
LABELS = np.repeat(np.arange(50) % 2, 4)


def test_no_group_is_on_two_sides_and_shares_are_kept() -> None:
    split = grouped_split(LABELS, GROUPS, validation=0.2, test=0.3, seed=1)
    sides = [set(GROUPS[rows]) for rows in split.parts.values()]
    assert sum(map(len, sides)) == 50
    assert sorted(np.concatenate(list(split.parts.values()))) == list(range(200))
    assert [len(rows) for rows in split.parts.values()] == [100, 40, 60]
    assert not leaks(split, GROUPS)


def test_a_division_is_a_function_of_labels_groups_and_seed() -> None:
    one, same, other = (grouped_split(LABELS, GROUPS, seed=seed) for seed in (3, 3, 4))
    assert one.digest == same.digest != other.digest


def test_a_class_in_one_group_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="50 groups for 3 classes are too few, or a class lies in one group"):
        grouped_split(np.where(GROUPS == 7, 2, LABELS), GROUPS)
    with pytest.raises(ValueError, match="both together below 1; got 0.5 and 0.5"):
        grouped_split(LABELS, GROUPS, validation=0.5, test=0.5)


def test_leaks_are_named() -> None:
    rows = np.arange(200)
    split = Split(rows[:102], rows[:0], rows[102:])
    found = leaks(split, np.array([f"city {g}" for g in GROUPS]))
    assert [(leak.group, leak.rows) for leak in found] == [("group 'city 25'", {"train": 2, "test": 2})]
    with pytest.warns(LeakWarning, match=r"'city 25' \(2 in train, 2 in test\)"):
        warn_of_leaks(split, np.array([f"city {g}" for g in GROUPS]))
    texts = ["A cat.", "a  Cat.", "a dog.", "Dogs."]
    assert [leak.group for leak in leaks(Split(rows[[0, 2]], rows[:0], rows[[1, 3]]), texts=texts)] == ["text 'A cat.'"]
    assert groups_of_texts(texts)[0] == groups_of_texts(texts)[1]
    with pytest.raises(ValueError, match="one part of a split only"):
        Split(rows[:3], rows[:0], rows[2:5])


def test_statistics_with_weights_are_those_of_repeated_rows() -> None:
    rng = np.random.default_rng(0)
    scores, y = np.round(rng.normal(size=60), 1), rng.random(60) < 0.4
    right = (scores > 0) == y
    weights = rng.integers(0, 4, 60)
    many = np.repeat(np.arange(60), weights)
    w = weights.astype(float)
    assert abs(weighted_auroc(scores, y)(w) - roc_auc_score(y[many], scores[many])) < 1e-12
    assert abs(weighted_mean(right)(w) - right[many].mean()) < 1e-12
    balanced = balanced_accuracy_score(y[many], scores[many] > 0)
    assert abs(weighted_balanced(right, y.astype(int))(w) - balanced) < 1e-12


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = {"groups": 0, "rows": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = np.repeat(rng.normal(size=40), 5)  # rows of a group are one observation
        groups = np.repeat(np.arange(40), 5)
        held["groups"] += 0.0 in bootstrap(weighted_mean(values), groups, resamples=100, level=0.9)
        held["rows"] += 0.0 in bootstrap(weighted_mean(values), np.arange(200), resamples=100, level=0.9)
    assert held["groups"] >= 47  # 54 expected, three standard deviations of a binomial below it
    assert held["rows"] < 42  # drawing rows is far too sure


def test_an_interval_of_one_group_is_none() -> None:
    found = bootstrap(weighted_mean(np.array([1.0, 0.0])), np.zeros(2, dtype=int))
    assert found.value == 0.5
    assert np.isnan(found.low)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        bootstrap(weighted_mean(np.ones(3)), np.arange(3), level=1.0)


def test_majority_is_of_the_training_rows() -> None:
    y = np.array(["a", "a", "b", "b", "b", "a"])
    assert majority(y, Split(np.arange(3), np.arange(0), np.arange(3, 6))) == pytest.approx(1 / 3)


def test_shuffling_keeps_counts_and_whole_groups() -> None:
    found = shuffled_labels(LABELS, groups=GROUPS, seed=1)
    assert (np.bincount(found) == np.bincount(LABELS)).all()
    assert (found.reshape(50, 4) == found.reshape(50, 4)[:, :1]).all()
    assert (found != LABELS).any()
    rows = shuffled_labels(LABELS, seed=1)
    assert (rows.reshape(50, 4) != rows.reshape(50, 4)[:, :1]).any()


def test_a_control_task_is_a_function_of_the_type() -> None:
    types = np.random.default_rng(0).integers(0, 400, 3000)
    y = np.random.default_rng(1).random(3000) < 0.2
    control = control_task(types, y, seed=2)
    assert all(len(set(control[types == t])) == 1 for t in np.unique(types))
    assert abs(control_task(np.arange(3000), y).mean() - 0.2) < 0.04
    with pytest.raises(ValueError, match="one label for all 1 types"):
        control_task(np.zeros(3000, dtype=int), y)


def test_selectivity_falls_when_rows_are_fewer_than_columns() -> None:
    rng = np.random.default_rng(4)
    found = {}
    for d in (8, 400):
        embedding = rng.normal(size=(120, d)) / np.sqrt(d)
        task = embedding @ rng.normal(size=d) > 0
        types = np.tile(np.arange(120), 3)
        x = embedding[types] + 0.01 * rng.normal(size=(360, d)) / np.sqrt(d)
        split = Split(np.arange(240), np.arange(0), np.arange(240, 360))
        found[d] = selectivity(RidgeProbe(alpha=1e-4), x, task[types], types, split, seed=1)
    assert found[8][0] > 0.2
    assert found[400][1] > 0.95  # any labels can be learned
    assert found[400][0] < found[8][0] - 0.15


def test_bag_of_tokens_counts() -> None:
    tokens = [[1, 1, 2], [5, 1], [9, 9, 9, 9]]
    np.testing.assert_array_equal(bag_of_tokens(tokens, most=2), [[2, 0], [1, 0], [0, 4]])
    np.testing.assert_array_equal(bag_of_tokens(tokens, train=np.array([0, 1])), [[2, 1, 0], [1, 0, 1], [0, 0, 0]])
    with pytest.raises(ValueError, match="no tokens to count"):
        bag_of_tokens([[]])


def test_position_only_tells_any_function_of_the_position() -> None:
    where = np.tile(np.arange(10), 20)
    x, y = position_only(where), np.isin(where, [0, 3, 4, 8])
    assert LogisticProbe(C=100.0).fit(x[:100], y[:100]).score(x[100:], y[100:]) == 1.0
    assert position_only(where, train=np.arange(4)).sum() == 80
    with pytest.raises(ValueError, match="positions must be whole numbers"):
        position_only(where / 2)


def test_a_model_with_shuffled_weights_is_a_baseline(gpt2) -> None:
    other = randomised(gpt2, seed=0)
    assert other.digest() != gpt2.digest()
    assert other.width("resid_post.1") == gpt2.width("resid_post.1")
