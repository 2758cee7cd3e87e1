"""The arithmetic of matching pursuit: both ways to its steps, and the gradient of the unrolled loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae import pursuit
from sae.pursuit import best, gram_matrix, matching_pursuit, merged, unrolled


def problem(batch: int, d_in: int, d_sae: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(7)
    x, atoms = (torch.randn(n, d_in, generator=g, dtype=dtype) for n in (batch, d_sae))
    return x, normalize(atoms, dim=1)


@pytest.mark.parametrize("n", [40, 1024, 1100, 4096])
def test_best_is_max(n: int) -> None:
    scores = torch.randn(50, n, generator=torch.Generator().manual_seed(8))
    scores[3] = 1.0
    scores[4, n // 2] = torch.nan
    value, index = best(scores)
    assert torch.equal(value[:4], scores[:4].max(1).values)
    assert torch.equal(value[5:], scores[5:].max(1).values)
    assert bool(value[4].isnan())
    assert torch.equal(scores.gather(1, index.unsqueeze(1)).squeeze(1)[5:], value[5:])


@pytest.mark.parametrize("d_sae", [7, 512, 700])
def test_gram_matrix_is_the_product(d_sae: int) -> None:
    atoms = problem(1, 12, d_sae)[1]
    assert torch.allclose(gram_matrix(atoms), atoms @ atoms.t(), atol=1e-6)


@pytest.mark.parametrize("stops", [{}, {"residual": 0.4}, {"until_repeat": True}])
def test_gram_updates_and_residual_products_take_the_same_steps(stops: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    x, atoms = problem(300, 24, 100, torch.float64)
    found = []
    for pays in (True, False):
        monkeypatch.setattr(pursuit, "_gram_pays", lambda *_, pays=pays: pays)
        monkeypatch.setattr(pursuit, "CACHED_FLOATS", 5000)
        monkeypatch.setattr(pursuit, "PIECE_FLOATS", 7000)
        found.append(merged(matching_pursuit(x, atoms, 20, **stops), 100).dense())
    assert torch.allclose(found[0], found[1], atol=1e-12)


def test_large_dictionaries_never_hold_a_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pursuit, "GRAM_LATENTS", 64)
    monkeypatch.setattr(pursuit, "gram_matrix", lambda _: pytest.fail("a Gram matrix"))
    x, atoms = problem(500, 8, 65)
    assert merged(matching_pursuit(x, atoms, 30), 65).fired().any()


def test_gradcheck_of_the_unrolled_loop() -> None:
    x, atoms = problem(5, 4, 9, torch.float64)
    steps = matching_pursuit(x, atoms, 6)
    assert merged(steps, 9).indices.numel() < 30, "an atom comes up twice"

    def loop(x: Tensor, atoms: Tensor) -> Tensor:
        left, taken = x, []
        for t in range(6):
            d = atoms[steps[0][:, t]]
            value = (d * left).sum(1) * (steps[1][:, t] != 0)
            left = left - value.unsqueeze(1) * d
            taken.append(value)
        return torch.stack(taken, 1)

    leaves = [x.requires_grad_(), atoms.requires_grad_()]
    assert torch.allclose(loop(*leaves), steps[1])
    # The values are known beforehand, so the check perturbs the loop and asks ours for the gradient.
    weights = torch.randn(steps[1].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *t: (loop(*t) * weights).sum(), leaves)
    wanted = torch.autograd.grad((loop(*leaves) * weights).sum(), leaves)
    found = torch.autograd.grad((unrolled(x, atoms, steps)[1] * weights).sum(), leaves)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_the_gradient_does_not_depend_on_how_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    x, atoms = (t.requires_grad_() for t in problem(40, 6, 20, torch.float64))
    steps = matching_pursuit(x, atoms, 8)
    found = []
    for floats in (1 << 24, 8 * 6 * 7):
        monkeypatch.setattr(pursuit, "SLOT_FLOATS", floats)
        found.append(torch.autograd.grad(unrolled(x, atoms, steps)[1].square().sum(), [x, atoms]))
    for whole, cut in zip(*found, strict=True):
        assert torch.allclose(whole, cut, atol=1e-12)


def test_merging_adds_repeats_and_leaves_out_what_was_not_taken() -> None:
    indices = torch.tensor([[4, 1, 4], [2, 2, 0], [5, 5, 5]])
    values = torch.tensor([[1.0, 2.0, 0.5], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    code = merged((indices, values), 6)
    assert code.indices.tolist() == [1, 4, 2]
    assert code.values.tolist() == [2.0, 1.5, 3.0]
    assert code.l0().tolist() == [2, 1, 0]
    code.values.square().sum().backward()
    assert torch.equal(values.grad, torch.tensor([[3.0, 4.0, 3.0], [6.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def test_short_atoms_give_the_norm_of_what_is_left_all_the_same() -> None:
    x, atoms = problem(100, 12, 30, torch.float64)
    atoms = atoms * torch.linspace(0.3, 1.0, 30, dtype=torch.float64).unsqueeze(1)
    indices, values = matching_pursuit(x, atoms, 60, residual=0.5)
    taken = (values != 0).sum(1)
    assert (taken < 60).any()
    for fewer, within in ((0, True), (1, False)):  # done after the last step, and not before
        kept = torch.where(torch.arange(60) < (taken - fewer).unsqueeze(1), values, 0.0)
        left = (x - merged((indices, kept), 30).dense() @ atoms).norm(dim=1) / x.norm(dim=1)
        assert ((left <= 0.5) == within)[taken < 60].all()
