"""CKA, Procrustes, pair geometry and neighbours: definitions, peers, invariances, and independent noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from interp.layers.moments import moments_of
from interp.layers.similarity import Hsic, PairGeometry, cka_of, linear_cka, mutual_knn, procrustes_of


def noise(rows: int, d: int, seed: int) -> Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_hsic(x: Tensor, y: Tensor) -> float:
    """Song et al. 2012, eq. 5, entry by entry."""
    n = len(x)
    k = [[0.0 if i == j else float(x[i] @ x[j]) for j in range(n)] for i in range(n)]
    l = [[0.0 if i == j else float(y[i] @ y[j]) for j in range(n)] for i in range(n)]
    trace = sum(k[i][j] * l[j][i] for i in range(n) for j in range(n))
    all_k, all_l = (sum(map(sum, m)) for m in (k, l))
    through = sum(k[i][j] * l[j][m] for i in range(n) for j in range(n) for m in range(n))
    return (trace + all_k * all_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * through) / (n * (n - 3))


def test_equals_the_definition_with_rows_in_parts() -> None:
    x = noise(9, 3, 0) + 50.0
    y = torch.cat([x[:, :2] ** 2 / 50, noise(9, 2, 1)], dim=1)
    xy, xx, yy = Hsic(), Hsic(), Hsic()
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        xy.add(x[part], y[part])
        xx.add(x[part], x[part])
        yy.add(y[part], y[part])
    for sums, pair in ((xy, (x, y)), (xx, (x, x)), (yy, (y, y))):
        assert sums.value == pytest.approx(slow_hsic(*pair), rel=1e-6)
    expected = slow_hsic(x, y) / math.sqrt(slow_hsic(x, x) * slow_hsic(y, y))
    assert cka_of(xy, xx, yy) == pytest.approx(expected, rel=1e-6)
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-6)


def test_is_exactly_one_with_itself() -> None:
    for seed in range(5):
        x = noise(50, 7, seed).float()
        assert linear_cka(x, x.clone()) == 1.0


def test_independent_noise_has_none_where_the_plain_form_is_large() -> None:
    x, y = noise(64, 128, 0), noise(64, 128, 1)
    values = [linear_cka(noise(64, 128, 2 * i), noise(64, 128, 2 * i + 1)) for i in range(20)]
    assert abs(sum(values) / len(values)) < 0.02
    x, y = x - x.mean(0), y - y.mean(0)
    plain = (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    assert plain > 0.5


def test_rotation_scale_and_shift_change_nothing_and_another_map_does() -> None:
    x = noise(40, 6, 0)
    turn = torch.linalg.qr(noise(6, 6, 1)).Q
    assert linear_cka(x, 3.0 * x @ turn + 7.0) == pytest.approx(1.0, abs=1e-9)
    assert linear_cka(x, x @ noise(6, 6, 2)) < 0.97
    y = x + noise(40, 6, 3)
    assert linear_cka(x @ turn, 0.1 * y - 5.0) == pytest.approx(linear_cka(x, y), abs=1e-9)


def test_widths_may_differ_and_constants_have_no_cka() -> None:
    x = noise(30, 4, 0)
    assert 0 < linear_cka(x, x[:, :3]) < 1
    assert math.isnan(linear_cka(x, torch.ones(30, 2)))
    assert math.isnan(Hsic().value)


def test_too_few_or_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="the same rows, at least 4 of them, got 3 and 3"):
        linear_cka(noise(3, 2, 0), noise(3, 2, 1))
    with pytest.raises(ValueError, match="got 5 and 6"):
        linear_cka(noise(5, 2, 0), noise(6, 2, 1))


@pytest.mark.parametrize(("rows", "plain"), [(32, 0.875), (128, 0.657), (512, 0.332), (2048, 0.112)])
def test_the_plain_form_of_independent_gaussians_and_the_unbiased_one(rows: int, plain: float) -> None:
    x, y = noise(rows, 256, 0), noise(rows, 256, 1)
    xy, xx, yy = (moments.covariance for moments in moments_of(x, y))
    # `plain` is of one draw; over 20 draws of 32 rows it is 0.886 with a standard deviation of 0.006.
    assert float(xy.square().sum() / (xx.norm() * yy.norm())) == pytest.approx(plain, abs=0.02)
    assert abs(linear_cka(x, y)) < 0.05


def test_cka_of_single_numbers_is_the_squared_correlation() -> None:
    x = noise(4000, 1, 0)
    y = 0.6 * x + 0.8 * noise(4000, 1, 1)
    expected = float(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) ** 2
    assert linear_cka(x, y) == pytest.approx(expected, abs=2e-3)  # unbiased: equal up to 1 / n


def pair_geometry(x: Tensor, y: Tensor, parts: int = 1) -> float:
    sums = PairGeometry()
    for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
        sums.update(a, b)
    return sums.finish()


def test_procrustes_is_that_of_scipy() -> None:
    x = noise(40, 5, 0) + 9
    y = x @ noise(5, 5, 1) + noise(40, 5, 2)
    assert procrustes_of(*moments_of(x, y)) == pytest.approx(procrustes(x.numpy(), y.numpy())[2], rel=1e-9)
    narrow = torch.cat([y[:, :3], torch.zeros(40, 2)], dim=1)
    assert procrustes_of(*moments_of(x, y[:, :3])) == pytest.approx(procrustes(x.numpy(), narrow.numpy())[2], rel=1e-9)
    assert math.isnan(procrustes_of(*moments_of(x, torch.ones(40, 2))))


def test_pair_geometry_is_the_correlation_of_all_cosines() -> None:
    x = noise(12, 4, 0)
    y = torch.cat([x[:, :2], noise(12, 3, 1)], dim=1) + 1.0

    def cosines(rows: np.ndarray) -> list[float]:
        pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
        return [float(rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j])) for i, j in pairs]

    expected = np.corrcoef(cosines(x.numpy()), cosines(y.numpy()))[0, 1]
    assert pair_geometry(x, y, parts=3) == pytest.approx(expected, rel=1e-9)
    scaled = x * torch.rand(12, 1, generator=torch.Generator().manual_seed(2)).double().add(0.1)
    assert pair_geometry(x, scaled) == pytest.approx(1)  # each token's norm is not part of it
    zeroed = torch.cat([x, torch.zeros(1, 4)]), torch.cat([y, torch.ones(1, 5)])
    assert pair_geometry(*zeroed) == pytest.approx(expected, rel=1e-9)
    assert math.isnan(pair_geometry(torch.ones(9, 3), noise(9, 3, 0)))
    assert math.isnan(pair_geometry(x[:2], y[:2]))


@pytest.mark.parametrize("d", [6, 300])
def test_rotation_and_scale_change_none_of_them_and_independence_is_seen(d: int) -> None:
    x, y = noise(80, d, 0), noise(80, d, 1)
    turned = 3.0 * x @ torch.linalg.qr(noise(d, d, 2)).Q
    assert procrustes_of(*moments_of(x, turned)) == pytest.approx(0, abs=1e-9)
    assert pair_geometry(x, turned) == pytest.approx(1, abs=1e-9)
    assert mutual_knn(x, turned) == 1
    assert abs(pair_geometry(x, y)) < 0.05
    assert mutual_knn(x, y) == pytest.approx(10 / 79, abs=0.06)
    mixed = x + y
    assert 0.1 < pair_geometry(x, mixed) < 0.9
    assert 10 / 79 + 0.06 < mutual_knn(x, mixed) < 0.9


def test_procrustes_of_few_rows_cannot_be_far_off() -> None:
    # With more dimensions than rows a rotation fits a good part of anything: the trap of this figure.
    far, near = (procrustes_of(*moments_of(noise(80, d, 0), noise(80, d, 1))) for d in (6, 300))
    assert near < 0.5 < far


def test_neighbours_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.layers.similarity.PAIR_FLOATS", 100)  # several portions
    x = noise(30, 4, 0)
    y = x + noise(30, 4, 1)

    def near(rows: Tensor) -> list[set[int]]:
        centred = (rows - rows.mean(0)).numpy()
        found = NearestNeighbors(n_neighbors=6, metric="cosine").fit(centred).kneighbors(return_distance=False)
        assert found is not None
        return [set(row) for row in found.tolist()]

    expected = np.mean([len(a & b) / 6 for a, b in zip(near(x), near(y), strict=True)])
    assert mutual_knn(x, y, 6) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.rows-1 .* got k=30, 30 and 30 rows"):
        mutual_knn(x, y, 30)
    with pytest.raises(ValueError, match="30 and 29 rows"):
        mutual_knn(x, y[1:])
