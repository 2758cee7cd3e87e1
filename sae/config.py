"""What a dictionary is and how it is trained, as frozen dataclasses (no torch here: `--help` reads them)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from interp.config import to_json

Scalar = bool | int | float | str

TargetKind = Literal["input", "transcoder", "crosscoder", "end_to_end"]


@dataclass(frozen=True)
class TargetConfig:
    """What a dictionary reconstructs (`sae.targets`)."""

    kind: TargetKind = "input"
    """The input; another site (transcoder); several sites or models at once (crosscoder); the input, so that the
    model's logits stay (end_to_end)."""
    d_out: int | None = None
    """Transcoder: width of what it writes; None takes d_in."""
    skip: bool = False
    """Transcoder: whether a linear map of the input is added."""
    blocks: tuple[int, ...] = ()
    """Crosscoder: widths of the blocks that make up a row, one for each site, or model and site."""
    models: int = 1
    """Crosscoder: 2 where the first half of the blocks is of one model and the second half of another."""
    downstream: float = 0.0
    """End to end: weight of the relative error at later sites, averaged over them, beside the KL's 1."""
    local: float = 0.0
    """End to end: weight of the mean squared error at the site itself."""

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other, and numbers out of range."""
        for name, kinds in (
            ("d_out", ("transcoder",)),
            ("skip", ("transcoder",)),
            ("blocks", ("crosscoder",)),
            ("models", ("crosscoder",)),
            ("downstream", ("end_to_end",)),
            ("local", ("end_to_end",)),
        ):
            if self.kind not in kinds and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"{name} belongs to the target {kinds[0]!r}, not to {self.kind!r}; leave it out.")
        if self.d_out is not None and self.d_out < 1:
            raise ValueError(f"d_out must be at least 1, got {self.d_out}.")
        if self.kind == "crosscoder" and (not self.blocks or min(self.blocks) < 1):
            raise ValueError(f"A crosscoder needs the width of each block, at least 1, got {list(self.blocks)}.")
        if self.models not in (1, 2) or len(self.blocks) % self.models:
            raise ValueError(
                f"models must be 1 or 2 and divide the {len(self.blocks)} blocks of the crosscoder, got {self.models}."
            )
        for name in ("downstream", "local"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")


@dataclass(frozen=True)
class SaeConfig:
    """Everything that `Sae(config)` needs; saved in the run, so that a dictionary can be rebuilt from its file."""

    d_in: int
    """Width of the activation."""
    d_sae: int
    """Number of latents."""
    rule: str = "topk"
    """Sparsity rule, a name in `sae.rules.RULES`."""
    rule_args: dict[str, Scalar] = field(default_factory=dict)
    """Arguments of the rule, such as {"k": 32}; what is missing takes the rule's default for this width."""
    normalise: Literal["scalar", "layer", "none"] = "scalar"
    """How activations are scaled before the encoder (`sae.normaliser`)."""
    atoms: Literal["unit", "free"] = "unit"
    """Whether training holds atoms at length 1, or leaves their length free and counts a latent's value in units of it
    (`sae.model.Sae.unit`); a finished dictionary has unit atoms either way."""
    target: TargetConfig = field(default_factory=TargetConfig)
    """What is reconstructed."""

    def __post_init__(self) -> None:
        """Refuse widths below 1, and blocks that do not make up the row."""
        for name in ("d_in", "d_sae"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.target.blocks and sum(self.target.blocks) != self.d_in:
            raise ValueError(f"The blocks {list(self.target.blocks)} must add up to d_in={self.d_in}.")

    @property
    def d_out(self) -> int:
        """Width of the reconstruction."""
        return self.target.d_out or self.d_in

    def __to_json__(self) -> dict[str, Any]:
        """Return the fields, and the target only where it is not the input.

        Runs that were made before there were targets so keep their identity.
        """
        fields = {name: to_json(getattr(self, name)) for name in self.__dataclass_fields__}
        if self.target == TargetConfig():
            del fields["target"]
        return fields


@dataclass(frozen=True)
class TrainConfig:
    """How a dictionary is trained."""

    tokens: int = 4_000_000
    """Activations to train on, in rows; repeats count."""
    batch: int = 2048
    """Rows in a step."""
    lr: float | None = None
    """Peak rate of Adam; None takes `default_lr`."""
    warmup: float = 0.02
    """Share of the steps over which the rate rises from 0."""
    decay: float = 0.2
    """Share of the steps, at the end, over which the rate falls to 0."""
    clip: float = 1.0
    """Largest gradient norm over all parameters."""
    aux: float = 1 / 32
    """Weight of AuxK; 0 turns it off."""
    dead_after: int | None = None
    """Rows of silence after which a latent counts as dead; None takes `default_dead_after`."""
    seed: int = 0
    """Of the initialisation, the batches and whatever a rule draws."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        if self.batch < 1 or self.tokens < self.batch:
            raise ValueError(f"tokens must be at least batch={self.batch}, got {self.tokens}; ask for more tokens.")
        for name, least in (("aux", 0), ("dead_after", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"{name} must be {least} or more, got {value}.")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, got {value}.")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of the steps and must lie in 0..1, got {getattr(self, name)}.")

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.tokens // self.batch


def default_k(d_in: int, d_sae: int) -> int:
    """Return the latents per token to start from: 32 at GPT-2 small's width, growing with its square root."""
    return max(1, min(d_sae, round(32 * math.sqrt(d_in / 768))))


def default_lr(d_sae: int, steps: int) -> float:
    """Return Adam's peak rate: 2e-4 / sqrt(d_sae / 2^14) (Gao et al. 2024, fig. 3), raised for short runs.

    The law was fitted on runs of many thousand steps. In short ones the rate with the lowest FVU grows with about
    1 / sqrt(steps) (`benchmarks/learning_rate.py`), and so does the share of dead latents; this takes the rate up by
    sqrt(20,000 / steps), at most 10 times, which gives most of the gain and keeps latents alive.
    """
    return 2e-4 / math.sqrt(d_sae / 2**14) * min(10.0, max(1.0, math.sqrt(20_000 / max(1, steps))))


def default_dead_after(tokens: int) -> int:
    """Return the rows of silence that make a latent dead: 10M (Gao et al. 2024), or a tenth of a short run."""
    return min(10_000_000, max(1, tokens // 10))
