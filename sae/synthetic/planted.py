"""A planted dictionary: how crowded its atoms are, how often and how jointly they fire, which have two sides.

    x = sum_i z_i d_i,     P(z_i != 0) = p_i ∝ 1 / rank_i^zipf,  sum_i p_i = active

`spread` is the root mean square cosine between two atoms: 1 / sqrt(d_in) for random directions, at least the Welch
bound sqrt((n - d) / (d (n - 1))), 1 when all are one. Firing is correlated within groups by a Gaussian copula, so the
rates p_i stay what they are. A bidirectional atom has values of both signs, as the axis of a graded contrast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.synthetic.truth import Synthetic, magnitudes, stream

LARGEST_RATE = 0.5
"""Share of the rows in which one atom fires at most; what a steep Zipf law asks beyond goes to the others."""

LARGEST_SPREAD = 0.95
"""Largest `spread`: beyond it all atoms are one direction for any purpose."""


@dataclass(frozen=True)
class PlantedConfig:
    """A planted dictionary. Widths are counts, values are in units of an atom of length 1."""

    d_in: int = 64
    """Width of the activations."""
    n_atoms: int = 256
    """Features."""
    active: float = 6.0
    """Features that fire in a row, on average."""
    zipf: float = 0.0
    """Exponent of the firing rates over their ranks; 0 gives all the same rate."""
    correlation: float = 0.0
    """Correlation of the Gaussian variables behind two atoms of one group, 0..1."""
    groups: int = 16
    """Groups that fire together; atom i is in group i mod groups."""
    bidirectional: float = 0.0
    """Share of the atoms, 0..1, whose values are negative half of the time."""
    spread: float | None = None
    """Root mean square cosine between two atoms; None leaves them random."""
    deviation: float = 0.25
    """Standard deviation of the magnitudes, whose mean is 1."""
    noise: float = 0.0
    """Standard deviation of the noise on each coordinate."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        for name in ("d_in", "n_atoms", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        most = LARGEST_RATE * self.n_atoms
        if not 0 < self.active <= most:
            raise ValueError(
                f"active must lie above 0 and at most {LARGEST_RATE:g} · n_atoms = {most:g}, got {self.active}."
            )
        for name in ("zipf", "deviation", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}.")
        for name in ("correlation", "bidirectional"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}.")


class Planted(Synthetic):
    """Batches of a planted dictionary."""

    def __init__(
        self, config: PlantedConfig | None = None, *, rows: int = 1024, seed: int = 0, offset: float = 0.0
    ) -> None:
        """Draw the atoms; `rows` is the size of a batch, `offset` the length of a constant added to all."""
        self.config = config = config or PlantedConfig()
        g = stream(seed, "atoms")
        atoms = torch.randn(config.n_atoms, config.d_in, generator=g, dtype=torch.float64)
        atoms = spread_atoms(atoms, config.spread).float()
        super().__init__(atoms, rows, seed, offset=offset, noise=config.noise)
        self.rates = firing_rates(config.n_atoms, config.active, config.zipf)
        self.two_sided = torch.randperm(config.n_atoms, generator=g) < round(config.bidirectional * config.n_atoms)

    def draw(self, g: torch.Generator) -> Float[Tensor, "rows n_atoms"]:
        """Return the codes of a batch."""
        shape, rho = (self.rows, self.n_atoms), self.config.correlation
        common = torch.randn(self.rows, self.config.groups, generator=g)[:, torch.arange(shape[1]) % self.config.groups]
        hidden = math.sqrt(rho) * common + math.sqrt(1 - rho) * torch.randn(shape, generator=g)
        on = hidden > -torch.special.ndtri(self.rates.double()).float()
        values = magnitudes(shape, 1.0, self.config.deviation, g)
        flip = (torch.rand(shape, generator=g) < 0.5) & self.two_sided
        return torch.where(on, torch.where(flip, -values, values), 0.0)


def firing_rates(n_atoms: int, active: float, zipf: float) -> Float[Tensor, " n_atoms"]:
    """Return each atom's firing rate: a Zipf law with the sum `active`, none above `LARGEST_RATE` (water-filled)."""
    weights = torch.arange(1, n_atoms + 1, dtype=torch.float64) ** -zipf
    full = torch.zeros(n_atoms, dtype=torch.bool)
    rates = weights
    for _ in range(n_atoms):
        left = active - LARGEST_RATE * int(full.sum())
        rates = torch.where(full, LARGEST_RATE, weights * left / weights[~full].sum().clamp_min(1e-300))
        over = (rates > LARGEST_RATE) & ~full
        if not over.any():
            break
        full |= over
    return rates.float()


def rms_cosine(atoms: Float[Tensor, "n_atoms d_in"]) -> float:
    """Return the root mean square cosine between two different rows of length 1."""
    n = len(atoms)
    if n < 2:
        return 0.0
    frame = (atoms.t() @ atoms).square().sum()
    return math.sqrt(max(0.0, (float(frame) - n) / (n * (n - 1))))


def welch_bound(n_atoms: int, d_in: int) -> float:
    """Return the least root mean square cosine that `n_atoms` directions in `d_in` dimensions can have."""
    return math.sqrt(max(0.0, n_atoms - d_in) / (d_in * max(1, n_atoms - 1)))


def spread_atoms(atoms: Float[Tensor, "n_atoms d_in"], spread: float | None) -> Float[Tensor, "n_atoms d_in"]:
    """Return `atoms` at length 1, moved so that their root mean square cosine is `spread` (None: not moved).

    Less than random: towards the nearest tight frame. More: along a spectrum that falls as a power of its index.

    Raises:
        ValueError: no such set of directions exists.
    """
    unit = atoms / atoms.norm(dim=1, keepdim=True)
    if spread is None:
        return unit
    least = welch_bound(*atoms.shape)
    if not least - 1e-9 <= spread <= LARGEST_SPREAD:
        raise ValueError(
            f"spread must lie in {least:.4g}..{LARGEST_SPREAD} for {atoms.shape[0]} atoms in {atoms.shape[1]} "
            f"dimensions, got {spread}."
        )
    start = rms_cosine(unit)
    tight = unit
    if spread < start:
        for _ in range(200):
            u, _, v = torch.linalg.svd(tight, full_matrices=False)
            tight = u @ v
            tight = tight / tight.norm(dim=1, keepdim=True)
            if rms_cosine(tight) <= spread:
                break
    index = torch.arange(1, atoms.shape[1] + 1, dtype=atoms.dtype)

    def moved(t: float) -> Tensor:
        raw = (1 - t) * unit + t * tight if spread < start else unit * index ** (-8 * t)
        return raw / raw.norm(dim=1, keepdim=True)

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        short = (rms_cosine(moved(middle)) > spread) == (spread < start)
        low, high = (middle, high) if short else (low, middle)
    return moved(high)
