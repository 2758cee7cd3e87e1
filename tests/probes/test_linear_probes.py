"""Logistic, ridge, mass-mean and discriminant probes: known optima, scikit-learn as a peer, and what they refuse."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from probes.base import BaseProbe
from probes.folds import folds
from probes.lda import LDA
from probes.logistic import LogisticProbe
from probes.mass_mean import MassMean
from probes.ridge import RidgeProbe
from probes.source import Source

MAKE = {
    "logistic": lambda: LogisticProbe(C=1.0),
    "ridge": lambda: RidgeProbe(alpha=1e-2),
    "mass_mean": MassMean,
    "whitened": lambda: MassMean(whiten=True),
    "lda": lambda: LDA(shrinkage=None),
}


def planted(n: int, d: int = 12, sigma: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (x, y, w): x = y w + sigma noise, on an offset."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=d) * 0.4
    y = rng.permutation(n) % 2
    return y[:, None] * w + sigma * rng.normal(size=(n, d)) + 5.0, y, w


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(params=sorted(MAKE))
def probe(request: pytest.FixtureRequest) -> BaseProbe:
    return MAKE[request.param]()


def test_a_planted_direction_is_read_as_well_as_can_be(probe: BaseProbe) -> None:
    x, y, w = planted(6000)
    other, wanted, _ = planted(6000, seed=0)
    rng = np.random.default_rng(1)
    other = wanted[:, None] * w + rng.normal(size=other.shape) + 5.0
    scores = probe.fit(x, y).decision_function(other)
    best = norm.cdf(np.linalg.norm(w) / np.sqrt(2))  # of the score <w, x>, whose classes are Gaussian
    assert abs(roc_auc_score(wanted, scores) - best) < 0.02
    assert roc_auc_score(wanted, scores) < best + 0.01


def test_shuffled_labels_give_chance(probe: BaseProbe) -> None:
    x, y, _ = planted(3000)
    shuffled = np.random.default_rng(2).permutation(y)
    scores = probe.fit(x[:1500], shuffled[:1500]).decision_function(x[1500:])
    assert abs(roc_auc_score(shuffled[1500:], scores) - 0.5) < 4 * np.sqrt(1 / 12 * 2 / 750)


def test_scores_are_the_weights_in_raw_units(probe: BaseProbe) -> None:
    x, y, _ = planted(200)
    scores = probe.fit(x, y).decision_function(x)
    np.testing.assert_allclose(scores, x @ probe.coef_[0] + probe.intercept_[0], rtol=1e-9)  # type: ignore[attr-defined]
    assert (probe.predict(x) == (scores > 0)).all()


@pytest.mark.parametrize("name", ["logistic", "ridge", "whitened", "lda"])
def test_the_unit_of_a_column_is_no_matter(name: str) -> None:
    x, y, _ = planted(300)
    units = np.geomspace(1e-3, 1e3, x.shape[1])
    one, other = MAKE[name]().fit(x, y), MAKE[name]().fit(x * units, y)
    np.testing.assert_allclose(one.decision_function(x), other.decision_function(x * units), rtol=1e-3, atol=1e-3)


def test_whitened_mass_mean_is_the_direction_of_lda() -> None:
    rng = np.random.default_rng(3)
    x, y, _ = planted(500)
    x = x @ rng.normal(size=(12, 12))
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    found = MassMean(whiten=True).fit(x, y)
    assert cosine(found.coef_[0], peer.coef_[0]) > 1 - 1e-10
    np.testing.assert_allclose(found.decision_function(x), peer.decision_function(x), rtol=1e-6, atol=1e-8)
    assert cosine(MassMean().fit(x, y).coef_[0], peer.coef_[0]) < 0.9
    few = np.r_[np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:40]]  # unequal classes: the direction is still LDA's
    unequal = MassMean(whiten=True).fit(x[few], y[few]).coef_[0]
    assert cosine(unequal, LinearDiscriminantAnalysis(solver="lsqr").fit(x[few], y[few]).coef_[0]) > 1 - 1e-10


def test_mass_mean_from_the_definition() -> None:
    x, y, _ = planted(50)
    found = MassMean().fit(x, y)
    means = [sum(row for row, label in zip(x, y, strict=True) if label == c) / (y == c).sum() for c in (0, 1)]
    np.testing.assert_allclose(found.coef_[0], means[1] - means[0])
    assert abs(found.decision_function(np.mean(means, 0)[None])[0]) < 1e-9


def test_lda_of_three_classes_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    y = np.repeat(["a", "b", "c"], 60)
    x = rng.normal(size=(180, 5)) + np.repeat(rng.normal(size=(3, 5)), 60, 0)
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    found = LDA(shrinkage=None).fit(x, y)
    np.testing.assert_allclose(found.predict_proba(x), peer.predict_proba(x), atol=1e-8)
    assert list(found.classes_) == ["a", "b", "c"]
    assert found.link_ == "softmax"


def test_logistic_is_scikit_learn_on_standardised_rows() -> None:
    x, y, _ = planted(150)
    z = (x - x.mean(0)) / x.std(0)
    peer = LogisticRegression(C=0.3, max_iter=1000).fit(z, y)
    found = LogisticProbe(C=0.3).fit(x, y)
    np.testing.assert_allclose(found.predict_proba(x), peer.predict_proba(z), atol=1e-6)


def test_the_standardiser_sees_only_rows_that_are_fitted_on() -> None:
    x, y, _ = planted(100)
    found = LogisticProbe(C=1.0).fit(x[:60], y[:60])
    np.testing.assert_allclose(found.mean_, x[:60].mean(0))
    np.testing.assert_allclose(found.scale_, x[:60].std(0))
    assert not np.allclose(found.mean_, x.mean(0))


def test_more_noise_chooses_a_stronger_penalty() -> None:
    x, y, _ = planted(120, d=60)
    chosen = LogisticProbe(grid=(1e-3, 1e2), folds=3).fit(x, np.random.default_rng(5).permutation(y))
    assert chosen.C_ == 1e-3
    assert chosen.cv_scores_[0] > chosen.cv_scores_[1]
    clean = RidgeProbe(grid=(1e-5, 1e2), folds=3).fit(x[:, :2] * [1, 0] + y[:, None], y)
    assert clean.alpha_ == 1e-5


def test_folds_keep_groups_whole_and_classes_even() -> None:
    groups = np.repeat(np.arange(30), 4)
    codes = np.repeat(np.arange(30) % 2, 4)
    seen = np.zeros(120, dtype=int)
    for train, test in folds(codes, groups, 5, seed=1):
        assert not set(groups[train]) & set(groups[test])
        assert abs(codes[test].mean() - 0.5) < 0.01
        seen[test] += 1
    assert (seen == 1).all()


def test_ridge_has_no_probabilities() -> None:
    x, y, _ = planted(50)
    with pytest.raises(ValueError, match="RidgeProbe are no log-odds; use decision_function"):
        RidgeProbe(alpha=1.0).fit(x, y).predict_proba(x)


def test_bad_input_is_named(probe: BaseProbe) -> None:
    x, y, _ = planted(30)
    with pytest.raises(ValueError, match="two classes or more, got only 1 in 30 rows"):
        probe.fit(x, np.ones(30, dtype=int))
    with pytest.raises(ValueError, match=r"one label for each of the 30 rows, got shape \[29\]"):
        probe.fit(x, y[:29])
    broken = x.copy()
    broken[[17, 20], 3] = np.nan
    with pytest.raises(ValueError, match=r"Row 17 of X holds NaN or infinity \(2 of 30 rows do\)"):
        probe.fit(broken, y)
    with pytest.raises(ValueError, match="row 0 has 3 numbers, row 2 has 2"):
        probe.fit([[1.0, 2, 3], [1, 2, 3], [1, 2]], [0, 1, 0])
    with pytest.raises(ValueError, match=r"must be rows of activations \[row, d_in\], got shape \[30, 3, 4\]"):
        probe.fit(x.reshape(30, 3, 4), y)
    with pytest.raises(ValueError, match="reads rows of d_in=12 numbers, X has 11"):
        probe.fit(x, y).predict(x[:, :11])
    with pytest.raises(ValueError, match="Row 2 of y has no label"):
        probe.fit(x[:4], [0.0, 1.0, np.nan, 1.0])


def test_two_class_probes_refuse_three() -> None:
    x, _, _ = planted(30)
    with pytest.raises(ValueError, match="MassMean tells two classes apart, got 3"):
        MassMean().fit(x, np.arange(30) % 3)


@pytest.mark.parametrize("make", [LogisticProbe, RidgeProbe])
def test_fewer_groups_of_a_class_than_folds(make: type[LogisticProbe]) -> None:
    x, y, _ = planted(8)
    with pytest.raises(ValueError, match=r"5 folds need 5 groups of each class, class number 0 has 4 \(4 rows\)"):
        make().fit(x, y)
    with pytest.raises(ValueError, match="class number 0 has 2"):
        make(folds=3).fit(np.tile(x, (4, 1)), np.tile(y, 4), groups=np.tile(np.arange(8) // 4, 4))


def test_a_tensor_and_a_list_are_rows_as_well() -> None:
    x, y, _ = planted(40)
    one = MassMean().fit(x, y).coef_
    np.testing.assert_allclose(MassMean().fit(torch.from_numpy(x), torch.from_numpy(y)).coef_, one)
    np.testing.assert_allclose(MassMean().fit(x.tolist(), y.tolist()).coef_, one)
    assert MassMean().fit(torch.from_numpy(x).bfloat16(), y).coef_.shape == (1, 12)


def test_a_constant_column_has_no_weight() -> None:
    x, y, _ = planted(60)
    x[:, 4] = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LogisticProbe(C=1.0).fit(x, y).coef_[0, 4] == 0


def test_scikit_learns_contract() -> None:
    source = Source("resid_post.1", "m", "a" * 64)
    probe = LogisticProbe(C=2.0, seed=3, source=source)
    copy = clone(probe)
    assert copy.get_params() == probe.get_params()
    x, y, _ = planted(40)
    assert probe.fit(x, y) is probe
    assert not hasattr(copy, "coef_")


def test_another_source_is_refused(gpt2, llama) -> None:
    x, y, _ = planted(40)
    source = Source.of(gpt2, "resid_post.1")
    probe = MassMean(source=source).fit(x, y)
    assert probe.check_source(Source.of(gpt2, "resid_post.1")) is probe
    with pytest.raises(ValueError, match=r"fitted at resid_post.1 of .*; these activations are from resid_post.2"):
        probe.check_source(Source.of(gpt2, "resid_post.2"))
    with pytest.raises(ValueError, match="with other weights"):
        probe.check_source(Source.of(llama, "resid_post.1"))
    probe.check_source(Source.of(llama, "resid_post.1"), same_weights=False)
    with pytest.raises(ValueError, match="on positions 'all'; these rows are 'last'"):
        probe.check_source(Source.of(gpt2, "resid_post.1", "last"))
    with pytest.raises(ValueError, match="does not know what it was fitted on"):
        MassMean().check_source(source)
