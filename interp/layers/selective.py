"""Components that serve one task and not another: found by difference of effects, judged by double dissociation.

On one half of the items of either task, effects and their differences D with a permutation null
(`interp.layers.task_effects`) choose two sets: R, the k components of largest D among those with p <= 0.05, and S, the
k of largest -D. On the other half the sets are knocked out, and the dissociation index (`interp.layers.dissociation`)
is compared with that of random sets. After Fartale et al. (2025), whose protocol is known from the abstract only: the
formulas are the project's own.

R and S are disjoint by construction, whatever the tasks share. What says how much they share is `jaccard`: the overlap
of the k components of largest effect on each task by itself, beside what chance gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from interp.attribution.estimates.methods import METHODS
from interp.layers.dissociation import CellSets, dissociation, knock_outs, matched_sets, mean_interval
from interp.layers.task_effects import permutation_p, task_effects
from interp.names import unknown
from interp.sites import Cell
from interp.tasks.accuracy import check_accuracy
from interp.tasks.pairs import Pairs

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.models import ModelHandle

LEVEL = 0.05
"""Largest p of a component that is chosen."""
SETS = ("first", "second")
"""Names of R and S: the task that a set was chosen for."""


@dataclass(frozen=True)
class SelectiveConfig:
    """How components are compared."""

    k: int = 3
    """Components of each set, at most."""
    method: str = "patching"
    """How effects are found, of `interp.attribution.METHODS`; all but patching are estimates."""
    direction: str = "denoising"
    """`denoising`: what suffices for the task; `noising`: what it needs."""
    baseline: str = "mean"
    """What knocks out a set: `mean` or `resample` over the prompts of the first half, `zero`, or `corrupt`."""
    neurons: int = 0
    """Neurons of each task that are components too: those of the largest attribution patching."""
    permutations: int = 1000
    """Permutations of the items' tasks."""
    draws: int = 200
    """Random pairs of sets."""
    share: float = 0.5
    """Share of the items that sets are chosen on; the rest judges them."""
    least: float = 0.7
    """Accuracy below which the model does not do a task and is refused."""
    seed: int = 0
    """Of split, permutations, draws and bootstrap."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(unknown("method", self.method, METHODS))
        for name in ("k", "permutations", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {self.share}.")


@dataclass(frozen=True, eq=False)
class Selective:
    """What was found.

    Tables:
        components: kind, layer, head, neuron; first, second (mean effect on each task), difference, selectivity (the
            difference over the sum of sizes), p, p_any, chosen ("first", "second" or "").
        sets: set, task, drop with low and high, accuracy_drop: what the held-out items lose without the set.
        draws: dissociation of each random pair of sets.
    """

    summary: dict[str, int | float | str | None]
    """`dissociation` with `low` and `high` over items, `p` against random sets, `jaccard`, ...; null where no component
    tells the tasks apart."""
    components: pa.Table
    """Every component."""
    sets: pa.Table
    """What knocking out the sets does."""
    draws: pa.Table
    """The random sets."""
    chosen: CellSets
    """The sets R and S."""
    about: dict[str, Any] = field(default_factory=dict)
    """Tasks, model and method."""


def find_selective(
    handle: ModelHandle,
    first: Pairs,
    second: Pairs,
    config: SelectiveConfig | None = None,
    on_progress: Callable[[str], object] = lambda _: None,
) -> Selective:
    """Return which components serve one of two tasks, and whether they do on items that they were not chosen on.

    Args:
        handle: the model.
        first: pairs of one task, 4 or more.
        second: pairs of the other, 4 or more.
        config: how; None takes the defaults.
        on_progress: hears what is being done; an exception in it stops.

    Raises:
        ValueError: the model does not do a task, there are too few pairs, or k is too large for two sets.
    """
    config, tasks = config or SelectiveConfig(), (first, second)
    accuracy = [_able(handle, pairs, config.least) for pairs in tasks]
    halves = [_halves(pairs, config) for pairs in tasks]
    on_progress("effects of components")
    cells, effects = task_effects(
        handle, [half[0] for half in halves], method=config.method, direction=config.direction, neurons=config.neurons
    )
    if 2 * config.k > len(cells):
        raise ValueError(f"k must lie in 1..{len(cells) // 2}, half of {len(cells)} components, got {config.k}.")
    p, p_any = permutation_p(effects[0], effects[1], permutations=config.permutations, seed=config.seed)
    means = np.stack([one.mean(1) for one in effects])
    chosen = choose(cells, means[0] - means[1], p, config.k)
    on_progress("knock-outs")
    judged, sets, draws = _judged(handle, tasks, halves, chosen, config)
    summary = judged | {
        "jaccard": jaccard(means[0], means[1], config.k),
        "jaccard_chance": config.k / (2 * len(cells) - config.k),
        "components": len(cells), "selective": int((p_any <= LEVEL).sum()),
        "chosen_first": len(chosen[0]), "chosen_second": len(chosen[1]),
        "accuracy_first": accuracy[0], "accuracy_second": accuracy[1],
        "items_first": len(halves[0][1]), "items_second": len(halves[1][1]),
    }  # fmt: skip
    about = {"first": first.task, "second": second.task, "model": handle.spec.name, "method": config.method}
    return Selective(summary, _components(cells, means, p, p_any, chosen), sets, draws, chosen, about)


def choose(
    cells: Sequence[Cell], difference: Float[np.ndarray, " cell"], p: Float[np.ndarray, " cell"], k: int
) -> CellSets:
    """Return (R, S): up to k components of largest difference, and of largest negative one, with p <= `LEVEL`."""
    sets = []
    for sign in (1, -1):
        order = np.argsort(-sign * difference, kind="stable")
        able = [cells[i] for i in order if sign * difference[i] > 0 and p[i] <= LEVEL]
        sets.append(tuple(able[:k]))
    return sets[0], sets[1]


def jaccard(first: Float[np.ndarray, " cell"], second: Float[np.ndarray, " cell"], k: int) -> float:
    """Return the overlap of the k components of largest effect on each task: shared over all."""
    tops = [set(np.argsort(-effects, kind="stable")[:k].tolist()) for effects in (first, second)]
    return len(tops[0] & tops[1]) / len(tops[0] | tops[1])


def _able(handle: ModelHandle, pairs: Pairs, least: float) -> float:
    """Return the accuracy, or refuse the task."""
    found = check_accuracy(handle, pairs)
    if found < least:
        raise ValueError(
            f"{handle.spec.name} does not do the task {pairs.task!r}: {found:.0%} right, and {least:.0%} are needed."
        )
    return found


def _halves(pairs: Pairs, config: SelectiveConfig) -> tuple[Pairs, Pairs]:
    """Return (items to choose on, items to judge on), at least two each."""
    if len(pairs) < 4:
        raise ValueError(f"The task {pairs.task!r} needs 4 pairs or more for two halves, got {len(pairs)}.")
    order = torch.from_numpy(np.random.default_rng([config.seed, len(pairs)]).permutation(len(pairs)))
    count = min(max(round(config.share * len(pairs)), 2), len(pairs) - 2)
    return pairs.take(order[:count].sort().values), pairs.take(order[count:].sort().values)


def _judged(
    handle: ModelHandle,
    tasks: Sequence[Pairs],
    halves: Sequence[tuple[Pairs, Pairs]],
    chosen: CellSets,
    config: SelectiveConfig,
) -> tuple[dict[str, int | float | str | None], pa.Table, pa.Table]:
    """Return (summary, table `sets`, table `draws`) of the sets on the held-out items."""
    import pyarrow as pa

    kinds = (("set", pa.string()), ("task", pa.string()), *((name, pa.float64()) for name in ("drop", "low", "high")))
    schema = pa.schema([*kinds, ("accuracy_drop", pa.float64())])
    if not all(chosen):
        empty: dict[str, int | float | str | None] = dict.fromkeys(
            ("dissociation", "low", "high", "p", "random_mean", "random_std")
        )
        return empty, schema.empty_table(), pa.table({"dissociation": pa.array([], pa.float64())})
    rng = np.random.default_rng([config.seed, 1])
    every = [chosen, *(matched_sets(handle, chosen, rng) for _ in range(config.draws))]
    drops, rows = [], []
    for pairs, (kept, judged) in zip(tasks, halves, strict=True):
        options: dict[str, Any] = {
            "baseline": config.baseline, "reference": torch.cat([kept.clean, kept.corrupt]), "seed": config.seed,
        }  # fmt: skip
        drops.append(knock_outs(handle, judged, every, **options))
        right = knock_outs(handle, judged, every[:1], right=True, **options)
        for i, name in enumerate(SETS):
            mean, low, high = mean_interval(drops[-1][0, i], config.seed)
            rows.append((name, pairs.task, mean, low, high, float(right[0, i].mean())))
    found, (low, high) = dissociation(drops, config.seed)
    own, null = float(found[0]), found[1:]
    summary: dict[str, int | float | str | None] = {
        "dissociation": own, "low": low, "high": high, "p": float((1 + (null >= own).sum()) / (1 + len(null))),
        "random_mean": float(null.mean()), "random_std": float(null.std()),
    }  # fmt: skip
    table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)
    return summary, table, pa.table({"dissociation": null})


def _components(
    cells: Sequence[Cell],
    means: Float[np.ndarray, "task cell"],
    p: Float[np.ndarray, " cell"],
    p_any: Float[np.ndarray, " cell"],
    chosen: CellSets,
) -> pa.Table:
    import pyarrow as pa

    difference, size = means[0] - means[1], np.abs(means).sum(0)
    of = {cell: name for name, part in zip(SETS, chosen, strict=True) for cell in part}
    columns: dict[str, Any] = {"kind": [cell.kind for cell in cells]}
    columns |= {
        name: pa.array([getattr(one, name) for one in cells], pa.int32()) for name in ("layer", "head", "neuron")
    }
    columns |= {"first": means[0], "second": means[1], "difference": difference}
    columns["selectivity"] = np.divide(difference, size, out=np.zeros_like(size), where=size > 0)
    return pa.table(columns | {"p": p, "p_any": p_any, "chosen": [of.get(cell, "") for cell in cells]})
