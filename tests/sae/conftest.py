"""Rows of a planted dictionary, tiny dictionaries of any rule, and pre-activations one number at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.config import SaeConfig, Scalar
from sae.initialise import initialise
from sae.model import Sae

D_IN, D_SAE = 16, 40


def planted(n: int = 300, seed: int = 1) -> Tensor:
    """Return rows of a planted dictionary; its seed is never the one of an initialisation (0)."""
    g = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(32, D_IN, generator=g), dim=1)
    on = torch.rand(n, 32, generator=g) < 0.1
    return (on * torch.rand(n, 32, generator=g)) @ atoms + 0.3


@pytest.fixture(scope="session")
def rows() -> Callable[..., Tensor]:
    """Return `planted`: rows(n, seed) of width 16."""
    return planted


@pytest.fixture(scope="session")
def built() -> Callable[..., Sae]:
    """Return what builds a dictionary of 40 latents: built(rule, normalise, atoms, **args of the rule)."""

    def build(rule: str, normalise: str = "scalar", atoms: str = "unit", **args: Scalar) -> Sae:
        sae = Sae(SaeConfig(D_IN, D_SAE, rule, args, normalise, atoms))  # type: ignore[arg-type]
        initialise(sae, planted(), seed=0)
        return sae

    return build


@pytest.fixture(scope="session")
def uneven() -> Callable[..., Sae]:
    """Return what gives a dictionary biases, and free atoms lengths, that no initialisation would."""

    def change(sae: Sae) -> Sae:
        g = torch.Generator().manual_seed(2)
        sae.b_enc.data.normal_(std=0.1, generator=g)
        sae.W_dec.data *= 1.0 if sae.unit_atoms else 100 * torch.rand(D_SAE, 1, generator=g) + 50
        return sae

    return change


@pytest.fixture(scope="session")
def preactivations() -> Callable[[Sae, Tensor], list[list[float]]]:
    """Return what gives the pre-activations of raw rows, one number at a time, in units of an atom of length 1."""

    @torch.no_grad()
    def each(sae: Sae, x: Tensor) -> list[list[float]]:
        length = [float(atom.norm()) for atom in sae.W_dec]
        return [
            [
                length[i] * float((row / sae.normaliser.scale - sae.b_dec) @ sae.W_enc[i] + sae.b_enc[i])
                for i in range(sae.d_sae)
            ]
            for row in x
        ]

    return each
