"""OMP and gradient pursuit: against scikit-learn, SciPy and their own definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp
from torch import Tensor
from torch.nn.functional import normalize

from sae.greedy import gradient_pursuit, nonnegative_least_squares, orthogonal_pursuit
from sae.pursuit import matching_pursuit, merged


def problem(batch: int = 60, d_in: int = 12, d_sae: int = 30) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(17)
    atoms = normalize(torch.randn(d_sae, d_in, generator=g, dtype=torch.float64), dim=1)
    return torch.randn(batch, d_in, generator=g, dtype=torch.float64), atoms


def test_signed_omp_is_that_of_scikit_learn() -> None:
    x, atoms = problem()
    ours = merged(orthogonal_pursuit(x, atoms, 5, nonnegative=False), 30).dense()
    theirs = orthogonal_mp(atoms.numpy().T, x.numpy().T, n_nonzero_coefs=5).T
    assert np.allclose(ours.numpy(), theirs, atol=1e-8)


def omp_reference(x: Tensor, atoms: Tensor, k: int) -> Tensor:
    """Return the dense non-negative code, refitted by SciPy after each choice."""
    out = torch.zeros(len(x), len(atoms), dtype=x.dtype)
    for n, row in enumerate(x):
        support: list[int] = []
        left, fitted = row, np.zeros(0)
        for _ in range(k):
            scores = atoms @ left
            scores[support] = -torch.inf
            i = int(scores.argmax())
            if scores[i] <= 1e-12:
                break
            support.append(i)
            fitted, _ = nnls(atoms[support].T.numpy(), row.numpy())
            left = row - torch.from_numpy(fitted) @ atoms[support]
        out[n, support] = torch.from_numpy(fitted)
    return out


@pytest.mark.parametrize("k", [1, 4, 14])
def test_nonnegative_omp_equals_the_slow_reference(k: int) -> None:
    x, atoms = problem()
    ours = merged(orthogonal_pursuit(x, atoms, k), 30)
    assert torch.allclose(ours.dense(), omp_reference(x, atoms, k), atol=1e-9)
    assert (ours.values > 0).all()


def test_what_omp_leaves_is_orthogonal_to_all_chosen_atoms() -> None:
    x, atoms = problem()
    for nonnegative in (True, False):
        z = merged(orthogonal_pursuit(x.float(), atoms.float(), 8, nonnegative=nonnegative), 30).dense()
        left = x.float() - z @ atoms.float()
        assert ((left @ atoms.float().t()) * (z != 0)).abs().max() < 1e-5


@pytest.mark.parametrize("k", [3, 9, 20])
def test_nonnegative_least_squares_is_that_of_scipy(k: int) -> None:
    g = torch.Generator().manual_seed(k)
    a = torch.randn(40, 24, k, generator=g, dtype=torch.float64) + 0.3
    y = torch.randn(40, 24, generator=g, dtype=torch.float64)
    normal, target = a.transpose(1, 2) @ a, (a.transpose(1, 2) @ y.unsqueeze(2)).squeeze(2)
    found = nonnegative_least_squares(normal, target)
    wanted = np.stack([nnls(one.numpy(), row.numpy())[0] for one, row in zip(a, y, strict=True)])
    assert (wanted == 0).any()
    assert np.allclose(found.numpy(), wanted, atol=1e-9)


def gradient_pursuit_reference(x: Tensor, atoms: Tensor, k: int) -> Tensor:
    """Return the dense non-negative code, one step of one row at a time."""
    out = torch.zeros(len(x), len(atoms), dtype=x.dtype)
    for n, row in enumerate(x):
        z = out[n]
        for _ in range(k):
            left = row - z @ atoms
            scores = atoms @ left
            if scores.max() <= 1e-12:
                break
            support = z != 0
            support[scores.argmax()] = True
            slope = scores * support
            direction = slope @ atoms
            z += (direction @ left) / (direction @ direction) * slope
            z.clamp_(min=0)
    return out


@pytest.mark.parametrize("k", [1, 4, 12])
def test_gradient_pursuit_equals_the_slow_reference(k: int) -> None:
    x, atoms = problem()
    ours = merged(gradient_pursuit(x, atoms, k), 30)
    assert torch.allclose(ours.dense(), gradient_pursuit_reference(x, atoms, k), atol=1e-9)


def test_better_fits_leave_less() -> None:
    x, atoms = problem(200)
    fvu = {
        name: float((x - merged(pursuit(x, atoms, 6), 30).dense() @ atoms).square().sum() / x.square().sum())
        for name, pursuit in (("mp", matching_pursuit), ("gp", gradient_pursuit), ("omp", orthogonal_pursuit))
    }
    assert fvu["omp"] < fvu["gp"] < fvu["mp"]


@pytest.mark.parametrize("pursuit", [orthogonal_pursuit, gradient_pursuit])
def test_each_row_may_have_its_own_k_and_stops_at_its_residual(pursuit: object) -> None:
    x, atoms = problem()
    k = torch.arange(60) % 5
    several = merged(pursuit(x, atoms, k), 30)  # type: ignore[operator]
    assert (several.l0() <= k).all()
    four = merged(pursuit(x, atoms, 4), 30).dense()  # type: ignore[operator]
    assert torch.allclose(several.dense()[k == 4], four[k == 4])
    near = merged(pursuit(x, atoms, 30, residual=0.6), 30)  # type: ignore[operator]
    left = (x - near.dense() @ atoms).norm(dim=1) / x.norm(dim=1)
    assert (left <= 0.6).double().mean() > 0.9
    assert len(near.l0().unique()) > 2


@pytest.mark.parametrize("pursuit", [orthogonal_pursuit, gradient_pursuit])
def test_copies_of_an_atom_and_rows_of_zeros_do_no_harm(pursuit: object) -> None:
    x, atoms = problem()
    atoms = torch.cat([atoms, atoms])
    x[3] = 0.0
    x[4] = 2 * atoms[5]
    code = merged(pursuit(x.float(), atoms.float(), 25), 60)  # type: ignore[operator]
    assert torch.isfinite(code.values).all()
    assert int(code.l0()[3]) == 0
    assert int(code.l0()[4]) == 1
