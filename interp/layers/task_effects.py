"""What components do for tasks: effects of heads, MLPs and neurons in units of each task, and whether tasks differ.

    E_t(c)   effect of component c on an item of task t, over the task's mean m(clean) - m(corrupted)
    D(c)     mean E_1(c) - mean E_2(c)
    p        share of permutations, in which items exchange their task, whose |D| is as large
    p_any    the same for the largest |D| / s of any component, s the spread of its effects over all items

Items are exchangeable only if the tasks do not differ in anything, so that a component whose effects on one task are
merely more spread out can be found as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from interp.attribution.estimates.methods import METHODS
from interp.sites import Cell
from interp.tasks.pairs import Pairs

if TYPE_CHECKING:
    from interp.models import ModelHandle


def task_effects(
    handle: ModelHandle,
    tasks: Sequence[Pairs],
    *,
    method: str = "patching",
    direction: str = "denoising",
    neurons: int = 0,
) -> tuple[list[Cell], list[Float[np.ndarray, "cell _"]]]:
    """Return the components (all heads and MLPs, and neurons) and their effect on every item of each task.

    Args:
        handle: the model.
        tasks: pairs of each task.
        method: of `interp.attribution.METHODS`; all but patching are estimates.
        direction: `denoising`: what suffices for the task; `noising`: what it needs.
        neurons: neurons of each task that are components too: those of the largest attribution patching.

    Raises:
        ValueError: the corrupted prompts of a task are no worse than its clean ones.
    """
    chosen = _chosen_neurons(handle, tasks, neurons)
    cells, found = [], []
    for pairs in tasks:
        cells, effects, scale = _attributed(handle, pairs, method, direction, chosen)
        if not scale > 0:
            raise ValueError(
                f"The metric of the task {pairs.task!r} is no larger on clean prompts than on corrupted ones (the "
                f"difference is {scale:.3g}), so that there is no effect to share out."
            )
        found.append(effects / scale)
    return cells, found


def _attributed(
    handle: ModelHandle, pairs: Pairs, method: str, direction: str, neurons: dict[int, list[int]]
) -> tuple[list[Cell], Float[np.ndarray, "cell item"], float]:
    """Return (cells, effect on each item, mean m(clean) - m(corrupted))."""
    options: dict[str, Any] = {"direction": direction} | ({} if method == "patching" else {"check": 0})
    call = METHODS[method]
    whole = call(handle, pairs, ["head_out", "mlp_out"], parts=("head",), **options)
    rows = whole.nodes.to_pylist()
    for layer, own in neurons.items():
        some = {"neurons": own} if method == "patching" else {}  # an estimate gives all at the cost of one
        of_layer = call(handle, pairs, [f"mlp_act.{layer}"], parts=("neuron",), **some, **options)
        rows += [row for row in of_layer.nodes.to_pylist() if row["neuron"] in set(own)]
    effects = np.array([row["per_prompt"] for row in rows], dtype=float)
    return [Cell.of(row) for row in rows], effects, whole.effect


def _chosen_neurons(handle: ModelHandle, tasks: Sequence[Pairs], count: int) -> dict[int, list[int]]:
    """Return {layer: neurons}: those of the largest attribution patching on any of the tasks."""
    chosen: set[tuple[int, int]] = set()
    for pairs in tasks if count else ():
        top = METHODS["atp"](handle, pairs, "mlp_act", parts=("neuron",), check=0).top(count).to_pylist()
        chosen |= {(row["layer"], row["neuron"]) for row in top}
    layers = sorted({layer for layer, _ in chosen})
    return {layer: sorted(neuron for at, neuron in chosen if at == layer) for layer in layers}


def permutation_p(
    first: Float[np.ndarray, "cell item_1"],
    second: Float[np.ndarray, "cell item_2"],
    *,
    permutations: int = 1000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """Return (p, p_any) of each component; the smallest possible is 1 / (permutations + 1).

    p_any is below 0.05 for any component at all with a chance of 5 % where the tasks do not differ.
    """
    pooled, n = np.concatenate([first, second], 1), first.shape[1]
    rng = np.random.default_rng([seed, 0])
    weights = np.full((pooled.shape[1], permutations), -1 / second.shape[1])
    for column in weights.T:
        column[rng.permutation(len(column))[:n]] = 1 / n
    spread = pooled.std(1, keepdims=True)
    # A component whose effects do not vary cannot tell the tasks apart; rounding alone would.
    pooled = np.where(spread > 1e-9 * np.abs(pooled).max(initial=0.0), pooled / np.where(spread > 0, spread, 1), 0.0)
    observed = np.abs(pooled[:, :n].mean(1) - pooled[:, n:].mean(1))[:, None] - 1e-9
    drawn = np.abs(pooled @ weights)
    return tuple((1 + (of >= observed).sum(1)) / (1 + permutations) for of in (drawn, drawn.max(0)))  # type: ignore[return-value]
