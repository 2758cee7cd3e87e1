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
from jaxtyping import Int
from torch import Tensor

from interp.attribution.patching.cells import PARTS, WITH_HEADS, Cell, Patch, checked_positions, chosen_sites, n_parts
from interp.attribution.patching.effects import Progress
from interp.attribution.patching.measure import Measured, measure_cells
from interp.attribution.result import Attribution
from interp.models import ModelHandle
from interp.names import unknown
from interp.sites import Site
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
    parts: Sequence[str] = ("pos",),
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
            a cell is patched at all of them together.
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
    check_parts(found, parts, neurons)
    where = checked_positions(positions, pairs.n_pos)
    cells = [cell for site in found for cell in cells_of(handle, site, parts, where, neurons)]
    spread = where if positions is not None and "pos" not in parts else None
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
        nodes=nodes_table(cells, effect.per_prompt[: len(cells)]),
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
    places = list(positions) if "pos" in parts else [None]
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


def nodes_table(cells: Sequence[Cell], per_prompt: np.ndarray) -> pa.Table:
    """Return the table `Attribution.nodes` of measured effects [cell prompt]."""
    import pyarrow as pa

    whole = pa.int32()
    mean, error = pa.array(per_prompt.mean(1), pa.float64()), standard_errors(per_prompt)
    columns = {"kind": pa.array([cell.kind for cell in cells], pa.string())}
    columns |= {name: pa.array([getattr(cell, name) for cell in cells], whole) for name in ("layer", *PARTS)}
    columns |= {"latent": pa.nulls(len(cells), whole), "score": mean, "stderr": error}
    columns["per_prompt"] = pa.array(per_prompt.astype(np.float32).tolist(), pa.list_(pa.float32()))
    return pa.table(columns | {"measured": mean, "measured_stderr": error})


def standard_errors(per_prompt: np.ndarray) -> pa.Array:
    """Return the standard error of each row's mean, null where there is one prompt."""
    import pyarrow as pa

    n = per_prompt.shape[1]
    if n < 2:
        return pa.nulls(len(per_prompt), pa.float64())
    return pa.array(per_prompt.std(1, ddof=1) / np.sqrt(n), pa.float64())


def _completeness(together: dict[Site, list[int]], parts: Sequence[str], effect: Measured) -> pa.Table:
    """Return what the cells of each site add up to, beside the effect of all of them at once."""
    import pyarrow as pa

    score = effect.score
    wholes = iter(score[sum(map(len, together.values())) :])
    rows = []
    for site, own in together.items():
        explained = float(score[own].sum())
        total = float(next(wholes)) if len(own) > 1 else explained
        part = "+".join(parts) or "site"
        rows.append((site.kind, site.layer, part, explained, total, total - explained))
    types = [pa.string(), pa.int32(), pa.string(), pa.float64(), pa.float64(), pa.float64()]
    names = ["kind", "layer", "part", "explained", "total", "gap"]
    return pa.table(
        {n: pa.array(column, kind) for n, column, kind in zip(names, zip(*rows, strict=True), types, strict=True)}
    )


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


def token_labels(handle: ModelHandle, pairs: Pairs) -> tuple[str, ...]:
    """Return what stands at each position: its role, or else the token (or id) of the first clean prompt."""
    if pairs.roles:
        return pairs.roles
    ids = pairs.clean[0]
    return tuple(handle.token_strings(ids)) if handle.tokenizer is not None else tuple(map(str, ids.tolist()))
