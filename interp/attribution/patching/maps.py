"""Patching maps: the measured effect of every cell of some sites (Wang et al. 2022; Zhang and Nanda 2024).

    denoising   score = m(corrupted run with the clean cell) - m(corrupted run)         what suffices
    noising     score = m(clean run) - m(clean run with the corrupted cell)             what is needed
    ablation    noising with zeros, a mean or another prompt's activation as the cell   what is needed at all

Effects of single cells need not add up. `completeness` compares, for each site, their sum with the measured effect of
all its cells patched at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from interp.attribution.patching.cells import PARTS, Patch, checked_positions, chosen_sites, n_parts
from interp.attribution.patching.effects import Progress
from interp.attribution.patching.measure import Measured, measure_cells
from interp.attribution.result import Attribution
from interp.attribution.tables import completeness_table, nodes_table, token_labels
from interp.models import ModelHandle
from interp.names import unknown
from interp.sites import WITH_HEADS, Cell, Site
from interp.tasks import Metric, Pairs

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_SITES = ("resid_pre", "attn_out", "mlp_out")


def patch_map(
    handle: ModelHandle,
    pairs: Pairs,
    sites: Site | str | Iterable[Site | str] = DEFAULT_SITES,
    *,
    metric: Metric | Callable[[Tensor, Tensor], Tensor] | str | None = None,
    direction: str | None = None,
    baseline: str = "corrupt",
    reference: Int[Tensor, "reference pos"] | None = None,
    parts: Iterable[str] = ("pos",),
    positions: Sequence[int] | None = None,
    neurons: Sequence[int] | None = None,
    batch: int = 64,
    seed: int = 0,
    exact_path: str = "cone",
    on_progress: Progress | None = None,
) -> Attribution:
    """Return the effect of patching each cell, averaged over prompts.

    Args:
        handle: the model.
        pairs: clean and corrupted prompts.
        sites: sites, kinds (all layers) or patterns of sites. With `pattern` everything is run in the bridge.
        metric: a name, a `Metric`, a function of (logits, rows), or None for the task's own.
        direction: `denoising` or `noising`; None: denoising for the baseline corrupt, else noising.
        baseline: `corrupt`, or `zero`, `mean`, `resample` to knock cells out of the clean run.
        reference: prompts for mean and resample, as long as the pairs'; None: the corrupted ones.
        parts: what a cell is a part by: `pos`, `head`, `neuron`. A kind without heads or neurons takes the others;
            () makes one cell of a whole site.
        positions: positions that are patched, negative ones from the end; None: all. Without `pos` among the parts
            a cell is patched at all of them together; rows of nodes can name one position only, so that those of
            several cannot be given to `measure_cells` again.
        neurons: neurons of `mlp_act` that are patched; None: all.
        batch: rows in one forward; the base run of as many prompts is kept at a time.
        seed: of the drawing of `resample`.
        exact_path: `cone` computes only what a patch can change; `full` runs whole forwards.
        on_progress: hears (rows done, rows in all) after each forward; an exception in it stops the map.

    Raises:
        ValueError: a site, part, position or neuron that is not there, unknown names, prompts longer than n_ctx, a
            metric that is no finite number for each prompt.
    """
    found = chosen_sites(handle, sites)
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    check_parts(found, parts, neurons)
    where = checked_positions(positions, pairs.n_pos)
    cells = [cell for site in found for cell in cells_of(handle, site, parts, where, neurons)]
    spread = where if positions is not None and len(where) > 1 and "pos" not in parts else None
    patches = [_spread(cell, spread) for cell in cells]
    together: dict[Site, list[int]] = {site: [] for site in found}
    for i, cell in enumerate(cells):
        together[cell.site].append(i)
    wholes = [tuple(cell for i in own for cell in patches[i]) for own in together.values() if len(own) > 1]
    effect = measure_cells(
        handle, pairs, [*patches, *wholes], metric=metric, direction=direction, baseline=baseline, reference=reference,
        batch=batch, seed=seed, exact_path=exact_path, on_progress=on_progress,
    )  # fmt: skip
    return Attribution(
        method="patching",
        target=effect.metric,
        baseline=baseline,
        direction=effect.direction,
        nodes=measured_nodes(cells, effect.per_prompt[: len(cells)]),
        completeness=_completeness(together, parts, effect),
        tokens=token_labels(handle, pairs),
        values=values_of(effect) | {"cells": float(len(cells))},
        about=about(handle, pairs, effect)
        | {
            "sites": [str(site) for site in found], "parts": list(parts), "batch": batch, "seed": seed,
            "positions": None if positions is None else where,
            "reference": None if reference is None else len(reference),
        },
    )  # fmt: skip


def cells_of(
    handle: ModelHandle,
    site: Site,
    parts: Sequence[str],
    positions: Sequence[int],
    neurons: Sequence[int] | None = None,
) -> list[Cell]:
    """Return the cells of a site by the `parts` that it has: position outside, head or neuron inside."""
    places = list(positions) if "pos" in parts or len(positions) == 1 else [None]
    cells = [Cell(site.kind, site.layer, pos) for pos in places]
    if "head" in parts and site.kind in WITH_HEADS:
        heads = range(n_parts(handle, site.kind))
        return [Cell(cell.kind, cell.layer, cell.pos, head) for cell in cells for head in heads]
    if site.kind == "mlp_act" and ("neuron" in parts or neurons is not None):
        chosen = range(handle.d_mlp) if neurons is None else neurons
        return [Cell(cell.kind, cell.layer, cell.pos, None, neuron) for cell in cells for neuron in chosen]
    return cells


def check_parts(sites: Sequence[Site], parts: Sequence[str], neurons: Sequence[int] | None) -> None:
    """Refuse parts that none of the sites has.

    Raises:
        ValueError: with the parts there are, or the kinds that have them.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(unknown("part", str(part), PARTS))
    kinds = {site.kind for site in sites}
    if "head" in parts and not kinds & set(WITH_HEADS):
        raise ValueError(f"None of {', '.join(sorted(kinds))} has heads; kinds that have: {', '.join(WITH_HEADS)}.")
    if ("neuron" in parts or neurons is not None) and "mlp_act" not in kinds:
        raise ValueError(f"None of {', '.join(sorted(kinds))} has neurons; only mlp_act has.")
    if neurons is not None and (not neurons or len(set(neurons)) < len(neurons)):
        raise ValueError("neurons must be at least one, each once.")


def _spread(cell: Cell, positions: Sequence[int] | None) -> Patch:
    if positions is None:
        return (cell,)
    return tuple(Cell(cell.kind, cell.layer, pos, cell.head, cell.neuron) for pos in positions)


def measured_nodes(cells: Sequence[Cell], per_prompt: Float[np.ndarray, "cell prompt"]) -> pa.Table:
    """Return the table `Attribution.nodes` of cells whose effects were measured."""
    columns = {name: [getattr(cell, name) for cell in cells] for name in ("kind", "layer", *PARTS)}
    return nodes_table(columns, per_prompt, measured=True)


def _completeness(together: dict[Site, list[int]], parts: Sequence[str], effect: Measured) -> pa.Table:
    """Return what the cells of each site add up to, beside the effect of all of them at once."""
    score = effect.score
    wholes = iter(score[sum(map(len, together.values())) :])
    rows = []
    for site, own in together.items():
        explained = float(score[own].sum())
        total = float(next(wholes)) if len(own) > 1 else explained
        rows.append((site.kind, site.layer, "+".join(parts) or "site", explained, total))
    return completeness_table(rows)


def values_of(effect: Measured) -> dict[str, float]:
    """Return the numbers of the whole."""
    return {
        "clean": float(effect.clean.mean()),
        "corrupt": float(effect.corrupt.mean()),
        "prompts": float(len(effect.clean)),
        "rows_run": float(effect.run_rows),
    }


def about(handle: ModelHandle, pairs: Pairs, effect: Measured) -> dict:
    """Return what the result is of."""
    return {
        "model": handle.spec.name, "task": pairs.task, "exact_path": effect.path, "why_full": effect.reason,
    }  # fmt: skip
