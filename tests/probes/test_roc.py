"""Areas under the ROC curve: scikit-learn and the definition as peers, ties, sparse codes, the null of a maximum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import roc_auc_score

from probes.roc import AurocStream, auroc, max_null


def codes(n: int = 300, columns: int = 7, seed: int = 0) -> np.ndarray:
    """Return signed codes that are 0 in two thirds of the places, with many equal values."""
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(size=(n, columns)), 1) * (rng.random((n, columns)) < 0.33)


def marks(n: int = 300, labels: int = 4, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((n, labels)) < rng.uniform(0.1, 0.9, labels)


def test_it_is_that_of_scikit_learn_with_ties() -> None:
    x, y = codes(), marks()
    wanted = [[roc_auc_score(y[:, j], x[:, i]) for j in range(4)] for i in range(7)]
    np.testing.assert_allclose(auroc(x, y), wanted, atol=1e-12)
    np.testing.assert_allclose(auroc(sparse.csr_array(x), y), wanted, atol=1e-12)


def test_it_is_the_chance_that_a_positive_row_comes_first() -> None:
    x, y = codes(40, 1)[:, 0], marks(40, 1)[:, 0]
    pairs = [(a > b) + (a == b) / 2 for a in x[y] for b in x[~y]]
    assert abs(auroc(x, y)[0, 0] - np.mean(pairs)) < 1e-12


def test_ordered_rows_win_nothing_by_ties() -> None:
    y = np.repeat([False, True], 50)
    assert auroc(np.zeros((100, 1)), y)[0, 0] == 0.5
    assert auroc(sparse.csc_array((100, 1)), y)[0, 0] == 0.5


def test_explicit_zeros_are_zeros() -> None:
    x, y = codes(), marks()
    full = sparse.csc_array((x.ravel(), (np.repeat(np.arange(300), 7), np.tile(np.arange(7), 300))), (300, 7))
    assert full.nnz == x.size
    np.testing.assert_allclose(auroc(full, y), auroc(x, y), atol=1e-12)


def test_duplicates_are_added_up_and_the_caller_keeps_them() -> None:
    parts = (np.array([1.0, 2.0, 1.5]), (np.array([0, 0, 2]), np.array([0, 0, 0])))
    twice = sparse.coo_array(parts, (4, 1)).tocsc()
    given = sparse.csc_array((np.array([1.0, 2.0, 1.5]), np.array([0, 0, 2]), np.array([0, 3])), (4, 1))
    y = np.array([True, False, False, True])
    assert auroc(given, y)[0, 0] == auroc(twice, y)[0, 0] == 0.625
    assert given.data.tolist() == [1.0, 2.0, 1.5]


def test_a_monotone_change_of_the_scores_is_no_matter_and_a_sign_mirrors() -> None:
    x, y = codes(), marks()
    np.testing.assert_allclose(auroc(np.exp(3 * x), y), auroc(x, y), atol=1e-12)
    np.testing.assert_allclose(auroc(-x, y), 1 - auroc(x, y), atol=1e-12)


def test_a_label_of_one_class_has_no_area() -> None:
    found = auroc(codes(), np.stack([np.ones(300, dtype=bool), marks()[:, 0]], 1))
    assert np.isnan(found[:, 0]).all()
    assert np.isfinite(found[:, 1]).all()


def test_blocks_of_columns_are_seamless(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = codes(), marks()
    wanted, null = auroc(x, y), max_null(x, y, draws=3)
    monkeypatch.setattr("probes.roc.BLOCK_FLOATS", 600)
    np.testing.assert_array_equal(auroc(x, y), wanted)
    np.testing.assert_array_equal(max_null(x, y, draws=3), null)


@dataclass
class Fixed:
    """A code with k slots a row."""

    indices: torch.Tensor
    values: torch.Tensor
    pointers: torch.Tensor | None = None


def test_a_stream_of_codes_is_the_whole() -> None:
    rng = np.random.default_rng(2)
    y = marks(60, 3)
    stream, dense = AurocStream(9, 3), np.zeros((60, 9))
    for start in (0, 20):
        indices = np.stack([rng.permutation(9)[:3] for _ in range(20)])
        values = np.maximum(rng.normal(size=(20, 3)), 0)
        dense[start + np.arange(20)[:, None], indices] = values.astype(np.float32)
        stream.add(Fixed(torch.from_numpy(indices), torch.from_numpy(values)), y[start : start + 20])
    counts = rng.integers(0, 4, 20)
    pointers = np.concatenate([[0], np.cumsum(counts)])
    indices = np.concatenate([rng.permutation(9)[:count] for count in counts])
    values = rng.normal(size=len(indices))
    dense[40 + np.repeat(np.arange(20), counts), indices] = values.astype(np.float32)
    stream.add(Fixed(torch.from_numpy(indices), torch.from_numpy(values), torch.from_numpy(pointers)), y[40:])
    np.testing.assert_allclose(stream.finish(), auroc(dense, y), atol=1e-12)


def test_the_largest_of_many_random_columns_is_what_the_null_says() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(200, 400)), rng.random((200, 1)) < 0.3
    best = auroc(x, y).max()
    null = max_null(x, y, draws=20)
    assert best > 0.6  # far above chance, and it means nothing
    assert null.min() - 0.02 < best < null.max() + 0.02
    x[:, 7] += 2 * y[:, 0]
    assert auroc(x, y).max() > max_null(x, y, draws=20).max() + 0.05


def test_the_null_by_groups_keeps_what_position_explains() -> None:
    games, moves = 30, 12
    place = np.tile(np.arange(moves), games)
    y = place > 5
    x = place[:, None].astype(float)
    groups = np.repeat(np.arange(games), moves)
    assert max_null(x, y, draws=3, groups=groups).min() == 1.0  # all of the area is the position
    assert max_null(x, y, draws=3).max() < 0.7
    with pytest.raises(ValueError, match="equally long, got 11 to 12 rows"):
        max_null(x[1:], y[1:], groups=groups[1:])


def test_bad_input_is_named() -> None:
    x, y = codes(), marks()
    with pytest.raises(ValueError, match="300 rows of scores and 299 of labels"):
        auroc(x, y[1:])
    with pytest.raises(ValueError, match="labels must be truth values"):
        auroc(x, y.astype(int))
    x[5, 2] = np.nan
    for scores in (x, sparse.csr_array(x)):
        with pytest.raises(ValueError, match="Row 5 of scores holds NaN"):
            auroc(scores, y)
    with pytest.raises(ValueError, match=r"labels must be \[2, 4\] for this code, got \[3, 4\]"):
        AurocStream(9, 4).add(Fixed(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1)), y[:3])
    with pytest.raises(ValueError, match="No rows were added"):
        AurocStream(9, 4).finish()
