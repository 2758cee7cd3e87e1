"""Both models' activations through one dictionary: made once for a batch, however many panels look at it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.compression.panel import Pair, kept_positions
from interp.data import Blocks
from interp.hooks import capture
from interp.metrics import finite_rows
from interp.models import ModelHandle
from interp.sites import Site
from interp.types import Dictionary, SparseCode

SAMPLE_TOKENS = 16_384
"""Tokens whose activations give the mean and the typical norm of a site."""
_BATCH_TOKENS = 2048


class Slots(NamedTuple):
    """The active latents of a code, row by row."""

    rows: Int[Tensor, " active"]
    """Row of each."""
    latents: Int[Tensor, " active"]
    """Latent of each."""
    values: Float[Tensor, " active"]
    """Value of each, never 0."""


class Coded(NamedTuple):
    """What a dictionary makes of the activations of both models at the same positions."""

    kept: Bool[Tensor, "block pos"]
    """Positions that were coded."""
    x: tuple[Tensor, Tensor]
    """Activations (a, b), [rows d_in]."""
    estimates: tuple[Tensor, Tensor]
    """Reconstructions (a, b), [rows d_in]."""
    codes: tuple[Slots, Slots]
    """Codes (a, b)."""


def active_slots(code: Any) -> Slots:
    """Return the active slots of a `SparseCode` or of a dense code [rows d_sae].

    Raises:
        ValueError: the code is neither.
    """
    if isinstance(code, Tensor):
        rows, latents = code.nonzero(as_tuple=True)
        return Slots(rows, latents, code[rows, latents])
    if not isinstance(code, SparseCode):
        raise ValueError(
            f"A code has indices, values and pointers (interp.types.SparseCode) or is a dense tensor [rows d_sae], got "
            f"{type(code).__name__}."
        )
    values, latents = code.values.flatten(), code.indices.flatten()
    device = values.device
    if code.pointers is None:
        rows = torch.arange(len(code.indices), device=device).repeat_interleave(code.indices.shape[1])
    else:
        counts = code.pointers.diff()
        rows = torch.arange(len(counts), device=device).repeat_interleave(counts)
    active = values != 0
    return Slots(rows[active], latents[active], values[active])


def encode_pair(pair: Pair, site: Site, dictionary: Dictionary, longest: float | None = None) -> Coded:
    """Return both models' activations at `site` as `dictionary` sees them.

    Args:
        pair: the batch.
        site: where; the same positions of both models are coded.
        dictionary: reads both.
        longest: leave out rows that are longer than this in either model.
    """

    def make() -> Coded:
        acts = pair.acts_a[site], pair.acts_b[site]
        kept = pair.keep & finite_rows(acts[0]) & finite_rows(acts[1])
        if longest is not None:
            kept = kept & (acts[0].norm(dim=-1) <= longest) & (acts[1].norm(dim=-1) <= longest)
        x = tuple(act[kept] for act in acts)
        (estimate_a, code_a), (estimate_b, code_b) = (dictionary.forward(rows) for rows in x)
        return Coded(kept, (x[0], x[1]), (estimate_a, estimate_b), (active_slots(code_a), active_slots(code_b)))

    return pair.once(("coded", id(dictionary), site, longest), make)


def check_dictionary(dictionary: Dictionary, site: Site, a: ModelHandle, b: ModelHandle) -> None:
    """Raise ValueError unless `dictionary` can read `site` of both models."""
    held = next(dictionary.parameters(), None) if isinstance(dictionary, torch.nn.Module) else None
    if held is not None and held.device != a.device:
        raise ValueError(
            f"The dictionary is on {held.device} and model a ({a.spec.name}) on {a.device}; put both on one "
            f"device, such as by dictionary.to({str(a.device)!r})."
        )
    for name, model in (("a", a), ("b", b)):
        model.check_site(site)
        if dictionary.d_in != model.width(site):
            raise ValueError(
                f"The dictionary reads d_in={dictionary.d_in} numbers, but {site} of model {name} ({model.spec.name}) "
                f"has {model.width(site)}. Take a dictionary of that site."
            )


def typical(handle: ModelHandle, site: Site, blocks: Blocks) -> tuple[Float[Tensor, " d_in"], float]:
    """Return (mean activation, median norm) at `site` over about 16,384 tokens of evenly spread blocks."""
    wanted = max(1, min(len(blocks), SAMPLE_TOKENS // blocks.context))
    part = blocks.select(torch.arange(wanted) * len(blocks) // wanted)
    rows = []
    size = max(1, _BATCH_TOKENS // blocks.context)
    for tokens, kept in zip(part.tokens.split(size), kept_positions(part).split(size), strict=True):
        with capture(handle, [site], stop=True) as taken:
            handle.forward(tokens)
        x = taken[site].flatten(2)
        rows.append(x[kept.to(x.device) & finite_rows(x)])
    x = torch.cat(rows)
    if len(x) == 0:
        return x.new_zeros(x.shape[-1]), 0.0
    return x.double().mean(0).to(x.dtype), float(x.norm(dim=-1).median())


def longest_row(handle: ModelHandle, site: Site, blocks: Blocks, outlier_norm: float | None) -> float | None:
    """Return the norm above which rows are left out: `outlier_norm` times the median norm in model `handle`."""
    return None if outlier_norm is None else outlier_norm * typical(handle, site, blocks)[1]
