"""Synthetic truth: rates, cosines, correlations and probabilities are those that were asked for."""

from __future__ import annotations

import math

import pytest
import torch

from sae.config import SaeConfig, TrainConfig
from sae.initialise import initialise
from sae.matching import cosines, mcc
from sae.model import Sae
from sae.synthetic import Absorption, AbsorptionConfig, Planted, PlantedConfig, Synthetic, Tree, TreeConfig
from sae.synthetic.planted import LARGEST_RATE, firing_rates, rms_cosine, welch_bound
from sae.synthetic.tree import sibling_weight
from sae.training import Batches, begin, train

KINDS: dict[str, type[Synthetic]] = {"planted": Planted, "tree": Tree, "absorption": Absorption}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_a_function_of_seed_and_step(kind: str) -> None:
    truth, again, other = KINDS[kind](), KINDS[kind](), KINDS[kind](seed=1)  # type: ignore[call-arg]
    assert isinstance(truth, Batches)
    assert truth.batch(3).shape == (truth.rows, truth.d_in)
    again.batch(7)
    assert torch.equal(truth.batch(3), again.batch(3))
    assert not torch.equal(truth.batch(3), truth.batch(4))
    assert not torch.allclose(truth.batch(3), other.batch(3))
    assert float(cosines(truth.atoms, other.atoms).abs().max()) < 0.95
    assert torch.allclose(truth.atoms.norm(dim=1), torch.ones(truth.n_atoms), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_the_codes_times_the_atoms(kind: str) -> None:
    truth = KINDS[kind]()
    x, codes = truth.sample(0)
    slow = torch.zeros_like(x)
    for row in range(20):
        for i in range(truth.n_atoms):
            slow[row] += codes[row, i] * truth.atoms[i]
    assert torch.allclose(x[:20], slow[:20], atol=1e-5)


def test_offset_and_noise_are_added() -> None:
    config = {"n_atoms": 64, "d_in": 16, "active": 2.0}
    plain = Planted(PlantedConfig(**config))  # type: ignore[arg-type]
    noisy = Planted(PlantedConfig(**config, noise=0.1), offset=3.0, rows=4096)  # type: ignore[arg-type]
    assert float(plain.offset.norm()) == 0
    assert float(noisy.offset.norm()) == pytest.approx(3)
    x, codes = noisy.sample(0)
    rest = x - codes @ noisy.atoms - noisy.offset
    assert float(rest.std()) == pytest.approx(0.1, rel=0.03)
    assert torch.equal(noisy.atoms, plain.atoms)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_a_dictionary_with_the_same_seed_does_not_start_at_the_truth(kind: str, seed: int) -> None:
    truth = KINDS[kind](seed=seed)  # type: ignore[call-arg]
    sae = Sae(SaeConfig(truth.d_in, truth.n_atoms, rule_args={"k": 2}))
    initialise(sae, truth.batch(0), seed=seed)
    free = Sae(SaeConfig(truth.d_in, truth.n_atoms, rule_args={"k": 2}))
    initialise(free, truth.batch(0), seed=seed + 1000)
    # As far from the truth as a dictionary of another seed, and nowhere on it.
    assert mcc(sae.W_dec, truth.atoms) == pytest.approx(mcc(free.W_dec, truth.atoms), abs=0.05)
    assert float(cosines(sae.W_dec, truth.atoms).abs().max()) < 0.95


@pytest.mark.parametrize("zipf", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("active", [1.0, 8.0, 20.0])
def test_rates_sum_to_the_active_features_and_follow_the_law_below_the_cap(zipf: float, active: float) -> None:
    rates = firing_rates(100, active, zipf).double()
    assert float(rates.sum()) == pytest.approx(active, rel=1e-5)
    assert float(rates.max()) <= LARGEST_RATE + 1e-6
    free = (rates < LARGEST_RATE - 1e-6).nonzero().squeeze(1)
    law = rates[free] * (free + 1.0) ** zipf
    assert torch.allclose(law, law[0].expand_as(law), rtol=1e-4)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_features_fire_at_their_rates_and_together_within_groups(correlation: float) -> None:
    config = PlantedConfig(d_in=16, n_atoms=24, active=4, zipf=0.5, correlation=correlation, groups=4)
    truth = Planted(config, rows=40_000)
    on = (truth.codes(0) != 0).double()
    assert torch.allclose(on.mean(0), truth.rates.double(), atol=0.012)
    joint = torch.corrcoef(on.t())
    group = torch.arange(24) % 4
    same = (group[:, None] == group[None]) & ~torch.eye(24, dtype=torch.bool)
    assert float(joint[group[:, None] != group[None]].abs().max()) < 0.03
    if correlation:
        assert float(joint[same].min()) > 0.1
    else:
        assert float(joint[same].abs().max()) < 0.03


def test_bidirectional_atoms_have_both_signs_and_the_others_one() -> None:
    truth = Planted(PlantedConfig(n_atoms=40, active=8, bidirectional=0.5), rows=4000)
    codes = truth.codes(0)
    negative = (codes < 0).any(0)
    assert torch.equal(negative, truth.two_sided)
    assert int(negative.sum()) == 20
    share = (codes < 0).sum(0)[negative] / (codes != 0).sum(0)[negative]
    assert torch.allclose(share, torch.full_like(share, 0.5), atol=0.08)


@pytest.mark.parametrize("spread", [0.112, 0.12, 0.2, 0.5, 0.9])
def test_spread_is_the_root_mean_square_cosine(spread: float) -> None:
    atoms = Planted(PlantedConfig(spread=spread)).atoms.double()
    gram = cosines(atoms, atoms)
    off = gram[~torch.eye(len(gram), dtype=torch.bool)]
    assert float(off.square().mean().sqrt()) == pytest.approx(spread, rel=1e-3)
    assert rms_cosine(atoms) == pytest.approx(spread, rel=1e-3)


def test_random_atoms_have_the_spread_of_their_width() -> None:
    assert rms_cosine(Planted(PlantedConfig(d_in=64, n_atoms=512)).atoms) == pytest.approx(1 / 8, rel=0.03)


def test_few_atoms_can_be_orthogonal_and_many_cannot() -> None:
    assert welch_bound(16, 16) == 0
    assert rms_cosine(Planted(PlantedConfig(d_in=16, n_atoms=12, active=2, spread=0.0)).atoms) < 1e-3
    with pytest.raises(ValueError, match=r"spread must lie in 0\.1085\.\.0\.95 for 256 atoms .*got 0\.0\."):
        Planted(PlantedConfig(spread=0.0))


def test_the_tree_is_the_one_of_the_paper() -> None:
    truth = Tree(rows=50_000)
    assert truth.parent.tolist() == [-1, 0, 0, 0, -1, 4, 4, 4, -1, 8, 8, 8] + [-1] * 8
    codes = truth.codes(0)
    on = codes != 0
    heads = truth.parent < 0
    assert (on[:, heads].sum(1) == 1).all()
    assert (on[:, ~heads].sum(1) <= 1).all()
    for child in (~heads).nonzero().flatten().tolist():
        parent = int(truth.parent[child])
        assert on[on[:, child], parent].all()
        assert float(on[on[:, parent], child].double().mean()) == pytest.approx(0.2, abs=0.015)
    assert float(on.sum(1).double().mean()) == pytest.approx(1.36, abs=0.01)
    rates = on.double().mean(0)
    assert torch.allclose(rates[[0, 4, 8]], torch.full((3,), 0.2, dtype=torch.double), atol=0.01)
    assert torch.allclose(rates[12:], torch.full((8,), 0.05, dtype=torch.double), atol=0.005)
    assert float(codes[on].mean()) == pytest.approx(1.5, abs=0.01)
    assert float(codes[on].std()) == pytest.approx(0.25, abs=0.01)
    both = on[:, 1]
    assert abs(float(torch.corrcoef(codes[both][:, :2].t())[0, 1])) < 0.08


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.6, 0.9])
def test_siblings_have_the_wanted_cosine_and_levels_are_orthogonal(cosine: float) -> None:
    truth = Tree(TreeConfig(sibling_cosine=cosine))
    assert truth.d_in == truth.n_atoms == 20
    gram = cosines(truth.atoms, truth.atoms)
    for i in range(20):
        for j in range(i):
            wanted = cosine if truth.parent[i] == truth.parent[j] else 0.0
            assert float(gram[i, j]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("siblings", [2, 3, 11])
def test_sibling_weight_solves_its_equation(siblings: int) -> None:
    assert sibling_weight(0.0, siblings) == 0
    for cosine in (0.1, 0.5, 0.9):
        e, m = sibling_weight(cosine, siblings), siblings
        assert (2 * e + (m - 2) * e * e) / (1 + (m - 1) * e * e) == pytest.approx(cosine)


def test_a_child_never_fires_without_its_parent() -> None:
    truth = Absorption(AbsorptionConfig(rate=0.3, child_rate=0.4), rows=20_000)
    codes = truth.codes(0)
    on = codes != 0
    children = (truth.parent >= 0).nonzero().squeeze(1)
    assert (on[:, truth.parent[children]] | ~on[:, children]).all()
    assert float(on[:, truth.parent < 0].double().mean()) == pytest.approx(0.3, abs=0.01)
    given = on[:, children].sum(0) / on[:, truth.parent[children]].sum(0)
    assert torch.allclose(given, torch.full_like(given, 0.4), atol=0.03)
    pairs = on.view(-1, 6, 3)
    assert not (pairs[..., 1] & pairs[..., 2]).any()
    assert float(cosines(truth.atoms, truth.atoms).fill_diagonal_(0).abs().max()) < 1e-6
    fixed = Absorption(AbsorptionConfig(parent_deviation=0.0, child_deviation=0.0)).codes(0)
    assert torch.equal(fixed.unique(), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"active": 0.0}, r"active must lie above 0 and at most 0\.5 · n_atoms = 128, got 0"),
        ({"active": 200.0}, "got 200"),
        ({"zipf": -1.0}, r"zipf must be 0 or more and finite, got -1"),
        ({"noise": math.nan}, "noise must be 0 or more and finite, got nan"),
        ({"correlation": 1.5}, r"correlation must lie in 0\.\.1, got 1\.5"),
        ({"n_atoms": 0}, "n_atoms must be at least 1, got 0"),
    ],
)
def test_a_planted_dictionary_that_cannot_be_drawn_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlantedConfig(**change)  # type: ignore[arg-type]


def test_trees_and_families_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sibling_cosine must lie in 0\.\.1, 1 excluded, got 1"):
        TreeConfig(sibling_cosine=1.0)
    with pytest.raises(ValueError, match="d_in must be at least the number of features, 18, got 8"):
        AbsorptionConfig(d_in=8)
    with pytest.raises(ValueError, match="children of one parent exclude each other"):
        AbsorptionConfig(d_in=64, children=5, child_rate=0.3)
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        Tree(rows=0)


def test_a_training_finds_the_planted_atoms() -> None:
    truth = Planted(PlantedConfig(d_in=16, n_atoms=20, active=1.5), rows=128, offset=1.0)
    sae = Sae(SaeConfig(16, 20, "topk", {"k": 2}))
    training = begin(sae, truth, TrainConfig(tokens=400 * 128, batch=128, lr=1e-2, dead_after=2000))
    before = mcc(sae.W_dec, truth.atoms)
    train(training, truth)
    assert before < 0.75
    assert mcc(sae.W_dec, truth.atoms) > 0.9
