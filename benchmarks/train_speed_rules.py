"""A step of any rule, for train_speed.py --rules.

Every rule starts in the middle of a training (step 1000 of 2000), after some steps in which running thresholds settle.
Rules whose number of active latents is not set (`relu` and the like) start with about half of all and are slow until
their penalty has worked: `l0` says what was measured.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from sae.batches import Batch
from sae.config import SaeConfig, Scalar, TrainConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.rules import RULES
from sae.training import Training

HELD = 4
"""Batches held in memory and used in turn."""
STEP, STEPS, SETTLING = 1000, 2000, 4
TOP_K = ("topk", "batch_topk", "mutual_choice", "feature_choice", "abs_topk", "matryoshka", "switch", "group_max")
"""Rules of which at least `WANTED` of the limit is wanted."""
WANTED = 0.33


class Side:
    """A training of one rule."""

    def __init__(self, rule: str, data: Tensor, d_sae: int, k: int, batch: int, lr: float) -> None:
        """Start in the middle of a training on rows `data`, and let what runs settle."""
        args: dict[str, Scalar] = {"k": k} if "k" in inspect.signature(RULES[rule]).parameters else {}
        sae = Sae(SaeConfig(data.shape[1], d_sae, rule, args, "none"))
        initialise(sae, data[: 2 * batch].cpu(), seed=0)
        how = TrainConfig(tokens=STEPS * batch, batch=batch, lr=lr, warmup=0, aux=0.0)
        self.training = Training(sae.to(data.device).train(), how)
        self.training.step = STEP
        self.batches = [self.batch(x) for x in data[: HELD * batch].split(batch)]
        self.metrics: dict[str, Tensor | float] = {}
        for _ in range(SETTLING):
            self.step()

    def batch(self, x: Tensor) -> Batch:
        """Return rows with what the rule needs beside them."""
        return Batch(x, gradient=torch.randn_like(x)) if "gradient" in self.training.needs else Batch(x)

    def step(self) -> None:
        """Take one step."""
        self.metrics = self.training.advance(self.batches[self.training.step % HELD])

    @property
    def l0(self) -> float:
        """Active latents in a row of the last batch."""
        return float(self.metrics["l0"])
