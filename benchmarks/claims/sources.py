"""Where a claim is measured: synthetic truths, and rows of two small models captured once and kept on disk.

The truth of seed s is drawn from streams hashed from 1000 + s, the initialisation from the plain stream of s: they
share no random number (`sae.synthetic.truth`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.activations import ActivationStore
from interp.data import Blocks, DataSpec, token_blocks
from interp.models import ModelHandle, load_model
from sae.synthetic import Absorption, AbsorptionConfig, Planted, PlantedConfig, Synthetic, Tree, TreeConfig

SITE = "resid_post.2"
HELDOUT_ROWS = 8192
"""Rows of a model that FVU, L0 and dead latents are measured on."""
ERROR_ROWS = 28_672
"""Rows of a model on which maps of the error are fitted (one half) and measured (the other)."""
HELDOUT_BLOCKS = 64
"""Blocks of text that the loss is measured on."""
TEST_STEPS = range(10**6, 10**6 + 32)
"""Batches of a synthetic truth that nothing is trained on."""


@dataclass(frozen=True)
class Where:
    """A source of rows, and the size of the dictionaries that are trained on it."""

    name: str
    """What the table calls it."""
    about: str
    """One line for the reader."""
    d_sae: int
    """Latents."""
    k: int
    """Latents per row."""
    steps: int
    """Optimiser steps."""
    batch: int
    """Rows in a step."""
    lr: float | None = None
    """Peak rate of Adam; None takes the project's law."""
    dead_after: int | None = None
    """Rows of silence after which AuxK helps a latent; None takes the project's default."""

    @property
    def is_model(self) -> bool:
        """Whether the rows are a model's."""
        return self.name in MODELS


MODELS = {"tiny": ("tiny", "demo", 200), "stories": ("stories260K", "stories", 300)}
"""Name -> model, text, batches of 1,024 rows that are captured."""

WHERES = {
    where.name: where
    for where in (
        Where("planted", "128 atoms in R^32, 3 on, Zipf 1", 128, 3, 600, 512),
        Where("even", "64 atoms in R^32, 2 on, equal rates", 64, 2, 1000, 256, 1e-2, 2000),
        Where("axes", "48 two-sided atoms in R^32, 2 on", 48, 2, 1200, 256, 1e-2, 2000),
        Where("tree", "the tree, sibling cosine 0.3", 20, 2, 2000, 200, 1e-2, 2000),
        Where("families", "6 parents, 12 children, varying sizes", 18, 2, 1200, 256, 1e-2, 2000),
        Where("families, fixed", "6 parents, 12 children, parents of size 1", 18, 2, 1200, 256, 1e-2, 2000),
        Where("tiny", "tiny, resid_post.2 (d 192)", 512, 16, 200, 1024),
        Where("stories", "stories260K, resid_post.2 (d 64)", 512, 16, 300, 1024),
    )
}


def truth(where: Where, seed: int) -> Synthetic:
    """Return the synthetic truth of `where` and `seed`."""
    seed, rows = 1000 + seed, where.batch
    if where.name == "planted":
        return Planted(PlantedConfig(d_in=32, n_atoms=128, active=3.0, zipf=1.0), rows=rows, seed=seed)
    if where.name == "even":
        return Planted(PlantedConfig(d_in=32, n_atoms=64, active=2.0), rows=rows, seed=seed)
    if where.name == "axes":
        return Planted(PlantedConfig(d_in=32, n_atoms=48, active=2.0, bidirectional=1.0), rows=rows, seed=seed)
    if where.name == "tree":
        return Tree(TreeConfig(sibling_cosine=0.3), rows=rows, seed=seed)
    deviation = 0.0 if where.name == "families, fixed" else 0.25
    return Absorption(AbsorptionConfig(parent_deviation=deviation), rows=rows, seed=seed)


class Rows:
    """Rows of a model in memory, with the gradient of its loss: each once per epoch, in an order of the seed."""

    gives = ("gradient",)

    def __init__(self, held: dict[str, Tensor], batch: int, seed: int) -> None:
        """Take what `captured` returns."""
        self.x, self.slopes, self.rows, self.seed = held["x"], held["gradient"], batch, seed
        self.d_in = self.x.shape[1]
        self._order: tuple[int, Tensor] = (-1, self.x)

    def _chosen(self, step: int) -> Tensor:
        epoch, place = divmod(step, len(self.x) // self.rows)
        if self._order[0] != epoch:
            g = torch.Generator().manual_seed(7_919 * (self.seed + 1) + epoch)
            self._order = epoch, torch.randperm(len(self.x), generator=g)
        return self._order[1][place * self.rows : (place + 1) * self.rows]

    def batch(self, step: int) -> Tensor:
        """Return the rows of `step`."""
        return self.x[self._chosen(step)]

    def gradient(self, step: int) -> Tensor:
        """Return the gradient of the model's loss at them."""
        return self.slopes[self._chosen(step)]


@cache
def model(name: str) -> tuple[ModelHandle, Blocks, Blocks]:
    """Return (model, blocks of text to train on, held-out ones)."""
    folder, text, _ = MODELS[name]
    if name != "tiny":
        if not (root := os.environ.get("MECHSCOPE_DATA")):
            raise SystemExit(f"{name} is read from the folder that MECHSCOPE_DATA names; set it or leave {name} out.")
        folder, text = f"{root}/models/{folder}", f"{root}/text/{text}"
    handle = load_model(folder)
    train, heldout = token_blocks(handle, DataSpec(text)).split(0.1)
    return handle, train, heldout


@cache
def captured(name: str, store: Path) -> dict[str, Tensor]:
    """Return rows of a model to train on, `x`, and the `gradient` of its loss there; captured once into `store`."""

    def capture() -> dict[str, Tensor]:
        handle, train, _ = model(name)
        source = ActivationStore(handle, train, SITE, batch=1024, gradient=True)
        steps = range(min(MODELS[name][2], source.batches_per_epoch))
        pairs = [(source.batch(step), source.gradient(step)) for step in steps]
        return {"x": torch.cat([x for x, _ in pairs]), "gradient": torch.cat([g for _, g in pairs])}

    return _kept(store / f"{name}.safetensors", capture)


@cache
def heldout(name: str, store: Path) -> Tensor:
    """Return rows of a model's held-out text, captured once into `store`."""

    def capture() -> dict[str, Tensor]:
        handle, _, text = model(name)
        return {"x": ActivationStore(handle, text, SITE, batch=1024).sample(ERROR_ROWS)}

    return _kept(store / f"{name}-heldout.safetensors", capture)["x"]


def _kept(file: Path, capture: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of `file`, which is written first where it is missing."""
    if not file.exists():
        found = capture()
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file(found, part)
        part.replace(file)
    return load_file(file)
