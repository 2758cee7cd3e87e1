"""Double dissociation: what two tasks lose when one set of components, or another, is knocked out.

    d_tX   mean over items of (m(clean) - m(clean without X)), over the mean m(clean) - m(corrupted) of task t
    DI     (d_1R - d_2R) + (d_2S - d_1S)

DI is large where knocking out R costs the first task more than the second and knocking out S the reverse; it is 0 where
either set does the same to both. Random pairs of sets, matched in size, kind and layer, say how large it gets anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attribution.patching.measure import measure_cells
from interp.sites import Cell
from interp.tasks.metrics import Custom
from interp.tasks.pairs import NOTHING, Pairs

if TYPE_CHECKING:
    from interp.models import ModelHandle

CellSets = tuple[tuple[Cell, ...], tuple[Cell, ...]]
"""Two sets of components, R and S."""
RESAMPLES = 2000
"""Draws of the bootstrap over items."""


def matched_sets(handle: ModelHandle, sets: CellSets, rng: np.random.Generator) -> CellSets:
    """Return two disjoint random sets: for each head and neuron one of its layer, for each MLP that of any layer."""
    needed: dict[tuple[str, int | None], list[int]] = {}
    for which, chosen in enumerate(sets):
        for cell in chosen:
            needed.setdefault((cell.kind, None if cell.part is None else cell.layer), []).append(which)
    drawn: tuple[list[Cell], list[Cell]] = ([], [])
    for (kind, layer), of in needed.items():
        part = {"mlp_act": "neuron", "head_out": "head"}.get(kind, "")
        count = handle.n_layers if layer is None else handle.d_mlp if part == "neuron" else handle.n_heads
        for which, number in zip(of, rng.choice(count, len(of), replace=False).tolist(), strict=True):
            drawn[which].append(Cell(kind, number) if layer is None else Cell(kind, layer, **{part: number}))
    return tuple(drawn[0]), tuple(drawn[1])


def knock_outs(
    handle: ModelHandle,
    pairs: Pairs,
    sets: Sequence[CellSets],
    *,
    baseline: str = "mean",
    reference: Int[Tensor, "reference pos"] | None = None,
    seed: int = 0,
    right: bool = False,
) -> Float[np.ndarray, "pair_of_sets set item"]:
    """Return what each item loses when each set is knocked out of its clean prompt.

    Args:
        handle: the model.
        pairs: the items.
        sets: pairs of sets, each with one component at least; a set that comes again is measured once.
        baseline: what takes the components' place: `mean`, `resample`, `zero` or `corrupt`.
        reference: prompts for mean and resample; None: the corrupted ones of `pairs`.
        seed: of the drawing of `resample`.
        right: count right answers (1 or 0 for each item) in place of the metric over the task's effect.
    """
    numbers: dict[frozenset[Cell], int] = {}
    index = [[numbers.setdefault(frozenset(one), len(numbers)) for one in pair] for pair in sets]
    patches = [sorted(one, key=lambda cell: (cell.site, cell.part or 0)) for one in numbers]
    found = measure_cells(
        handle, pairs, patches, direction="noising", baseline=baseline, seed=seed,
        reference=reference if baseline in ("mean", "resample") else None, metric=_right(pairs) if right else None,
    )  # fmt: skip
    scale = 1.0 if right else float((found.clean - found.corrupt).mean())
    return found.per_prompt[np.array(index)] / scale


def _right(pairs: Pairs) -> Custom:
    """Return the metric that is 1 where the best right answer beats every wrong one, else 0."""

    def best(logits: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        ids = ids.to(rows.device)[rows]
        return logits[:, -1].gather(-1, ids.clamp(min=0)).masked_fill(ids == NOTHING, -torch.inf).amax(-1)

    def right(logits: Tensor, rows: Tensor) -> Tensor:
        return (best(logits, pairs.correct, rows) > best(logits, pairs.wrong, rows)).to(logits.dtype)

    return Custom(right, "accuracy")


def dissociation(
    drops: Sequence[Float[np.ndarray, "pair_of_sets set _"]], seed: int = 0
) -> tuple[Float[np.ndarray, " pair_of_sets"], tuple[float, float]]:
    """Return (DI of each pair of sets, 95 % interval of the first by bootstrap over the items of both tasks)."""
    first, second = drops[0][:, 0] - drops[0][:, 1], drops[1][:, 1] - drops[1][:, 0]
    rng = np.random.default_rng([seed, 2])
    again = np.zeros(RESAMPLES)
    for values in (first[0], second[0]):
        again += values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(again, (0.025, 0.975))
    return first.mean(1) + second.mean(1), (float(low), float(high))


def mean_interval(values: Float[np.ndarray, " item"], seed: int = 0) -> tuple[float, float, float]:
    """Return (mean, low, high) by bootstrap over items."""
    rng = np.random.default_rng([seed, 3])
    low, high = np.quantile(values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1), (0.025, 0.975))
    return float(values.mean()), float(low), float(high)
