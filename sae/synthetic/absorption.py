"""Parents and children that invite absorption: a child never fires without its parent.

    P(parent) = rate        P(child | parent) = child_rate        x = m_p d_p + m_c d_c

A sparse code is cheaper when one latent holds d_p + d_c for the rows in which both are on and the parent's latent stays
silent there (Chanin et al. 2024, arXiv 2409.14507). That is optimal when magnitudes are fixed; when they vary on their
own (Costa et al. 2025, table 1: parent N(1, 0.25^2), child mean 0.1, 0.5 or 1, deviation 1/40) it costs error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.synthetic.truth import Synthetic, choose, magnitudes, stream


@dataclass(frozen=True)
class AbsorptionConfig:
    """Parents, each with some children that exclude each other."""

    d_in: int = 32
    """Width of the activations."""
    parents: int = 6
    """Features that fire independently of each other."""
    children: int = 2
    """Children of each."""
    rate: float = 0.2
    """Share of the rows in which a parent fires."""
    child_rate: float = 0.25
    """Share of those in which a certain child of it does, too."""
    parent_deviation: float = 0.25
    """Standard deviation of a parent's magnitude, whose mean is 1; 0 makes absorption the best code."""
    child_mean: float = 1.0
    """Mean of a child's magnitude."""
    child_deviation: float = 1 / 40
    """Its standard deviation."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        for name in ("parents", "children"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        features = self.parents * (1 + self.children)
        if self.d_in < features:
            raise ValueError(f"d_in must be at least the number of features, {features}, got {self.d_in}.")
        if not 0 < self.rate < 1:
            raise ValueError(f"rate must lie between 0 and 1, got {self.rate}.")
        if not 0 < self.child_rate * self.children <= 1 + 1e-9:
            raise ValueError(
                f"child_rate · children must lie above 0 and at most 1, got {self.child_rate * self.children:g}: "
                "children of one parent exclude each other."
            )
        for name in ("parent_deviation", "child_mean", "child_deviation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}.")


class Absorption(Synthetic):
    """Batches of parents and children, orthogonal to each other; each parent is followed by its children."""

    def __init__(self, config: AbsorptionConfig | None = None, *, rows: int = 512, seed: int = 0) -> None:
        """Draw the directions; `rows` is the size of a batch."""
        self.config = config = config or AbsorptionConfig()
        family = 1 + config.children
        n = config.parents * family
        frame = torch.linalg.qr(torch.randn(config.d_in, n, generator=stream(seed, "atoms"), dtype=torch.float64))[0]
        super().__init__(frame.t().float().contiguous(), rows, seed)
        index = torch.arange(n)
        self.parent = torch.where(index % family == 0, -1, index - index % family)
        self.level = torch.where(self.parent < 0, 1, 2)

    def draw(self, g: torch.Generator) -> Float[Tensor, "rows n_atoms"]:
        """Return the codes of a batch."""
        config = self.config
        shape = (self.rows, config.parents)
        on = torch.rand(shape, generator=g) < config.rate
        rates = torch.full((config.children,), config.child_rate)
        which = choose(rates, self.rows * config.parents, g).view(shape)
        child_on = torch.nn.functional.one_hot(which, config.children + 1)[..., :-1].bool() & on[..., None]
        parent = torch.where(on, magnitudes(shape, 1.0, config.parent_deviation, g), 0.0)
        size = magnitudes((*shape, config.children), config.child_mean, config.child_deviation, g)
        child = torch.where(child_on, size, 0.0)
        return torch.cat([parent[..., None], child], dim=-1).flatten(1)
