"""Coverage by thresholds and AUROC within strata: planted columns, slow references, and what chance gives."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import f1_score as peer_f1
from sklearn.metrics import roc_auc_score

from probes.coverage import THRESHOLDS, always_on, coverage, f1_score
from probes.within import auroc_within, stratum_only


def planted(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns 0 and 2 are labels 0 and 1 with noise below half of their peak; the rest is noise."""
    rng = np.random.default_rng(seed)
    labels = rng.random((rows, 3)) < [0.3, 0.05, 0.5]
    columns = 0.4 * rng.random((rows, 6))
    columns[:, 0] += labels[:, 0]
    columns[:, 2] += labels[:, 1]
    return columns, labels


def test_planted_columns_are_found_and_score_one():
    found = coverage(*planted(600, 0), *planted(400, 1))
    assert found.column[:2].tolist() == [0, 2]
    assert found.f1[:2] == pytest.approx([1.0, 1.0])
    assert found.precise[:2].min() >= 1
    assert found.precise[2] == 0  # nothing is precise for the label that no column knows


def test_it_is_what_loops_over_the_definition_give():
    choose, choose_labels = planted(200, 2)
    test, test_labels = planted(150, 3)
    found = coverage(choose, choose_labels, test, test_labels)
    peak = choose.max(0)
    claims = np.zeros(test_labels.shape, dtype=bool)
    for label in range(3):
        best = max(
            ((peer_f1(choose_labels[:, label], choose[:, c] > t * peak[c], zero_division=cast("Any", 0)), -t, -c))
            for c in range(6)
            for t in THRESHOLDS
        )
        column, threshold = -best[2], -best[1]
        assert (found.column[label], found.threshold[label]) == (column, threshold)
        wanted = peer_f1(test_labels[:, label], test[:, column] > threshold * peak[column])
        assert found.f1[label] == pytest.approx(wanted)
        for c in range(6):
            for t in THRESHOLDS:
                on = choose[:, c] > t * peak[c]
                if on.sum() >= 10 and choose_labels[on, label].mean() >= 0.95:
                    claims[:, label] |= test[:, c] > t * peak[c]
    some = test_labels.any(1)
    wanted = [peer_f1(a, b, zero_division=cast("Any", 0)) for a, b in zip(test_labels[some], claims[some], strict=True)]
    assert found.reconstruction[some] == pytest.approx(wanted)
    assert np.isnan(found.reconstruction[~some]).all()


def test_units_of_a_column_change_nothing():
    choose, test = planted(300, 4), planted(200, 5)
    unit = np.array([1e-3, 5.0, 70.0, 1.0, 2.0, 0.1])
    one, other = coverage(*choose, *test), coverage(choose[0] * unit, choose[1], test[0] * unit, test[1])
    assert one.f1 == pytest.approx(other.f1)


def test_always_on_is_two_p_over_one_plus_p_and_a_label_without_rows_has_none():
    labels = np.zeros((10, 2), dtype=bool)
    labels[:4, 0] = True
    assert always_on(labels)[0] == pytest.approx(2 * 0.4 / 1.4)
    assert np.isnan(always_on(labels)[1])
    assert np.isnan(f1_score(labels, labels)[9])


def test_what_does_not_fit_is_refused():
    columns, labels = planted(30, 0)
    with pytest.raises(ValueError, match="same rows"):
        coverage(columns, labels[:-1], columns, labels)
    with pytest.raises(ValueError, match="same columns and labels"):
        coverage(columns, labels, columns[:, :3], labels)
    columns = columns.copy()
    columns[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        coverage(columns, labels, columns, labels)


def test_within_strata_is_the_weighted_mean_of_their_areas():
    rng = np.random.default_rng(0)
    strata = rng.integers(0, 5, 300)
    labels = rng.random((300, 4)) < 0.3
    labels[strata == 2, 1] = True  # one class only in this stratum
    scores = rng.random((300, 3)) * (rng.random((300, 3)) < 0.4)
    found = auroc_within(scores, labels, strata)
    for column in range(3):
        for label in range(4):
            total = pairs = 0.0
            for one in range(5):
                here, marks = scores[strata == one, column], labels[strata == one, label]
                weight = marks.sum() * (~marks).sum()
                if weight:
                    total, pairs = total + weight * roc_auc_score(marks, here), pairs + weight
            assert found[column, label] == pytest.approx(total / pairs)
    assert auroc_within(sparse.csc_array(scores), labels, strata) == pytest.approx(found)


def test_a_column_that_counts_moves_is_chance_within_a_move():
    rng = np.random.default_rng(1)
    move = rng.integers(1, 30, 2000)
    labels = (rng.random(2000) < move / 30)[:, None]
    counter = (2.0 * move)[:, None]
    assert stratum_only(move, labels)[0] > 0.75
    assert stratum_only(-move, labels) == pytest.approx(stratum_only(move, labels))
    assert auroc_within(counter, labels, move)[0, 0] == pytest.approx(0.5)
    knows = counter + labels
    assert auroc_within(knows, labels, move)[0, 0] == pytest.approx(1.0)


def test_no_stratum_with_both_classes_gives_no_number():
    labels = np.array([[True], [True], [False]])
    assert np.isnan(auroc_within(np.ones((3, 2)), labels, [0, 0, 1])).all()
