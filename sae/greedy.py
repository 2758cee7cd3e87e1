"""Pursuits that fit the coefficients of all chosen atoms again after each choice.

    orthogonal (OMP)     i = argmax_j <d_j, r>, then least squares on all atoms chosen so far      (Pati et al. 1993)
    gradient pursuit     the same choice, then one step along the gradient on the chosen atoms     (Blumensath 2008)

For evaluation: nothing here keeps a graph. Each step costs one product r D^T and small ones on the support.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.pursuit import PIECE_FLOATS, Steps, best, pieces

PIVOTS = 10
"""Rounds of pivoting at most, per atom."""

Fit = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(normal [batch k k], target [batch k], weights [batch k], support [batch k]) -> weights."""


def orthogonal_pursuit(
    x: Float[Tensor, "batch d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    k: int | Int[Tensor, " batch"],
    *,
    residual: float = 0.0,
    nonnegative: bool = True,
) -> Steps:
    """Return the steps of OMP on centred rows: different atoms, and the least-squares coefficients on all of them.

    Args:
        x: rows.
        atoms: of length 1.
        k: atoms at most; one number, or one for each row.
        residual: a row is done when what is left of it is at most this share of its norm.
        nonnegative: choose by the largest correlation and fit coefficients of at least 0; else both by size.
    """
    return _greedy(x, atoms, k, residual, nonnegative, nonnegative_least_squares if nonnegative else _least_squares)


def gradient_pursuit(
    x: Float[Tensor, "batch d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    k: int | Int[Tensor, " batch"],
    *,
    residual: float = 0.0,
    nonnegative: bool = True,
) -> Steps:
    """Return the steps of gradient pursuit: OMP's arguments, a line search along the gradient for its least squares.

    An atom whose coefficient a step cut to 0 leaves the support until it is chosen again.
    """
    return _greedy(x, atoms, k, residual, nonnegative, _line_search, again=True)


@torch.no_grad()
def _greedy(
    x: Tensor,
    atoms: Tensor,
    k: int | Tensor,
    residual: float,
    nonnegative: bool,
    fit: Fit,
    again: bool = False,
) -> Steps:
    """Return the steps of a pursuit that fits all coefficients again after each choice (`again`: of any atom)."""
    limit = torch.as_tensor(k, device=x.device).expand(len(x))
    most = int(limit.max()) if len(x) else 0
    indices, values = x.new_zeros(len(x), most, dtype=torch.long), x.new_zeros(len(x), most)
    width = max(len(atoms), most * (x.shape[1] + most))
    for piece in pieces(len(x), width, PIECE_FLOATS):
        found = _Support(x[piece], atoms, indices[piece])
        for step in range(most):
            scores = found.left @ atoms.t()
            scores = scores if nonnegative else scores.abs_()
            if step and not again:
                scores.scatter_(1, found.slots[:, :step], -torch.inf)
            value, index = best(scores)
            square = found.left.square().sum(1)
            done = (value <= found.noise) | (square <= residual**2 * found.whole) | (step >= limit[piece])
            if done.all():
                break
            support = found.add(step, index, ~done)
            fitted = fit(found.normal, found.target, found.weights, support)
            fitted = fitted.clamp_min(0) if nonnegative else fitted
            found.weights = torch.where(done.unsqueeze(1), found.weights, fitted)
            found.left = (found.rows - torch.einsum("bk,bkd->bd", found.weights, found.picked)).to(x.dtype)
        values[piece] = found.weights.to(x.dtype)
    return indices, values


class _Support:
    """The atoms that a few rows have chosen, and the normal equations of their coefficients, in float64."""

    def __init__(self, rows: Tensor, atoms: Tensor, slots: Tensor) -> None:
        batch, k = slots.shape
        self.rows, self.atoms, self.slots, self.left = rows.double(), atoms, slots, rows
        self.picked = self.rows.new_zeros(batch, k, rows.shape[1])
        self.normal = torch.eye(k, dtype=torch.float64, device=rows.device).repeat(batch, 1, 1)
        self.target, self.weights = self.rows.new_zeros(batch, k), self.rows.new_zeros(batch, k)
        self.taken = torch.zeros_like(slots, dtype=torch.bool)
        self.whole = self.left.square().sum(1)
        self.noise = 10 * torch.finfo(rows.dtype).eps * self.whole.sqrt()
        """Correlation below which a row's residual is rounding."""

    def add(self, step: int, index: Tensor, wanted: Tensor) -> Tensor:
        """Give the atom `index` of the `wanted` rows the slot `step`, unless they have it; return what is in use."""
        old = (self.slots == index.unsqueeze(1)) & self.taken
        fresh = wanted & ~old.any(1)
        atom = torch.where(fresh.unsqueeze(1), self.atoms.index_select(0, index).double(), 0.0)
        cross = torch.einsum("bkd,bd->bk", self.picked, atom)
        self.slots[:, step], self.picked[:, step], self.taken[:, step] = index, atom, fresh
        self.normal[:, step, :], self.normal[:, :, step] = cross, cross
        self.normal[:, step, step] = torch.where(fresh, atom.square().sum(1), 1.0)
        self.target[:, step] = (atom * self.rows).sum(1)
        return self.taken & ((self.weights != 0) | (self.slots == index.unsqueeze(1)))


def _least_squares(normal: Tensor, target: Tensor, weights: Tensor, support: Tensor) -> Tensor:  # noqa: ARG001
    return torch.cholesky_solve(target.unsqueeze(2), torch.linalg.cholesky_ex(normal).L).squeeze(2)


def _line_search(normal: Tensor, target: Tensor, weights: Tensor, support: Tensor) -> Tensor:
    slope = (target - torch.einsum("bij,bj->bi", normal, weights)) * support
    curve = torch.einsum("bi,bij,bj->b", slope, normal, slope)
    length = slope.square().sum(1) / curve.clamp_min(torch.finfo(curve.dtype).tiny)
    return weights + length.unsqueeze(1) * slope


def nonnegative_least_squares(
    normal: Float[Tensor, "batch k k"],
    target: Float[Tensor, "batch k"],
    weights: Float[Tensor, "batch k"] | None = None,
    support: Bool[Tensor, "batch k"] | None = None,  # noqa: ARG001
) -> Float[Tensor, "batch k"]:
    """Return argmin_{w >= 0} w^T normal w / 2 - target^T w, exactly, by block principal pivoting.

    What is below 0 leaves the free set and whatever wants to rise from 0 enters it, all at once while that makes fewer
    wrong places, else the last of them only, which cannot cycle (Judice and Pires 1994). `weights` says where to start.
    """
    k = target.shape[1]
    free = torch.ones_like(target, dtype=torch.bool) if weights is None else (weights > 0) | (target > 0)
    fewest, tries = target.new_full((len(target),), k + 1), target.new_full((len(target),), 3)
    eye = torch.eye(k, dtype=normal.dtype, device=normal.device)
    tolerance = 1e-12 * target.abs().amax(1, keepdim=True)
    for _ in range(PIVOTS * k):
        held = free.unsqueeze(2) & free.unsqueeze(1)
        factor = torch.linalg.cholesky_ex(torch.where(held, normal, eye)).L
        found = torch.cholesky_solve(torch.where(free, target, 0.0).unsqueeze(2), factor).squeeze(2)
        rise = target - torch.einsum("bij,bj->bi", normal, found)
        wrong = torch.where(free, found < 0, rise > tolerance)
        count = wrong.sum(1)
        if not count.any():
            break
        better = count < fewest
        fewest = torch.where(better, count, fewest)
        tries = torch.where(better, 3, tries - 1)
        last = wrong & (wrong.flip(1).cumsum(1).flip(1) == 1)
        free = free ^ torch.where((tries > 0).unsqueeze(1), wrong, last)
    return torch.where(free, found, 0.0).clamp_min(0)
