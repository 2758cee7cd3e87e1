"""Measures against truth: slow references, what they must not depend on, and the definitions of sae-lens."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae.code import Code
from sae.config import SaeConfig
from sae.matching import (
    Detection,
    absorption_scores,
    best_matches,
    cosines,
    hierarchy_scores,
    match,
    mcc,
    recovery,
    shrinkage,
    uniqueness,
)
from sae.model import Sae
from sae.synthetic import Absorption, Planted, PlantedConfig, Tree, TreeConfig


def atoms(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def slow_mcc(a: Tensor, b: Tensor) -> float:
    """Return the best mean |cosine| over all injections of the smaller set into the larger, one by one."""
    if len(a) > len(b):
        a, b = b, a
    value = [[abs(float(u @ v) / (float(u.norm()) * float(v.norm()))) for v in b] for u in a]
    orders = itertools.permutations(range(len(b)), len(a))
    return max(sum(value[i][j] for i, j in enumerate(order)) for order in orders) / len(a)


@pytest.mark.parametrize(("n_a", "n_b"), [(5, 5), (3, 6), (6, 4)])
def test_mcc_is_the_best_of_all_one_to_one_matches(n_a: int, n_b: int) -> None:
    a, b = atoms(n_a, 4, 1), atoms(n_b, 4, 2)
    assert mcc(a, b) == pytest.approx(slow_mcc(a, b), abs=1e-6)
    assert len(match(a, b).cosine) == min(n_a, n_b)


def test_mcc_sees_neither_order_nor_sign_nor_length() -> None:
    a = atoms(20, 8, 3)
    g = torch.Generator().manual_seed(4)
    order = torch.randperm(20, generator=g)
    moved = a[order] * torch.randn(20, 1, generator=g)
    assert mcc(a, a) == pytest.approx(1)
    assert mcc(a, moved) == pytest.approx(1)
    found = match(a, moved)
    assert torch.equal(order[found.b], found.a)
    b = atoms(20, 8, 5)
    assert mcc(moved, b) == pytest.approx(mcc(a, b))
    assert mcc(a, b) == pytest.approx(mcc(b, a))
    assert mcc(a, b) < 0.9


def test_a_signed_match_tells_the_two_sides_apart() -> None:
    a = torch.eye(4)
    assert match(a, -a).cosine.tolist() == [-1.0] * 4
    assert float(match(a, -a, signed=True).cosine.max()) <= 0


def test_cosine_of_an_atom_without_length_is_zero() -> None:
    assert cosines(torch.zeros(1, 3), torch.ones(2, 3)).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="need one width, got 3 and 4"):
        cosines(torch.ones(1, 3), torch.ones(1, 4))


def test_uniqueness_counts_true_atoms_once() -> None:
    truth = torch.eye(4)
    assert uniqueness(truth, truth) == 1
    assert uniqueness(truth[[0, 0, 1, 1]], truth) == 0.5
    assert uniqueness(-truth[[0, 1]] * 3, truth) == 1
    assert best_matches(torch.tensor([[0.1, -0.9, 0.0, 0.2]]), truth).tolist() == [1]


def slow_detection(z: Tensor, truth: Tensor, best: Tensor) -> list[tuple[float, float, float]]:
    """Return (precision, recall, F1) of each latent from the four counts, one row at a time."""
    scores = []
    for i, j in enumerate(best.tolist()):
        tp = sum(float(row[i]) != 0 and float(t[j]) != 0 for row, t in zip(z, truth, strict=True))
        fp = sum(float(row[i]) != 0 and float(t[j]) == 0 for row, t in zip(z, truth, strict=True))
        fn = sum(float(row[i]) == 0 and float(t[j]) != 0 for row, t in zip(z, truth, strict=True))
        p = tp / (tp + fp) if tp + fp else 0.0
        r = tp / (tp + fn) if tp + fn else 0.0
        scores.append((p, r, 2 * p * r / (p + r) if p + r else 0.0))
    return scores


def test_detection_equals_the_four_counts_over_batches_of_signed_codes() -> None:
    g = torch.Generator().manual_seed(6)
    z = torch.randn(60, 7, generator=g) * (torch.rand(60, 7, generator=g) < 0.3)
    truth = torch.randn(60, 5, generator=g) * (torch.rand(60, 5, generator=g) < 0.4)
    z[:, 2] = 0
    truth[:, 4] = 0
    best = torch.tensor([0, 1, 2, 3, 4, 1, 0])
    detection = Detection(best)
    detection.add(Code.from_dense(z[:25]), truth[:25])
    fixed = torch.arange(7).expand(35, 7)  # every latent in a slot, most of them silent
    detection.add(Code(fixed, z[25:], 7), truth[25:])
    found = torch.stack([detection.precision, detection.recall, detection.f1], dim=1)
    assert torch.allclose(found, torch.tensor(slow_detection(z, truth, best)), atol=1e-6)
    flipped = Detection(best)
    flipped.add(Code.from_dense(-z), -truth)
    assert torch.equal(flipped.f1, detection.f1)


def test_detection_of_the_truth_itself_is_perfect() -> None:
    truth = Planted(PlantedConfig(d_in=16, n_atoms=20, active=4, bidirectional=1.0), rows=500)
    values = truth.codes(0)
    detection = Detection(torch.arange(20))
    detection.add(Code.from_dense(values), values)
    assert (detection.f1 == 1).all()
    with pytest.raises(ValueError, match="need the same rows, got 500 and 3"):
        detection.add(Code.from_dense(values), values[:3])


def test_shrinkage_is_the_mean_ratio_of_lengths_without_rows_of_length_zero() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    assert shrinkage(torch.tensor([[3.0, 0.0], [5.0, 5.0], [0.0, 1.0]]), x) == pytest.approx((3 / 5 + 1) / 2)
    assert math.isnan(shrinkage(x[1:2], x[1:2]))


def test_hierarchy_scores_are_zero_at_the_truth_and_equal_the_slow_ones() -> None:
    truth = Tree(TreeConfig(sibling_cosine=0.3))
    g = torch.Generator().manual_seed(7)
    order = torch.randperm(20, generator=g)
    flipped = truth.atoms[order] * torch.where(torch.rand(20, 1, generator=g) < 0.5, -2.0, 1.0)
    exact = hierarchy_scores(flipped, truth.atoms, truth.level)
    assert exact.flat_mse < 1e-12
    assert exact.hierarchical_mse < 1e-12
    learned = normalize(truth.atoms + 0.05 * torch.randn(20, 20, generator=g), dim=1)
    found = hierarchy_scores(learned[order], truth.atoms, truth.level)
    flat, across = [], []
    for i, j in itertools.product(range(20), range(20)):
        if i != j:
            error = (float(learned[i] @ learned[j]) - float(truth.atoms[i] @ truth.atoms[j])) ** 2
            (flat if truth.level[i] == truth.level[j] else across).append(error)
    assert found.flat_mse == pytest.approx(sum(flat) / len(flat), rel=1e-4)
    assert found.hierarchical_mse == pytest.approx(sum(across) / len(across), rel=1e-4)
    with pytest.raises(ValueError, match="The tree has 20 features; a dictionary of 19 latents"):
        hierarchy_scores(learned[:19], truth.atoms, truth.level)


def test_a_child_that_holds_its_parent_raises_only_the_error_between_levels() -> None:
    truth = Tree()
    learned = truth.atoms.clone()
    learned[1] = normalize(truth.atoms[1] + 0.5 * truth.atoms[0], dim=0)
    scores = hierarchy_scores(learned, truth.atoms, truth.level)
    assert scores.flat_mse < 1e-9
    assert scores.hierarchical_mse == pytest.approx(2 * 0.2 / (2 * 11 * 9), rel=1e-4)


def test_absorption_is_none_at_the_truth_and_whole_where_children_took_over() -> None:
    truth = Absorption(rows=2000)
    values = truth.codes(0)
    children = truth.parent >= 0
    none = absorption_scores(truth.atoms, truth.atoms, truth.parent, Code.from_dense(values), values)
    assert none.rate == 0
    assert abs(none.cosine) < 1e-6
    taken, held = values.clone(), truth.atoms.clone()
    for child in children.nonzero().flatten().tolist():
        parent = int(truth.parent[child])
        taken[values[:, child] != 0, parent] = 0
        held[child] = normalize(truth.atoms[child] + truth.atoms[parent], dim=0)
    held = held * torch.where(torch.arange(len(held)) % 2 == 0, -1.0, 1.0)[:, None]
    full = absorption_scores(held, truth.atoms, truth.parent, Code.from_dense(taken), values)
    assert full.rate == 1
    assert full.cosine == pytest.approx(0.5**0.5, abs=1e-5)
    half = taken.clone()
    half[:1000] = values[:1000]
    rate = absorption_scores(held, truth.atoms, truth.parent, Code.from_dense(half), values).rate
    assert rate == pytest.approx(0.5, abs=0.05)


def test_recovery_of_the_true_dictionary_is_whole() -> None:
    truth = Planted(PlantedConfig(d_in=64, n_atoms=40, active=3, spread=0.0), rows=256)
    sae = Sae(SaeConfig(64, 40, "relu", normalise="none")).eval()
    with torch.no_grad():
        sae.W_enc.copy_(truth.atoms)
        sae.W_dec.copy_(truth.atoms)
        sae.b_enc.fill_(-1e-4)  # rounding must not switch a latent on
    found = recovery(sae, truth, range(2))
    assert found.mcc == pytest.approx(1)
    assert found.uniqueness == 1
    assert found.f1 > 0.999
    assert found.fvu < 1e-4
    assert found.l0 == pytest.approx(found.true_l0, abs=0.01)
    assert found.shrinkage == pytest.approx(1, abs=0.01)
    assert found.dead_share == 0
