"""Hyperplane edits: the wanted probability is reached, by the shortest way, and not where it was there before."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog, minimize
from scipy.special import expit, logit, softmax

from probes import L1, LDA, LogisticProbe, MassMean, MLPProbe, RidgeProbe
from probes.hyperplane import Hyperplane, published


def rows(k: int, n: int = 240, d: int = 8, gap: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, k, n)
    return rng.normal(size=(n, d)) + gap * rng.normal(size=(k, d))[y] + 2.0, y


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("target", [0, 1])
def test_two_classes_reach_it_along_the_weights(p: float, target: int) -> None:
    x, y = rows(2)
    probe = LogisticProbe(C=1.0).fit(x, y)
    moved = Hyperplane.of(probe, target, p).move(x)
    before, after = probe.predict_proba(x)[:, target], probe.predict_proba(moved)[:, target]
    short = before < p
    assert 0 < short.sum() < len(x)
    np.testing.assert_allclose(after[short], p, atol=1e-9)
    np.testing.assert_array_equal(moved[~short], x[~short])
    step, w = moved[short] - x[short], probe.coef_[0]
    np.testing.assert_allclose(step, (step @ w)[:, None] * w / (w @ w), atol=1e-9)


def test_one_against_the_rest() -> None:
    x, y = rows(3)
    probe = L1(C=1.0).fit(x, y)
    assert (probe.link_, len(probe.coef_)) == ("sigmoid", 3)
    moved = Hyperplane.of(probe, 2, 0.95).move(x)
    after = expit(moved @ probe.coef_[2] + probe.intercept_[2])
    before = expit(x @ probe.coef_[2] + probe.intercept_[2])
    np.testing.assert_allclose(after[before < 0.95], 0.95, atol=1e-9)


@pytest.mark.parametrize("kind", [LogisticProbe(C=10.0), LDA()], ids=["logistic", "lda"])
@pytest.mark.parametrize("k", [3, 6])
def test_softmax_reaches_it(kind: LogisticProbe, k: int) -> None:
    x, y = rows(k)
    probe = kind.fresh().fit(x, y)
    assert probe.link_ == "softmax"
    for target in range(k):
        for p in (0.3, 0.99):
            moved = Hyperplane.of(probe, target, p).move(x)
            before, after = probe.predict_proba(x)[:, target], probe.predict_proba(moved)[:, target]
            np.testing.assert_allclose(after[before < p], p, atol=1e-6)
            np.testing.assert_array_equal(moved[before >= p], x[before >= p])


def nearest(h: np.ndarray, w: np.ndarray, b: np.ndarray, target: int, p: float) -> float:
    """Return the least distance to where the class has the probability, by a general optimiser."""

    def margin(x: np.ndarray) -> float:
        s = x @ w.T + b
        return float(s[target] - np.log(np.exp(np.delete(s, target)).sum()) - logit(p))

    def slope(x: np.ndarray) -> np.ndarray:
        return w[target] - softmax(np.delete(x @ w.T + b, target)) @ np.delete(w, target, 0)

    found = minimize(
        lambda x: ((x - h) ** 2).sum(),
        h + 0.1,
        jac=lambda x: 2 * (x - h),
        constraints={"type": "ineq", "fun": margin, "jac": slope},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found.success or found.status == 8  # the search along its line can go no further
    assert abs(margin(found.x)) < 1e-6
    return float(np.linalg.norm(found.x - h))


def outgrows(w: np.ndarray, target: int) -> bool:
    """Return whether some direction u has <u, w_t - w_j> >= 1 for every other class, by a linear program."""
    ahead = w[target] - np.delete(w, target, 0)
    return linprog(np.zeros(w.shape[1]), A_ub=-ahead, b_ub=-np.ones(len(ahead)), bounds=(None, None)).success


@pytest.mark.parametrize(("k", "d"), [(3, 8), (5, 3)])
def test_the_softmax_move_is_the_shortest(k: int, d: int) -> None:
    rng = np.random.default_rng(k)
    w, b, h = rng.normal(size=(k, d)), rng.normal(size=k), 2 * rng.normal(size=(8, d))
    able = 0
    for target in range(k):
        plane = Hyperplane(w, b, target, 0.95)
        if not outgrows(w, target):
            with pytest.raises(ValueError, match="mean of theirs"):
                plane.move(h)
            continue
        able, moved = able + 1, plane.move(h)
        for one, other in zip(h, moved, strict=True):
            if not np.array_equal(one, other):
                assert np.linalg.norm(other - one) == pytest.approx(nearest(one, w, b, target, 0.95), rel=1e-5)
    assert able >= 3


def test_two_outputs_of_a_softmax_are_a_sigmoid() -> None:
    rng = np.random.default_rng(1)
    w, b, h = rng.normal(size=(2, 6)), rng.normal(size=2), rng.normal(size=(20, 6))
    plain = Hyperplane(w[1:] - w[:1], b[1:] - b[:1], None, 0.8)
    np.testing.assert_allclose(Hyperplane(w, b, 1, 0.8).move(h), plain.move(h), atol=1e-9)


def test_the_published_step_misses_with_a_softmax() -> None:
    """Three classes and the published step for p = .99: exact against the rest, far off with a softmax."""
    x, y = rows(3, n=400, d=16, gap=1.0)
    probe = LogisticProbe(C=1.0).fit(x, y)
    w, b = probe.coef_, probe.intercept_
    short = probe.predict_proba(x)[:, 0] < 0.99
    moved = published(x, w, b, 0, 0.99)
    np.testing.assert_allclose(expit(moved @ w[0] + b[0])[short], 0.99, atol=1e-9)
    reached = probe.predict_proba(moved)[:, 0][short]
    assert reached.mean() == pytest.approx(0.91, abs=0.02)
    assert reached.min() < 0.2
    exact = probe.predict_proba(Hyperplane.of(probe, 0, 0.99).move(x))[:, 0][short]
    np.testing.assert_allclose(exact, 0.99, atol=1e-6)


def test_a_class_among_the_others_is_refused() -> None:
    w = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="No direction raises this class above all the others"):
        Hyperplane(w, np.zeros(3), 2, 0.9).move(np.zeros((1, 2)))
    # Where its weight is only near the others', the gradient points nowhere useful at first, and a way is found.
    w[2] = [0.0, 0.05]
    plane = Hyperplane(w, np.zeros(3), 2, 0.9)
    np.testing.assert_allclose(plane.probability(plane.move(np.array([[30.0, 1.0]]))), 0.9, atol=1e-6)


def test_what_cannot_be_moved_to() -> None:
    x, y = rows(2)
    for probe, message in (
        (RidgeProbe(), "no log-odds"),
        (MassMean(), "no log-odds"),
        (MLPProbe(max_iter=5), "has no hyperplane"),
    ):
        with pytest.raises(ValueError, match=message):
            Hyperplane.of(probe.fit(x, y), 1, 0.9)
    probe = LogisticProbe(C=1.0).fit(x, np.where(y == 1, "positive", "negative"))
    with pytest.raises(ValueError, match="positive"):
        Hyperplane.of(probe, "positve", 0.9)
    for p in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Hyperplane.of(probe, "positive", p)
    assert Hyperplane.of(probe, "positive", 0.9).score(x[:1])[0] == pytest.approx(
        logit(probe.predict_proba(x[:1])[0, 1])
    )
