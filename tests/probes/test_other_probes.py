"""Sparse, MLP and contrast probes: planted truths, scikit-learn as a peer, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression

from probes.ccs import CCS, ccs_loss
from probes.mlp import MLPProbe
from probes.sparse import L1, KSparse, k_sparse_curve, ranking


def planted(n: int = 400, d: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y): column 3 tells y well, 11 a little, the others nothing; units differ by column."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, d))
    x[:, 3] += 3 * y
    x[:, 11] -= 1 * y
    return x * np.geomspace(1e-2, 1e2, d)[::-1], y


@pytest.mark.parametrize("how", ["mean_difference", "f", "mutual_information", "l1"])
def test_every_ranking_finds_the_planted_columns(how: str) -> None:
    x, y = planted()
    assert ranking(x, y, how)[:2].tolist() == [3, 11]
    found = KSparse(2, how=how).fit(x, y)
    assert found.chosen_.tolist() == [3, 11]
    assert np.flatnonzero(found.coef_[0]).tolist() == [3, 11]


def test_rankings_from_their_definitions() -> None:
    x, y = planted(60)
    slow = [abs(x[y == 1, i].mean() - x[y == 0, i].mean()) / x[:, i].std() for i in range(20)]
    assert ranking(x, y).tolist() == np.argsort(-np.array(slow), kind="stable").tolist()
    raw = [abs(x[y == 1, i].mean() - x[y == 0, i].mean()) for i in range(20)]
    assert ranking(x, y, "raw_difference").tolist() == np.argsort(-np.array(raw), kind="stable").tolist()
    assert ranking(x, y, "f").tolist() == np.argsort(-f_classif(x, y)[0], kind="stable").tolist()
    x[:, 5] = 7.0
    assert ranking(x, y)[-1] == 5
    assert ranking(x, y, "f")[-1] == 5


def test_k_sparse_is_a_regression_on_its_columns() -> None:
    x, y = planted()
    found = KSparse(2, balanced=False).fit(x, y)
    z = (x[:, [3, 11]] - x[:, [3, 11]].mean(0)) / x[:, [3, 11]].std(0)
    peer = LogisticRegression(C=1.0).fit(z, y)
    np.testing.assert_allclose(found.predict_proba(x), peer.predict_proba(z), atol=1e-4)


def test_a_curve_over_k_is_that_of_single_fits() -> None:
    x, y = planted()
    for one in k_sparse_curve(x, y, [1, 3, 20]):
        alone = KSparse(one.k).fit(x, y)
        assert one.chosen_.tolist() == alone.chosen_.tolist()
        np.testing.assert_allclose(one.predict_proba(x), alone.predict_proba(x))
    with pytest.raises(ValueError, match=r"k must lie in 1..d_in=20, got 21"):
        k_sparse_curve(x, y, [21])
    with pytest.raises(ValueError, match="Unknown ranking 'mean'; did you mean 'mean_difference'"):
        KSparse(how="mean").fit(x, y)


def test_l1_keeps_few_columns_and_fewer_with_a_stronger_penalty() -> None:
    x, y = planted()
    strong, weak = L1(C=0.02).fit(x, y), L1(C=10.0).fit(x, y)
    assert strong.chosen_.tolist() == [3, 11] or strong.chosen_.tolist() == [3]
    assert len(weak.chosen_) > len(strong.chosen_)
    chosen = L1(folds=3).fit(x, y)
    assert chosen.C_ in chosen.grid
    assert chosen.chosen_[0] == 3
    assert chosen.score(x, y) > 0.9


def test_l1_solves_its_own_conditions() -> None:
    x, y = planted(300, 12)
    found = L1(C=0.05).fit(x, y)
    z = (x - found.mean_) / found.scale_
    w = found.coef_[0] * found.scale_
    slope = 0.05 * z.T @ (found.predict_proba(x)[:, 1] - y)
    active = w != 0
    np.testing.assert_allclose(slope[active], -np.sign(w[active]), atol=0.02)
    assert (np.abs(slope[~active]) < 1.0 + 0.02).all()


def test_sparse_probes_of_three_classes() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 300)
    x = rng.normal(size=(300, 12))
    x[np.arange(300), y] += 5
    assert set(KSparse(3).fit(x, y).chosen_) == {0, 1, 2}
    found = L1(C=0.1).fit(x, y)
    assert (found.link_, found.coef_.shape) == ("sigmoid", (3, 12))
    assert found.score(x, y) > 0.9
    np.testing.assert_allclose(found.predict_proba(x).sum(1), 1)


def test_an_mlp_tells_what_no_line_tells() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(600, 2)) * [1, 100]
    y = x[:, 0] * x[:, 1] > 0
    found = MLPProbe(32, lr=1e-2, max_iter=60).fit(x[:400], y[:400])
    assert found.score(x[400:], y[400:]) > 0.9
    assert LogisticRegression().fit(x[:400], y[:400]).score(x[400:], y[400:]) < 0.65
    three = MLPProbe(8, max_iter=5).fit(x, np.arange(600) % 3)
    assert three.predict_proba(x).shape == (600, 3)
    assert three.n_iter_ == 5


def pairs(n: int = 300, d: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y): truth moves x+ and x- apart along one direction, their last word along another, far more."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    truth, word = np.eye(d)[0], 10 * np.eye(d)[1]
    sign = (2 * y - 1)[:, None]
    x = np.stack([sign * truth + word, -sign * truth - word], 1) * 2 + 0.3 * rng.normal(size=(n, 2, d))
    return x, y


def test_ccs_finds_the_planted_truth_without_labels() -> None:
    x, y = pairs()
    found = CCS(starts=6, steps=300, lr=3e-2).fit(x)
    accuracy = (found.predict(x) == y).mean()
    assert max(accuracy, 1 - accuracy) > 0.97  # the sign is not determined
    assert np.abs(found.coef_).argmax() == 0
    signed = CCS(starts=6, steps=300, lr=3e-2).fit(x, np.where(y == 1, "true", "false"))
    assert (signed.predict(x) == np.where(y == 1, "true", "false")).mean() > 0.97
    assert found.losses_.min() < 0.05


def test_ccs_does_not_see_what_all_of_a_side_share() -> None:
    x, y = pairs(60)
    one = CCS(starts=2, steps=20).fit(x, y)
    shift = np.random.default_rng(1).normal(size=(1, 2, 8))
    other = CCS(starts=2, steps=20).fit(x + shift, y)
    np.testing.assert_allclose(one.predict_proba(x), other.predict_proba(x + shift), atol=1e-8)


def test_the_loss_from_its_definition() -> None:
    rng = np.random.default_rng(3)
    z, w, b = rng.normal(size=(7, 2, 4)), rng.normal(size=(2, 4)), rng.normal(size=2)
    found = ccs_loss(*(torch.from_numpy(one) for one in (z, w, b)))
    for start in range(2):
        total = 0.0
        for plus, minus in z:
            p, q = (1 / (1 + np.exp(-(side @ w[start] + b[start]))) for side in (plus, minus))
            total += (p - (1 - q)) ** 2 + min(p, q) ** 2
        assert float(found[start]) == pytest.approx(total / 7)


def test_ccs_refuses_what_are_no_pairs() -> None:
    x, _ = pairs(20)
    with pytest.raises(ValueError, match=r"contrast pairs \[pair, 2, d_in\], got shape \[20, 8\]"):
        CCS().fit(x[:, 0])
    with pytest.raises(ValueError, match="tells true from false, got 3"):
        CCS(steps=1).fit(x, np.arange(20) % 3)
    with pytest.raises(ValueError, match="not fitted"):
        CCS().predict(x)
    with pytest.raises(ValueError, match="reads rows of d_in=8 numbers, X has 7"):
        CCS(steps=1).fit(x).predict(x[..., :7])
