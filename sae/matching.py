"""How much of the truth a dictionary found: matching of atoms, detection of features, hierarchy and absorption.

    MCC          mean |cos| over the pairs of the best one-to-one match (Hungarian method, cost 1 - |cos|)
    uniqueness   distinct best-matching true atoms / latents
    detection    precision, recall and F1 of each latent as a detector of its best-matching true feature
    shrinkage    mean over rows of ||x_hat|| / ||x||

These are the definitions of sae-lens 6.54 (`sae_lens.synthetic`). A feature is on where its value is `!= 0`, in truth
and in the code: with signed codes `> 0` would drop one side of every axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.metrics import Reconstruction
from sae.code import Code
from sae.model import Sae
from sae.synthetic.truth import Synthetic


@dataclass(frozen=True)
class Match:
    """One-to-one pairs of the rows of two sets of atoms; min(len(a), len(b)) of them."""

    a: Int[Tensor, " pairs"]
    """Rows of the first set, ascending."""
    b: Int[Tensor, " pairs"]
    """Their partners in the second."""
    cosine: Float[Tensor, " pairs"]
    """Cosine of each pair, with its sign."""


def cosines(a: Float[Tensor, "n_a d_in"], b: Float[Tensor, "n_b d_in_b"]) -> Float[Tensor, "n_a n_b"]:
    """Return the cosine of every row of `a` with every row of `b`, in float64; 0 for a row of length 0."""
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"Atoms to compare need one width, got {a.shape[1]} and {b.shape[1]}.")
    a, b = (m.detach().double() for m in (a, b))
    tiny = torch.finfo(torch.float64).tiny
    return (a / a.norm(dim=1, keepdim=True).clamp_min(tiny)) @ (b / b.norm(dim=1, keepdim=True).clamp_min(tiny)).t()


def match(a: Float[Tensor, "n_a d_in"], b: Float[Tensor, "n_b d_in"], *, signed: bool = False) -> Match:
    """Return the one-to-one match with the largest summed |cosine| (`signed`: cosine)."""
    from scipy.optimize import linear_sum_assignment

    cosine = cosines(a, b)
    gain = cosine if signed else cosine.abs()
    rows, columns = (torch.from_numpy(index) for index in linear_sum_assignment(gain.cpu().numpy(), maximize=True))
    return Match(rows, columns, cosine.cpu()[rows, columns])


def mcc(a: Float[Tensor, "n_a d_in"], b: Float[Tensor, "n_b d_in"]) -> float:
    """Return the mean |cosine| over the pairs of the best match: 1 is the same set up to order, sign and length."""
    return float(match(a, b).cosine.abs().mean())


def best_matches(atoms: Float[Tensor, "d_sae d_in"], truth: Float[Tensor, "n_atoms d_in"]) -> Int[Tensor, " d_sae"]:
    """Return for each latent the true atom with the largest |cosine|; several latents may share one."""
    return cosines(atoms, truth).abs().argmax(dim=1)


def uniqueness(atoms: Float[Tensor, "d_sae d_in"], truth: Float[Tensor, "n_atoms d_in"]) -> float:
    """Return the number of true atoms that are the best match of some latent, over the number of latents."""
    return len(best_matches(atoms, truth).unique()) / len(atoms)


def shrinkage(x_hat: Float[Tensor, "rows d_in"], x: Float[Tensor, "rows d_in"], *, least: float = 1e-6) -> float:
    """Return the mean of ||x_hat|| / ||x|| over the rows longer than `least`; NaN where there is none."""
    length = x.double().norm(dim=-1)
    kept = length > least
    return float((x_hat.double().norm(dim=-1)[kept] / length[kept]).mean())


class Detection:
    """Each latent as a detector of one true feature: counts over batches, then precision, recall and F1."""

    def __init__(self, best: Int[Tensor, " d_sae"]) -> None:
        """Count for the true feature `best[i]` of each latent i (`best_matches`)."""
        self.best = best.cpu()
        self.both = torch.zeros(len(best), dtype=torch.long)
        """Rows in which the latent and its feature are on."""
        self.fired = torch.zeros_like(self.both)
        """Rows in which the latent is."""
        self.present = torch.zeros_like(self.both)
        """Rows in which the feature is."""

    def add(self, code: Code, truth: Float[Tensor, "rows n_atoms"]) -> None:
        """Count the rows of a batch."""
        if len(code) != len(truth):
            raise ValueError(f"Code and truth need the same rows, got {len(code)} and {len(truth)}.")
        latents, rows, values = (t.flatten().cpu() for t in (code.indices, code.rows, code.values))
        on = truth.cpu() != 0
        active = values != 0
        latents, rows = latents[active], rows[active]
        hit = on[rows, self.best[latents]]
        self.fired += torch.bincount(latents, minlength=len(self.best))
        self.both += torch.bincount(latents[hit], minlength=len(self.best))
        self.present += on.sum(0)[self.best]

    @property
    def precision(self) -> Float[Tensor, " d_sae"]:
        """Share of a latent's rows in which its feature is on; 0 for a latent that never fired."""
        return self.both / self.fired.clamp_min(1)

    @property
    def recall(self) -> Float[Tensor, " d_sae"]:
        """Share of its feature's rows in which a latent is on; 0 for a feature that never was."""
        return self.both / self.present.clamp_min(1)

    @property
    def f1(self) -> Float[Tensor, " d_sae"]:
        """Harmonic mean of precision and recall; 0 where both are."""
        return 2 * self.both / (self.fired + self.present).clamp_min(1)


@dataclass(frozen=True)
class HierarchyScores:
    """How far a dictionary's geometry is from that of a tree; matched pairs only."""

    flat_mse: float
    """Mean squared difference from the true cosine, over pairs of features of one level."""
    hierarchical_mse: float
    """The same over pairs of different levels."""


def hierarchy_scores(
    atoms: Float[Tensor, "d_sae d_in"], truth: Float[Tensor, "n_atoms d_in"], level: Int[Tensor, " n_atoms"]
) -> HierarchyScores:
    """Return the flat and the hierarchical error of the matched atoms' Gram matrix (Costa et al. 2025, section 4.1).

    Learned atoms are matched one to one and turned to the side of their partner first.

    Raises:
        ValueError: there are fewer latents than features, so that some feature has no partner.
    """
    if len(atoms) < len(truth):
        raise ValueError(f"The tree has {len(truth)} features; a dictionary of {len(atoms)} latents cannot hold them.")
    found = match(truth, atoms)
    learned = atoms[found.b] * found.cosine.sign().to(atoms)[:, None]
    error = (cosines(learned, learned) - cosines(truth, truth)).square()
    same = level[:, None] == level[None, :]
    apart = ~torch.eye(len(truth), dtype=torch.bool)
    return HierarchyScores(float(error[same & apart].mean()), float(error[~same].mean()))


@dataclass(frozen=True)
class AbsorptionScores:
    """How much children take over from their parents."""

    cosine: float
    """Mean cosine of a child's latent with the true parent: 0 is none where truth is orthogonal."""
    rate: float
    """Share of the rows with parent and child on in which the parent's latent is silent and the child's is not."""


def absorption_scores(
    atoms: Float[Tensor, "d_sae d_in"],
    truth: Float[Tensor, "n_atoms d_in"],
    parent: Int[Tensor, " n_atoms"],
    code: Code,
    values: Float[Tensor, "rows n_atoms"],
) -> AbsorptionScores:
    """Return the absorption scores of a dictionary on a hierarchy.

    Args:
        atoms: of the dictionary.
        truth: true atoms.
        parent: of each true feature, -1 for none.
        code: of some rows.
        values: true codes of the same rows.
    """
    found = match(truth, atoms)
    latent = torch.full((len(truth),), -1)
    latent[found.a] = found.b
    side = torch.zeros(len(truth), dtype=torch.float64)
    side[found.a] = found.cosine.sign()
    children = ((parent >= 0) & (latent >= 0)).nonzero().squeeze(1)
    children = children[latent[parent[children]] >= 0]
    towards = cosines(atoms[latent[children]], truth[parent[children]]).diagonal() * side[children]
    on = code.dense() != 0
    child_on, parent_on = on[:, latent[children]], on[:, latent[parent[children]]]
    both = (values[:, children] != 0) & (values[:, parent[children]] != 0)
    absorbed = both & child_on & ~parent_on
    return AbsorptionScores(float(towards.mean()), int(absorbed.sum()) / max(1, int(both.sum())))


@dataclass(frozen=True)
class Recovery:
    """What a dictionary found of synthetic activations."""

    mcc: float
    """Mean |cosine| of the best one-to-one match."""
    uniqueness: float
    """Distinct best-matching true atoms / latents."""
    precision: float
    """Mean over the latents."""
    recall: float
    """Mean over the latents."""
    f1: float
    """Mean over the latents."""
    shrinkage: float
    """Mean ||x_hat|| / ||x||."""
    fvu: float
    """Fraction of variance unexplained."""
    l0: float
    """Active latents in a row."""
    true_l0: float
    """Active features in a row."""
    dead_share: float
    """Share of the latents that never fired."""


@torch.no_grad()
def recovery(sae: Sae, truth: Synthetic, steps: range = range(10**6, 10**6 + 8)) -> Recovery:
    """Return how much of `truth` the dictionary found, measured on the batches of `steps` (none it was trained on)."""
    detection = Detection(best_matches(sae.W_dec, truth.atoms))
    sums = Reconstruction()
    ratios, l0, true_l0 = [], [], []
    for step in steps:
        x, values = truth.sample(step)
        x_hat, code = sae(x)
        detection.add(code, values)
        sums.add(x, x_hat, truth.offset)
        ratios.append(shrinkage(x_hat, x))
        l0.append(code.l0().double().mean())
        true_l0.append((values != 0).sum(1).double().mean())
    mean = [float(torch.tensor(numbers, dtype=torch.float64).mean()) for numbers in (ratios, l0, true_l0)]
    scores = [float(getattr(detection, name).double().mean()) for name in ("precision", "recall", "f1")]
    return Recovery(
        mcc(sae.W_dec, truth.atoms),
        uniqueness(sae.W_dec, truth.atoms),
        *scores,
        shrinkage=mean[0],
        fvu=sums.fvu,
        l0=mean[1],
        true_l0=mean[2],
        dead_share=float((detection.fired == 0).double().mean()),
    )
