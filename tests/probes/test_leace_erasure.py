"""LEACE: what the closed form promises, the plain projection, streams, and a weak concept."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from probes.leace import Leace


def rows(n: int = 400, d: int = 9, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=(k, d))[y] + 4.0
    return x, y


def covariance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    z = (y[:, None] == np.unique(y)).astype(float)
    return (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)


@pytest.mark.parametrize("method", ["leace", "orthogonal"])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_nothing_linear_is_left(method: str, shrinkage: float) -> None:
    x, y = rows()
    eraser = Leace(method, shrinkage=shrinkage).fit(x, y)
    after = eraser.transform(x)
    assert np.abs(covariance(x, y)).max() > 0.1
    assert np.abs(covariance(after, y)).max() < 1e-10
    assert eraser.residual_ < 1e-10
    assert eraser.rank_ == 2
    P = eraser.left_ @ eraser.right_
    np.testing.assert_allclose(P @ P, P, atol=1e-10)
    assert np.linalg.matrix_rank(P) == 2
    np.testing.assert_allclose(after.mean(0), x.mean(0), atol=1e-10)
    np.testing.assert_allclose(eraser.transform(after), after, atol=1e-9)


def test_a_regression_finds_no_weight_afterwards() -> None:
    x, y = rows(k=2)
    after = Leace().fit_transform(x, y)
    assert np.abs(LogisticRegression(C=1e3, max_iter=1000).fit(x, y).coef_).max() > 0.1
    z = (after - after.mean(0)) / after.std(0)
    assert np.abs(LogisticRegression(C=1e3, max_iter=1000, tol=1e-8).fit(z, y).coef_).max() < 1e-4


def test_it_changes_least_and_no_direction_grows() -> None:
    x, y = rows()
    changes = {method: np.square(Leace(method).fit_transform(x, y) - x).sum(1).mean() for method in
               ("leace", "orthogonal")}  # fmt: skip
    assert changes["leace"] < 0.98 * changes["orthogonal"]
    shrunk = np.square(Leace(shrinkage=0.5).fit_transform(x, y) - x).sum(1).mean()
    assert changes["leace"] < shrunk
    after = np.cov(Leace().fit_transform(x, y).T)
    assert np.trace(after) <= np.trace(np.cov(x.T)) + 1e-9


def test_it_solves_the_optimality_condition() -> None:
    """Any other projection with the same kernel differs by M with M Sigma_xz = 0; then <change, M> has no slope."""
    x, y = rows()
    eraser, xz = Leace().fit(x, y), covariance(x, y)
    P = eraser.left_ @ eraser.right_
    rng = np.random.default_rng(1)
    M = rng.normal(size=P.shape)
    M -= M @ xz @ np.linalg.pinv(xz)
    S = np.cov(x.T, bias=True)
    assert abs(np.trace(P @ S @ M.T)) < 1e-8 * np.linalg.norm(P @ S) * np.linalg.norm(M)


def test_a_stream_is_the_whole() -> None:
    x, y = rows()
    whole, stream = Leace().fit(x, y), Leace()
    for start in range(0, 400, 90):
        stream.partial_fit(x[start : start + 90], y[start : start + 90], classes=[0, 1, 2])
    np.testing.assert_allclose(stream.solve().transform(x), whole.transform(x), atol=1e-9)


def test_a_rare_weak_concept_is_erased() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20_000, 4))
    y = np.arange(20_000) < 20
    rng.shuffle(y)
    x[y, 0] += 0.2
    z = y - y.mean()
    whitened = np.linalg.inv(np.linalg.cholesky(np.cov(x.T))) @ ((x - x.mean(0)).T @ z / len(x))
    assert np.linalg.norm(whitened) < 0.01  # what the published default leaves alone
    after = Leace().fit_transform(x, y)
    assert abs(x[y].mean(0) - x[~y].mean(0))[0] > 0.05
    np.testing.assert_allclose(after[y].mean(0), after[~y].mean(0), atol=1e-9)


def test_without_affine_the_mean_moves() -> None:
    x, y = rows()
    after = Leace(affine=False).fit_transform(x, y)
    assert np.abs(after.mean(0) - x.mean(0)).max() > 0.1
    assert np.abs(covariance(after, y)).max() < 1e-10


def test_numbers_and_copies_of_columns() -> None:
    x, y = rows(k=2)
    doubled = np.hstack([x, x[:, :3]])  # a singular covariance
    after = Leace().fit_transform(doubled, y)
    assert np.abs(covariance(after, y)).max() < 1e-10
    number = (x @ np.arange(9.0))[:, None]
    after = Leace().fit_transform(x, number)
    assert np.abs(np.cov(after.T, number.T)[:-1, -1]).max() < 1e-9


def test_bad_input_is_named() -> None:
    x, y = rows()
    with pytest.raises(ValueError, match="two classes or more, got only 0"):
        Leace().fit(x, y * 0)
    with pytest.raises(ValueError, match="needs classes="):
        Leace().partial_fit(x, y)
    with pytest.raises(ValueError, match=r"label 2 is none of the classes \[0, 1\]"):
        Leace().partial_fit(x, y, classes=[0, 1])
    with pytest.raises(ValueError, match="Unknown method 'leak'"):
        Leace("leak").fit(x, y)
    with pytest.raises(ValueError, match="not fitted"):
        Leace().transform(x)
    with pytest.raises(ValueError, match="shrinkage must lie in 0..1"):
        Leace(shrinkage=2.0).fit(x, y)
    with pytest.raises(ValueError, match="reads rows of d_in=9"):
        Leace().fit(x, y).transform(x[:, :4])
    with pytest.raises(ValueError, match="leaves a correlation"):
        Leace(tol=0.99).fit(x, y)
