"""What all synthetic activations share: x = z D + offset + noise, with z and D known.

The truth draws from streams of its own, derived from (seed, purpose, step) by a hash. A dictionary initialised with the
same number draws from the plain stream of that seed, so it can never start from the atoms that it is to find (one that
does looks as if it had learnt them).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor


def stream(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """Return the generator of one purpose at one step, always the same and unrelated to `manual_seed(seed)`."""
    name = f"mechscope.synthetic/{purpose}/{seed}/{step}".encode()
    # torch's generator on a CPU looks at 32 bits of its seed.
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:4], "little"))


class Synthetic(ABC):
    """Batches of activations with known atoms and codes; a pure function of (seed, step)."""

    def __init__(
        self, atoms: Float[Tensor, "n_atoms d_in"], rows: int, seed: int, *, offset: float = 0.0, noise: float = 0.0
    ) -> None:
        """Keep the truth.

        Args:
            atoms: directions of the features, of length 1.
            rows: activations in a batch.
            seed: of everything that is drawn.
            offset: length of a constant vector, in a random direction, that is added to every activation.
            noise: standard deviation of the Gaussian noise added to each coordinate.
        """
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}.")
        for name, value in (("offset", offset), ("noise", noise)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be 0 or more and finite, got {value}.")
        self.atoms, self.rows, self.seed, self.noise = atoms, rows, seed, noise
        direction = torch.randn(self.d_in, generator=stream(seed, "offset"))
        self.offset = offset * direction / direction.norm()

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.atoms.shape[1]

    @property
    def n_atoms(self) -> int:
        """Number of features in truth."""
        return self.atoms.shape[0]

    @abstractmethod
    def draw(self, g: torch.Generator) -> Float[Tensor, "rows n_atoms"]:
        """Return the codes of a batch, all randomness from `g`."""

    def codes(self, step: int) -> Float[Tensor, "rows n_atoms"]:
        """Return the true codes of the batch of `step`; 0 is silent."""
        return self.draw(stream(self.seed, "codes", step))

    def batch(self, step: int) -> Float[Tensor, "rows d_in"]:
        """Return the activations of `step`."""
        return self.sample(step)[0]

    def sample(self, step: int) -> tuple[Float[Tensor, "rows d_in"], Float[Tensor, "rows n_atoms"]]:
        """Return (activations, true codes) of `step`."""
        codes = self.codes(step)
        x = codes @ self.atoms + self.offset
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=stream(self.seed, "noise", step))
        return x, codes


def magnitudes(shape: tuple[int, ...], mean: float, deviation: float, g: torch.Generator) -> Float[Tensor, "*shape"]:
    """Return positive values |N(mean, deviation^2)|."""
    return (mean + deviation * torch.randn(shape, generator=g)).abs()


def choose(probabilities: Float[Tensor, " options"], rows: int, g: torch.Generator) -> Int[Tensor, " rows"]:
    """Return for each row one option; what is missing to a sum of 1 is the option `len(probabilities)`."""
    edges = probabilities.double().cumsum(0)
    if edges[-1] > 1:
        edges = edges / edges[-1]  # a sum of 1 up to rounding
    return torch.searchsorted(edges, torch.rand(rows, generator=g, dtype=torch.float64), right=True)
