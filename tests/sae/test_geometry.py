"""Geometry: slow references, bounds that must hold, and what order, sign and length must not change."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae.code import Code
from sae.config import SaeConfig
from sae.geometry import babel, babel_of_rows, effective_rank, stability, zf
from sae.model import Sae
from sae.synthetic import Planted, PlantedConfig


def atoms(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def slow_babel(held: Tensor, r: int) -> float:
    """Return max over sets S of r atoms and j outside of sum_{i in S} |cos|, trying them all."""
    unit = normalize(held.double(), dim=1)
    best = 0.0
    for j in range(len(held)):
        for chosen in itertools.combinations([i for i in range(len(held)) if i != j], r):
            best = max(best, sum(abs(float(unit[i] @ unit[j])) for i in chosen))
    return best


def test_babel_is_the_worst_set_of_all() -> None:
    held = atoms(7, 4, 1) * torch.linspace(0.1, 3, 7)[:, None]
    found = babel(held, [1, 2, 3, 6])
    assert found.tolist() == pytest.approx([slow_babel(held, r) for r in (1, 2, 3, 6)])
    turned = babel(-held[torch.tensor([3, 1, 0, 6, 5, 2, 4])], [1, 2, 3, 6])
    assert torch.allclose(found, turned)
    assert (found.diff() > 0).all()


def test_babel_in_pieces_is_babel(monkeypatch: pytest.MonkeyPatch) -> None:
    held = atoms(50, 8, 2)
    whole = babel(held, [1, 5])
    monkeypatch.setattr("sae.geometry.PIECE", 50 * 7)
    assert torch.allclose(babel(held, [1, 5]), whole)


def test_babel_of_an_orthonormal_and_of_a_repeated_dictionary() -> None:
    assert float(babel(torch.eye(6), [5])) == 0
    assert float(babel(torch.ones(4, 3), [3])) == pytest.approx(3)
    with pytest.raises(ValueError, match=r"sizes must lie in 1\.\.d_sae-1=5, got \[6\]"):
        babel(torch.eye(6), [6])


def test_babel_of_rows_looks_at_what_is_on_together() -> None:
    held = atoms(9, 5, 3)
    z = torch.zeros(5, 9)
    z[0, [1, 4, 7]] = torch.tensor([1.0, -2.0, 0.5])
    z[1, [2, 3]] = 1.0
    z[2, 0] = 1.0
    z[4, :] = 1.0
    found = babel_of_rows(held, Code.from_dense(z))
    assert found[:2].tolist() == pytest.approx([slow_babel(held[[1, 4, 7]], 2), slow_babel(held[[2, 3]], 1)])
    assert torch.isnan(found[2:4]).all()
    assert float(found[4]) == pytest.approx(float(babel(held, [8])))
    slots = Code(torch.arange(9).expand(5, 9), z, 9)  # the same with silent slots
    assert torch.allclose(babel_of_rows(held, slots), found, equal_nan=True)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_directions_of_equal_weight(rank: int) -> None:
    z = torch.zeros(rank * 40, 20)
    for n in range(len(z)):
        z[n, n % rank] = (-1.0) ** n * 2
    assert effective_rank(Code.from_dense(z)) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(Code.from_dense(5 * z)) == pytest.approx(rank, rel=1e-6)


def test_effective_rank_equals_its_definition_for_few_and_many_rows() -> None:
    for rows in (6, 60):
        z = atoms(rows, 15, 4) * (atoms(rows, 15, 5) > 0.5)
        values = torch.linalg.svdvals(z.double()).square()
        share = [float(v / values.sum()) for v in values if v > 1e-12]
        wanted = math.exp(-sum(p * math.log(p) for p in share))
        assert effective_rank(Code.from_dense(z)) == pytest.approx(wanted, rel=1e-6)
    assert math.isnan(effective_rank(Code.from_dense(torch.zeros(3, 4))))


def dictionary(held: Tensor, b_dec: float = 0.0) -> Sae:
    sae = Sae(SaeConfig(held.shape[1], len(held), "relu", normalise="none")).eval()
    with torch.no_grad():
        sae.W_enc.copy_(held)
        sae.W_dec.copy_(held)
        sae.b_dec.fill_(b_dec)
    return sae


def test_zf_lies_on_the_diagonal_where_atoms_are_orthogonal() -> None:
    sae = dictionary(torch.eye(8))
    x = atoms(50, 8, 6).abs()
    found = zf(sae, x)
    assert torch.allclose(found.z, found.f, atol=1e-6)
    assert float(found.epsilon.max()) < 1e-6


def test_epsilon_never_exceeds_the_coherence_of_the_atoms() -> None:
    held = normalize(atoms(30, 12, 7), dim=1)
    coherence = float(babel(held, [1]))
    found = zf(dictionary(held), atoms(200, 12, 8), of="reconstruction")
    assert 0 < float(found.epsilon.max()) <= coherence
    slow_sae = dictionary(held, b_dec=0.2)
    x = atoms(5, 12, 9)
    with torch.no_grad():
        recon, code = slow_sae(x)
    seen = zf(slow_sae, x, of="reconstruction")
    for n in range(5):
        f = sum(float(v) ** 2 for v in code.dense()[n]) + 12 * 0.2**2
        z = sum(float(v) ** 2 for v in recon[n])
        assert float(seen.f[n]) ** 2 == pytest.approx(f, rel=1e-5)
        assert float(seen.epsilon[n]) == pytest.approx(abs(z - f) / (29 * f), rel=1e-3, abs=1e-9)


def test_stability_is_whole_for_the_same_atoms_and_the_null_for_random_ones() -> None:
    a = Planted(PlantedConfig(d_in=24, n_atoms=60), seed=1).atoms
    b = Planted(PlantedConfig(d_in=24, n_atoms=60), seed=2).atoms
    table = stability({"a": a, "same": -2 * a.flip(0), "other": b}).to_pylist()
    assert [(row["a"], row["b"]) for row in table] == [("a", "same"), ("a", "other"), ("same", "other")]
    same, other, turned = table
    assert same["mcc"] == pytest.approx(1)
    assert same["max_cosine"] == pytest.approx(1)
    assert same["stable_share"] == 1
    assert other["mcc"] == pytest.approx(other["null_mcc"], abs=0.03)
    assert other["mcc"] == pytest.approx(turned["mcc"])
    assert other["null_mcc"] < 0.7
    assert other["max_cosine"] >= other["mcc"]
    with pytest.raises(ValueError, match="at least two dictionaries, got 1"):
        stability({"a": a})


def test_half_a_dictionary_is_stable_by_half() -> None:
    a, b = (Planted(PlantedConfig(d_in=64, n_atoms=60), seed=seed).atoms for seed in (1, 2))
    mixed = torch.cat([a[:30], b[30:]])
    row = stability({"a": a, "mixed": mixed}).to_pylist()[0]
    assert row["stable_share"] == pytest.approx(0.5, abs=0.02)
    assert row["null_stable_share"] < 0.05
