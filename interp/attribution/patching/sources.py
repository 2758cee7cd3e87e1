"""What is put in place of an activation: that of the other run of the pair, zero, a mean, or that of a random prompt.

    corrupt    the pair's other run, at the same position
    zero       zeros
    mean       mean over the reference prompts, position by position (Wang et al. 2022 take prompts of one template)
    resample   one reference prompt drawn for each pair, the same for all of its cells

The reference prompts are the corrupted ones, unless others of the same length are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from interp.attribution.patching.runs import run
from interp.names import unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interp.models import ModelHandle
    from interp.sites import Site
    from interp.tasks import Pairs

BASELINES = ("corrupt", "zero", "mean", "resample")
DIRECTIONS = ("denoising", "noising")


@dataclass(frozen=True, eq=False)
class Plan:
    """Which run is patched, and with what."""

    base: Int[Tensor, "prompt pos"]
    """Token ids of the run that is patched."""
    source: Int[Tensor, "prompt pos"] | None
    """Token ids of the run that the activations come from, prompt by prompt; None for zero and mean."""
    baseline: str
    """One of `BASELINES`."""
    direction: str
    """One of `DIRECTIONS`."""
    means: dict[Site, Tensor]
    """Mean activations [1 pos ...], for the baseline `mean`."""

    @property
    def sign(self) -> int:
        """Sign that makes the effect of the clean activation out of m(patched) - m(base)."""
        return 1 if self.direction == "denoising" else -1

    def activations(
        self, handle: ModelHandle, prompts: slice, like: dict[Site, Tensor], view: str
    ) -> dict[Site, Tensor]:
        """Return what is put in at each site of `like` (the base run's activations) for these prompts."""
        if self.source is not None:
            return run(handle, self.source[prompts], list(like), 1, view)[0]
        if self.baseline == "zero":
            return {site: torch.zeros_like(value[:1]).expand_as(value) for site, value in like.items()}
        return {site: self.means[site].to(value).expand_as(value) for site, value in like.items()}


def make_plan(
    handle: ModelHandle,
    pairs: Pairs,
    sites: Sequence[Site],
    *,
    direction: str | None = None,
    baseline: str = "corrupt",
    reference: Int[Tensor, "reference pos"] | None = None,
    batch: int = 64,
    seed: int = 0,
    view: str = "hf",
) -> Plan:
    """Return what to patch with what; ablations (zero, mean, resample) change the clean run.

    Raises:
        ValueError: unknown names, a direction or reference that the baseline does not take, one of another length.
    """
    if baseline not in BASELINES:
        raise ValueError(unknown("baseline", baseline, BASELINES))
    direction = direction or ("denoising" if baseline == "corrupt" else "noising")
    if direction not in DIRECTIONS:
        raise ValueError(unknown("direction", direction, DIRECTIONS))
    if baseline != "corrupt" and direction != "noising":
        raise ValueError(f"The baseline {baseline!r} removes cells from the clean run: direction must be 'noising'.")
    if reference is not None and baseline not in ("mean", "resample"):
        raise ValueError(f"reference is read by the baselines mean and resample only, got baseline {baseline!r}.")
    texts = pairs.corrupt if reference is None else reference
    if texts.ndim != 2 or len(texts) == 0 or texts.shape[1] != pairs.n_pos:
        raise ValueError(
            f"reference must hold prompts of {pairs.n_pos} tokens, as the pairs do, got the shape {list(texts.shape)}."
        )
    if baseline == "corrupt":
        runs = (pairs.corrupt, pairs.clean) if direction == "denoising" else (pairs.clean, pairs.corrupt)
        return Plan(*runs, baseline, direction, {})
    if baseline == "resample":
        source = texts[_drawn(len(pairs), len(texts), seed, others=reference is None).to(texts.device)]
        return Plan(pairs.clean, source, baseline, direction, {})
    means = _means(handle, texts, sites, batch, view) if baseline == "mean" else {}
    return Plan(pairs.clean, None, baseline, direction, means)


def _drawn(prompts: int, references: int, seed: int, others: bool) -> Int[Tensor, " prompt"]:
    """Return a reference for each prompt; `others`: the references are the prompts, and none is drawn for itself."""
    generator = torch.Generator().manual_seed(seed)
    if others and references > 1:
        return (torch.arange(prompts) + torch.randint(1, references, (prompts,), generator=generator)) % references
    return torch.randint(references, (prompts,), generator=generator)


def _means(handle: ModelHandle, tokens: Tensor, sites: Sequence[Site], batch: int, view: str) -> dict[Site, Tensor]:
    """Return the mean activation at each site and position over the rows of `tokens`."""
    sums: dict[Site, Tensor] = {}
    for part in tokens.split(batch):
        for site, value in run(handle, part, sites, 1, view)[0].items():
            total = value.double().sum(0, keepdim=True)
            sums[site] = sums[site] + total if site in sums else total
    return {site: total / len(tokens) for site, total in sums.items()}
