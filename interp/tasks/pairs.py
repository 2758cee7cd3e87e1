"""Clean and corrupted prompts of one task, token by token beside each other.

A pair differs in what the task is about and in nothing else: the same template, the same number of tokens, so that an
activation of one can stand in for that of the other at the same position (symmetric token replacement; Zhang and Nanda
2024, "Towards Best Practices of Activation Patching").
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

NOTHING = -1
"""Fills `correct` and `wrong` where one prompt has fewer alternatives than another."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of prompts for one model, and what it should and should not say after the last token of the clean one."""

    task: str
    """Name of the task."""
    clean: Int[Tensor, "prompt pos"]
    """Token ids of the prompts on which the model does the task."""
    corrupt: Int[Tensor, "prompt pos"]
    """Token ids of the same prompts with what matters replaced."""
    correct: Int[Tensor, "prompt n_correct"]
    """Token ids that are right after a clean prompt; `NOTHING` fills the row."""
    wrong: Int[Tensor, "prompt n_wrong"]
    """Token ids that are wrong there, and right after the corrupted prompt where the task has it so."""
    metric: str = "logit_diff"
    """The task's own metric, a name of `interp.tasks.METRICS`."""
    roles: tuple[str, ...] = ()
    """What stands at each position ("subject", "end"), if it stands there in every prompt; else empty."""

    def __post_init__(self) -> None:
        if self.clean.ndim != 2 or self.clean.numel() == 0:
            raise ValueError(f"clean must hold prompts [prompt pos], got the shape {list(self.clean.shape)}.")
        if self.clean.shape != self.corrupt.shape:
            raise ValueError(
                f"Clean and corrupted prompts must have the same number of tokens, got {list(self.clean.shape)} and "
                f"{list(self.corrupt.shape)} (prompts, tokens). Choose words that are single tokens of this model."
            )
        for name in ("correct", "wrong"):
            ids = getattr(self, name)
            if ids.ndim != 2 or len(ids) != len(self.clean):
                raise ValueError(
                    f"{name} must hold token ids [prompt alternative] for {len(self.clean)} prompts, got the shape "
                    f"{list(ids.shape)}."
                )
        if self.roles and len(self.roles) != self.clean.shape[1]:
            raise ValueError(f"roles must name all {self.clean.shape[1]} positions, got {len(self.roles)} names.")

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def n_pos(self) -> int:
        """Number of tokens of a prompt."""
        return self.clean.shape[1]

    def digest(self) -> str:
        """Return a hash of the prompts and answers."""
        found = hashlib.sha256()
        for name in ("clean", "corrupt", "correct", "wrong"):
            values = getattr(self, name)
            found.update(f"{name}{tuple(values.shape)}".encode() + values.cpu().long().numpy().tobytes())
        return found.hexdigest()[:16]

    def take(self, rows: Sequence[int] | slice | Tensor) -> Pairs:
        """Return the pairs of these rows.

        Raises:
            ValueError: there are none.
        """
        chosen = torch.arange(len(self))[rows]
        parts = {name: getattr(self, name)[chosen] for name in ("clean", "corrupt", "correct", "wrong")}
        return replace(self, **parts)

    def swapped(self) -> Pairs:
        """Return the pairs with clean and corrupted, correct and wrong exchanged."""
        return replace(self, clean=self.corrupt, corrupt=self.clean, correct=self.wrong, wrong=self.correct)
