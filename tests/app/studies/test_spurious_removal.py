"""SCR on planted codes: ablating the spurious latent repairs the probe, ablating another does not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from app.studies.pooled import Pooled
from app.studies.spurious_removal import SpuriousRemoval, spurious_removal


def planted(strength: float = 3.0, halves: bool = False, n: int = 1200) -> tuple[Pooled, Tensor, Tensor, Tensor]:
    """Return texts with two independent labels; the spurious one is written more strongly.

    Latent 3 (signed), or 3 and 4 with opposite atoms (halves), writes the spurious label, 0 and 1 the target.
    """
    g = torch.Generator().manual_seed(2)
    target, spurious = (torch.rand(n, generator=g) < 0.5 for _ in range(2))
    codes = torch.zeros(n, 8)
    codes[:, 0], codes[:, 1] = target.float(), (~target).float()
    if halves:
        codes[:, 3], codes[:, 4] = strength * spurious, strength * ~spurious
    else:
        codes[:, 3] = strength * (2 * spurious.float() - 1)
    codes[:, 6] = torch.rand(n, generator=g)
    atoms = torch.zeros(8, 5)
    atoms[0, 0], atoms[1, 0], atoms[3, 1], atoms[4, 1], atoms[6, 2] = 1, -1, 1, -1, 1
    error = 0.05 * torch.randn(n, 5, generator=g)
    return Pooled(codes @ atoms + error, codes, atoms), target, spurious, torch.rand(n, generator=g) < 0.7


@pytest.mark.parametrize(
    ("halves", "n", "exchange"),
    [
        pytest.param(False, 1, False, marks=pytest.mark.slow),
        pytest.param(False, 1, True, marks=pytest.mark.slow),
        pytest.param(True, 2, False, marks=pytest.mark.slow),
        (True, 2, True),
    ],
)
def test_the_spurious_latent_repairs_the_probe(halves: bool, n: int, exchange: bool) -> None:
    pooled, target, spurious, train = planted(halves=halves)
    first, second = (spurious, target) if exchange else (target, spurious)
    found = spurious_removal(pooled, first, second, train, (n,))
    assert found.exchanged == exchange  # the probe is worse on the label that is written weakly
    assert set(found.latents) == ({3, 4} if halves else {3})
    assert found.base == pytest.approx(0.5, abs=0.01)
    assert found.clean > 0.99
    assert found.scores[n] == pytest.approx(1, abs=0.01)


def test_other_latents_do_not() -> None:
    pooled, target, spurious, train = planted()
    other = pooled.codes.clone()
    other[:, [3, 6]] = pooled.codes[:, [6, 3]]  # a dictionary that has no latent for the spurious label's direction
    found = spurious_removal(Pooled(pooled.raw, other * 0.01, pooled.atoms), target, spurious, train, (1, 5))
    assert abs(found.scores[1]) < 0.05
    assert abs(found.scores[5]) < 0.05


def test_the_score_is_the_share_repaired() -> None:
    found = SpuriousRemoval(False, 0.6, 0.9, {1: 0.6, 2: 0.75, 5: 0.9, 10: 0.5}, (), 10, 10)
    assert list(found.scores.values()) == pytest.approx([0, 0.5, 1, -1 / 3])
    nothing = SpuriousRemoval(False, 0.9, 0.9, {1: 0.4}, (), 10, 10)
    assert math.isnan(nothing.scores[1])  # nothing to repair is no failure


def test_refusals() -> None:
    pooled, target, _, train = planted(n=100)
    with pytest.raises(ValueError, match="Each cell needs a text"):
        spurious_removal(pooled, target, target, train)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        spurious_removal(pooled, target, ~target, train, (0,))
