"""Cells: what is patched. A cell is a site, or its part at one position, of one head or of one neuron.

A patch is one or several cells that are replaced in the same forward. `overwrite` writes the patches of a whole batch,
another one in each row, with a few indexed assignments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models import ModelHandle
from interp.names import unknown
from interp.sites import KINDS, WITH_HEADS, Cell, Site

PARTS = ("pos", "head", "neuron")
"""What a cell may be a part by."""


Patch = tuple[Cell, ...]
"""Cells that are replaced together."""


def as_patch(handle: ModelHandle, given: Cell | Mapping[str, Any] | Iterable[Any], n_pos: int) -> Patch:
    """Return `given` (a cell, a row of nodes, or several of these) as a patch that fits the model and the prompts.

    Raises:
        ValueError: there is no cell, or one lies outside of the model or the prompts.
    """
    if isinstance(given, Cell | Mapping):
        given = [given]
    cells = [cell if isinstance(cell, Cell) else Cell.of(cell) for cell in given]
    if not cells:
        raise ValueError("A patch needs at least one cell, got none.")
    return tuple(checked(handle, cell, n_pos) for cell in cells)


def checked(handle: ModelHandle, cell: Cell, n_pos: int) -> Cell:
    """Return `cell` with its position counted from the start.

    Raises:
        ValueError: the model has no such site, head or neuron, or the prompts no such position.
    """
    handle.check_site(cell.site)
    if cell.head is not None and cell.kind not in WITH_HEADS:
        raise ValueError(f"{cell.site} has no heads; kinds that have: {', '.join(WITH_HEADS)}.")
    if cell.neuron is not None and cell.kind != "mlp_act":
        raise ValueError(f"{cell.site} has no neurons; only mlp_act has.")
    for name, index, size in (("head", cell.head, n_parts(handle, cell.kind)), ("neuron", cell.neuron, handle.d_mlp)):
        if index is not None and not 0 <= index < size:
            raise ValueError(f"{name} of {cell.site} must lie in 0..{size - 1}, got {index}.")
    return cell if cell.pos is None else replace(cell, pos=checked_positions([cell.pos], n_pos)[0])


def checked_positions(positions: Sequence[int] | None, n_pos: int) -> list[int]:
    """Return the distinct positions, counted from the start and in order; None means all.

    Raises:
        ValueError: one lies outside of the prompts, or there is none.
    """
    if positions is None:
        return list(range(n_pos))
    for position in positions:
        if not -n_pos <= position < n_pos:
            raise ValueError(f"positions must lie in 0..{n_pos - 1} (or -{n_pos}..-1), got {position}.")
    if not positions:
        raise ValueError("positions must name at least one position, got none.")
    return sorted({int(position) % n_pos for position in positions})


def n_parts(handle: ModelHandle, kind: str) -> int:
    """Return the number of heads or neurons of a kind, 0 where it has neither."""
    if kind in WITH_HEADS:
        return handle.n_kv_heads if kind in ("k", "v") else handle.n_heads
    return handle.d_mlp if kind == "mlp_act" else 0


def chosen_sites(handle: ModelHandle, sites: Site | str | Iterable[Site | str]) -> list[Site]:
    """Return the sites that `sites` mean, kind by kind: `attn_out.1`, a kind (all layers), or a pattern `mlp_*.?`.

    Raises:
        ValueError: nothing is named, or something that the model lacks.
    """
    found: dict[Site, None] = {}
    for one in [sites] if isinstance(sites, Site | str) else sites:
        if isinstance(one, str) and one.isidentifier() and one not in KINDS:
            raise ValueError(unknown("kind of site", one, KINDS))
        if isinstance(one, str) and (one in KINDS or set(one) & set("*?[")):
            matched = handle.sites(f"{one}.*" if one in KINDS else one)
            if not matched and one.partition(".")[0] in KINDS:
                handle.check_site(Site(0, one.partition(".")[0]))  # says why the model lacks it
            if not matched:
                raise ValueError(unknown("site", one, map(str, handle.sites())))
        else:
            matched = [handle.check_site(one)]
        found.update(dict.fromkeys(matched))
    if not found:
        raise ValueError("At least one site is needed, such as 'resid_pre' or 'attn_out.2'; got none.")
    return sorted(found, key=lambda site: (KINDS.index(site.kind), site.layer))


def overwrite(
    value: Float[Tensor, "batch some *d"],
    site: Site,
    patches: Sequence[Patch],
    source: Float[Tensor, "row all *d"],
    rows: Int[Tensor, " batch"],
    first: int = 0,
) -> None:
    """Write, in place, into each row of `value` the cells of its patch that belong to `site`.

    Args:
        value: the activation at positions `first`, `first` + 1, ... of each row.
        site: where.
        patches: for each row of the batch.
        source: what is put in, at all positions.
        rows: which row of `source` belongs to each row of the batch.
        first: position that `value` begins at; cells outside of its positions are left out.
    """
    if site.kind == "pattern":  # [batch head query key], where positions are queries
        value, source = value.transpose(1, 2), source.transpose(1, 2)
    width = value.shape[1]
    source = source[:, first : first + width]
    groups: dict[tuple[bool, bool], list[tuple[int, int, int]]] = {}
    for row, patch in enumerate(patches):
        for cell in patch:
            if cell.kind != site.kind or cell.layer != site.layer:
                continue
            if cell.pos is None or first <= cell.pos < first + width:
                key = (cell.pos is None, cell.part is None)
                groups.setdefault(key, []).append((row, (cell.pos or 0) - first, cell.part or 0))
    for (all_positions, whole), entries in groups.items():
        at = torch.tensor(entries, device=value.device).T
        index = [slice(None) if all_positions else at[1], slice(None) if whole else at[2]]
        index = index[:1] if whole else index
        value[(at[0], *index)] = source[(rows[at[0]], *index)].to(value)
