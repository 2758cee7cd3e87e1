"""What patches do to the metric of a base run: which rows have to be run, in which batches, and by which engine.

The rows of a batch are pairs of a patch and a prompt. Where a patch puts in what is there already, to the bit, nothing
is run and the effect is exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.attribution.patching.cells import Patch
from interp.attribution.patching.cone import Cone, boundary
from interp.attribution.patching.full import FullForwards
from interp.models import ModelHandle
from interp.sites import Site
from interp.tasks import Metric, measured

Progress = Callable[[int, int], object]
"""Hears (rows done, rows in all); raise in it to stop."""
Engine = Cone | FullForwards


class Count:
    """Rows done, told to whoever listens."""

    def __init__(self, total: int, listener: Progress | None) -> None:
        self.done, self.run, self.total, self.listener = 0, 0, total, listener

    def add(self, rows: int, run: bool) -> None:
        """Note that `rows` more are done, and whether they were run."""
        self.done += rows
        self.run += rows if run else 0
        if self.listener is not None and rows:
            self.listener(self.done, self.total)


def make_engine(handle: ModelHandle, tokens: Tensor, reads: int, view: str, reason: str) -> tuple[Engine, str]:
    """Return what runs patches of these prompts, and why by whole forwards, if so (`reason`: it is known already)."""
    if not reason:
        cone = Cone(handle, tokens, reads)
        if cone.faithful:
            return cone, ""
        reason = (
            f"the model is more than its blocks: run one by one, they miss its logits by {cone.error:.3g} roundings"
        )
    return FullForwards(handle, tokens, reads, view), reason


def evaluate(
    engine: Engine,
    patches: Sequence[Patch],
    acts: dict[Site, Tensor],
    source: dict[Site, Tensor],
    base: Float[Tensor, " prompt"],
    of: Int[Tensor, " row"],
    numbers: Int[Tensor, " prompt"],
    metric: Metric,
    batch: int,
    count: Count,
) -> Float[Tensor, "patch row"]:
    """Return m(patched) - m(base) of every patch with every row of `source`.

    Args:
        engine: what runs patched prompts.
        patches: the patches.
        acts: activations of the base run, [prompt pos ...].
        source: what is put in, [row pos ...].
        base: metric of the base run.
        of: which prompt each row of `source` is put into.
        numbers: the number of each prompt among all pairs, which the metric is told.
        metric: the metric.
        batch: rows in one forward.
        count: hears of the progress.
    """
    starts = first_changes(patches, acts, source, of)
    n_pos = engine.n_pos if isinstance(engine, Cone) else engine.tokens.shape[1]
    effects = torch.zeros(starts.shape, dtype=base.dtype, device=base.device)
    count.add(int((starts == n_pos).sum()), run=False)
    for first, entries in _grouped(starts, patches, n_pos, isinstance(engine, Cone)):
        for chunk in entries.split(batch):
            at, rows = chunk.T
            prompts = of.to(base.device)[rows.to(base.device)]
            logits = engine([patches[i] for i in at.tolist()], prompts, source, rows.to(base.device), first)
            value = measured(metric, logits, numbers[prompts])
            effects[at.to(base.device), rows.to(base.device)] = value - base[prompts]
            count.add(len(chunk), run=True)
    return effects


def _grouped(
    starts: Int[Tensor, "patch row"], patches: Sequence[Patch], n_pos: int, by_start: bool
) -> list[tuple[int, Int[Tensor, "entry two"]]]:
    """Return (first changed position, [patch row] of what has to be run), patches of low layers first."""
    if not by_start:
        entries = (starts < n_pos).nonzero()
        return [(0, entries)] if len(entries) else []
    order = torch.tensor(sorted(range(len(patches)), key=lambda i: min(map(boundary, patches[i]))))
    found = []
    for first in range(n_pos):
        entries = (starts[order] == first).nonzero()
        if len(entries):
            found.append((first, torch.stack([order[entries[:, 0]], entries[:, 1]], 1)))
    return found


def first_changes(
    patches: Sequence[Patch], acts: dict[Site, Tensor], source: dict[Site, Tensor], of: Int[Tensor, " row"]
) -> Int[Tensor, "patch row"]:
    """Return the first position at which a patch changes anything in a row, the number of positions where nowhere."""
    changed = {site: _changed(site, acts[site][of.to(acts[site].device)], source[site]).cpu() for site in source}
    n_pos = next(iter(changed.values())).shape[1]
    places = torch.arange(n_pos)
    found = torch.full((len(patches), len(of)), n_pos)
    for i, patch in enumerate(patches):
        for cell in patch:
            here = changed[cell.site]
            if here.ndim == 3:
                here = here.any(-1) if cell.part is None else here[..., cell.part]
            if cell.pos is None:
                firsts = torch.where(here, places, n_pos).amin(1)
            else:
                firsts = torch.where(here[:, cell.pos], cell.pos, n_pos)
            found[i] = torch.minimum(found[i], firsts)
    return found


def _changed(site: Site, old: Tensor, new: Tensor) -> Bool[Tensor, "row pos *part"]:
    """Return where two activations differ: by position, and by head or neuron where the kind has them."""
    differs = old != new
    if site.kind == "pattern":
        return differs.any(-1).transpose(1, 2)
    if site.kind == "mlp_act":
        return differs
    return differs.any(-1)
