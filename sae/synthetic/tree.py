"""The tree of the matching-pursuit paper: features that are orthogonal between levels and alike within one.

Twenty features in R^20 (Costa, Fel, Lubana, Tolooshams and Ba 2025, arXiv 2506.03093, section B.1): eleven parents,
mutually exclusive, of which exactly one is on; three of them (P = 0.2 each) have three children each, mutually
exclusive, each on with probability 0.2 given its parent; the other eight (P = 0.05) have none. L0 is 1 or 2, 1.36 in
the mean. Directions start orthonormal; within each set of siblings d_i becomes d_i + e sum_j d_j, at length 1, with the
e that gives two siblings the wanted cosine. Magnitudes of parent and child are independent N(1.5, 0.25^2): with fixed
ones, letting the child absorb its parent would be the best code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.synthetic.truth import Synthetic, choose, magnitudes, stream

INTERNAL = 3
"""Parents with children."""
CHILDREN = 3
"""Children of each of them."""
LEAVES = 8
"""Parents without."""
P_INTERNAL, P_LEAF, P_CHILD = 0.2, 0.05, 0.2


@dataclass(frozen=True)
class TreeConfig:
    """The tree; its shape and probabilities are the paper's."""

    sibling_cosine: float = 0.0
    """Cosine between two siblings; the paper takes 0, 0.3, 0.6 and 0.9. The eleven parents are siblings too."""
    parent_mean: float = 1.5
    """Mean magnitude of a parent."""
    parent_deviation: float = 0.25
    """Its standard deviation."""
    child_mean: float = 1.5
    """Mean magnitude of a child."""
    child_deviation: float = 0.25
    """Its standard deviation."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not 0 <= self.sibling_cosine < 1:
            raise ValueError(f"sibling_cosine must lie in 0..1, 1 excluded, got {self.sibling_cosine}.")
        for name in ("parent_mean", "parent_deviation", "child_mean", "child_deviation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}.")


class Tree(Synthetic):
    """Batches of the tree; atoms are in the paper's order without the root, whose vector is zero."""

    parent: Int[Tensor, " n_atoms"]
    """Each feature's parent, -1 for the children of the root."""
    level: Int[Tensor, " n_atoms"]
    """1 for the eleven parents, 2 for the nine children."""

    def __init__(self, config: TreeConfig | None = None, *, rows: int = 200, seed: int = 0) -> None:
        """Draw the directions; `rows` is the size of a batch (the paper trains on 200)."""
        self.config = config = config or TreeConfig()
        family = [-1] + [0] * CHILDREN
        parents: list[int] = []
        for _ in range(INTERNAL):
            parents += [p if p < 0 else len(parents) for p in family]
        self.parent = torch.tensor(parents + [-1] * LEAVES)
        self.level = torch.where(self.parent < 0, 1, 2)
        n = len(self.parent)
        frame = torch.linalg.qr(torch.randn(n, n, generator=stream(seed, "atoms"), dtype=torch.float64))[0]
        super().__init__(_siblings(frame, self.parent, config.sibling_cosine).float(), rows, seed)
        self.heads = (self.parent < 0).nonzero().squeeze(1)
        has_children = torch.isin(self.heads, self.parent)
        self.head_rates = torch.where(has_children, P_INTERNAL, P_LEAF)

    def draw(self, g: torch.Generator) -> Float[Tensor, "rows n_atoms"]:
        """Return the codes of a batch."""
        config, rows = self.config, torch.arange(self.rows)
        head = self.heads[choose(self.head_rates, self.rows, g).clamp_max(len(self.heads) - 1)]
        child = choose(torch.full((CHILDREN,), P_CHILD), self.rows, g)
        below = torch.isin(head, self.parent) & (child < CHILDREN)
        parent_size = magnitudes((self.rows,), config.parent_mean, config.parent_deviation, g)
        child_size = magnitudes((self.rows,), config.child_mean, config.child_deviation, g)
        codes = torch.zeros(self.rows, self.n_atoms)
        codes[rows, head] = parent_size
        codes[rows[below], (head + 1 + child)[below]] = child_size[below]
        return codes


def sibling_weight(cosine: float, siblings: int) -> float:
    """Return e such that the vectors d_i + e sum_{j != i} d_j of `siblings` orthonormal d have this cosine in pairs.

    (2 e + (m - 2) e^2) / (1 + (m - 1) e^2) = cosine, the root that is 0 at cosine 0.
    """
    if siblings < 2 or cosine == 0:
        return 0.0
    a = siblings - 2 - cosine * (siblings - 1)
    return cosine / (1 + math.sqrt(1 + a * cosine))


def _siblings(
    frame: Float[Tensor, "n_atoms d_in"], parent: Int[Tensor, " n_atoms"], cosine: float
) -> Float[Tensor, "n_atoms d_in"]:
    """Return the orthonormal `frame` with the same cosine between any two children of one parent."""
    atoms = frame.clone()
    for head in parent.unique():
        group = parent == head
        weight = sibling_weight(cosine, int(group.sum()))
        own = frame[group]
        atoms[group] = own + weight * (own.sum(0) - own)
    return atoms / atoms.norm(dim=1, keepdim=True)
