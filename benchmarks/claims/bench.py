"""Dictionaries of one source and seed, trained when first asked for and shared by all claims; and what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.claims.sources import (
    HELDOUT_BLOCKS,
    HELDOUT_ROWS,
    SITE,
    TEST_STEPS,
    Rows,
    Where,
    captured,
    heldout,
    model,
    truth,
)
from interp.hooks import splice
from interp.metrics import Reconstruction, next_token_loss
from sae.code import Code
from sae.config import SaeConfig, Scalar, TrainConfig
from sae.model import Sae
from sae.synthetic import Synthetic
from sae.training import begin, train_together


@dataclass(frozen=True)
class Recipe:
    """A rule with its arguments; `d_sae` None is the source's."""

    rule: str
    args: tuple[tuple[str, Scalar], ...] = ()
    d_sae: int | None = None
    normalise: str = "scalar"


def recipe(rule: str, *, d_sae: int | None = None, normalise: str = "scalar", **args: Scalar) -> Recipe:
    """Return a rule with its arguments."""
    return Recipe(rule, tuple(args.items()), d_sae, normalise)


class Bench:
    """One source of rows at one seed."""

    def __init__(self, where: Where, seed: int, store: Path) -> None:
        """Make the source; nothing is trained yet."""
        self.where, self.seed, self.k = where, seed, where.k
        self.truth: Synthetic | None = None
        self.codes: Tensor | None = None
        if where.is_model:
            self.source: Rows | Synthetic = Rows(captured(where.name, store), where.batch, seed)
            self.many = heldout(where.name, store)
            self.test = self.many[:HELDOUT_ROWS]
        else:
            self.source = self.truth = known = truth(where, seed)
            drawn = [known.sample(step) for step in TEST_STEPS]
            self.test, self.codes = (torch.cat(parts) for parts in zip(*drawn, strict=True))
            self.many = self.test
        self._trained: dict[Recipe, Sae] = {}

    @property
    def known(self) -> tuple[Synthetic, Tensor]:
        """The truth, and its codes of the test rows."""
        if self.truth is None or self.codes is None:
            raise ValueError(f"{self.where.name} has no known truth.")
        return self.truth, self.codes

    def train(self, recipes: Mapping[str, Recipe]) -> dict[str, Sae]:
        """Return the dictionaries by the names of their recipes; those that are new are trained in one pass."""
        new = [one for one in dict.fromkeys(recipes.values()) if one not in self._trained]
        where, trainings = self.where, []
        for one in new:
            sae = Sae(
                SaeConfig(self.source.d_in, one.d_sae or where.d_sae, one.rule, dict(one.args), one.normalise)  # type: ignore[arg-type]
            )
            config = TrainConfig(
                tokens=where.steps * where.batch,
                batch=where.batch,
                lr=where.lr,
                dead_after=where.dead_after,
                seed=self.seed,
            )
            trainings.append(begin(sae, self.source, config))
        if new:
            self._trained |= dict(zip(new, train_together(trainings, self.source), strict=True))
        return {name: self._trained[one] for name, one in recipes.items()}

    @torch.no_grad()
    def code(self, sae: Sae) -> Code:
        """Return the code of the test rows."""
        return sae.encode(self.test)

    def basics(self, name: str, sae: Sae) -> dict[str, float]:
        """Return `name` fvu, `name` l0 and `name` dead (share of latents silent on all test rows)."""
        code = self.code(sae)
        return {
            f"{name} fvu": self.fvu(sae, code),
            f"{name} l0": float(code.l0().double().mean()),
            f"{name} dead": float((~code.fired()).double().mean()),
        }

    @torch.no_grad()
    def fvu(self, sae: Sae, code: Code) -> float:
        """Return the pooled FVU of a code on the test rows."""
        sums = Reconstruction()
        sums.add(self.test, sae.decode(code), self.test.mean(0))
        return sums.fvu

    def equal_l0(self, a: tuple[str, Sae], b: tuple[str, Sae]) -> dict[str, float]:
        """Return the FVU of both at the lower L0 of the two: the other's smallest values are silenced until it is met.

        Names: `A fvu at B`, `B fvu at A`.
        """
        (name_a, sae_a), (name_b, sae_b) = a, b
        codes = [self.code(sae) for sae in (sae_a, sae_b)]
        least = min(int((code.values != 0).sum()) for code in codes)
        first, second = (self.fvu(sae, largest(code, least)) for sae, code in zip((sae_a, sae_b), codes, strict=True))
        return {f"{name_a} fvu at {name_b}": first, f"{name_b} fvu at {name_a}": second}

    @torch.no_grad()
    def spliced_loss(self, sae: Sae | None, pieces: int = 16) -> float:
        """Return the model's loss on held-out text in nats per token, the reconstruction in place of x (not at BOS)."""
        handle, _, text = model(self.where.name)
        blocks = text.select(torch.arange(min(HELDOUT_BLOCKS, len(text))))
        usable, total, count = blocks.keep & ~blocks.bos(), 0.0, 0
        parts = zip(blocks.tokens.long().split(pieces), blocks.keep.split(pieces), usable.split(pieces), strict=True)
        for tokens, keep, able in parts:
            if sae is None:
                logits = handle.logits(tokens)
            else:
                with splice(handle, SITE, sae, keep=able):
                    logits = handle.logits(tokens)
            losses = next_token_loss(logits, tokens)[keep[:, 1:] & keep[:, :-1]]
            total, count = total + float(losses.double().sum()), count + losses.numel()
        return total / count


def largest(code: Code, count: int) -> Code:
    """Return `code` with its `count` largest values, by size, and silence in the place of the others."""
    size = code.values.abs().flatten()
    kept = torch.zeros_like(size, dtype=torch.bool)
    kept[size.topk(min(count, size.numel()), sorted=False).indices] = True
    return code.with_values(torch.where(kept.view_as(code.values), code.values, 0.0))
