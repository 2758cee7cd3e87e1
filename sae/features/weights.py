"""What the weights alone say about a latent: the tokens it argues for, and the latents that point its way.

Direct logit weights of an atom d, through the model's final norm with gain g:

    w = W_U (g * (d - mean d))    (RMSNorm: no mean)    minus its mean over the vocabulary

Left out: the division by the norm's scale (one positive factor per token), the norm's bias, the dictionary's own
scale, and everything that later layers make of d. At `head_out` and `mlp_act` d first goes through the block's own
output matrix; `q`, `k`, `v` and `pattern` have no direct path to the logits, and no weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.layers.norms import final_norm
from interp.models.handle import ModelHandle
from interp.models.taps import BLOCKS, TAPS
from interp.sites import Site

RESIDUAL = frozenset({"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"})
"""Kinds of site whose activations are vectors of the residual stream."""
PRODUCT_FLOATS = 1 << 24
"""Largest product of a chunk of latents with all others or the vocabulary, in floats (64 MiB in float32)."""


class Extremes(NamedTuple):
    """The ends of every latent's direct logit weights."""

    top: Float[Tensor, "d_sae n"]
    """Largest weights, descending."""
    top_ids: Int[Tensor, "d_sae n"]
    """Their tokens."""
    bottom: Float[Tensor, "d_sae n"]
    """Smallest weights, ascending."""
    bottom_ids: Int[Tensor, "d_sae n"]
    """Their tokens."""


def unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return the rows at length 1; rows of zeros stay zero."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def chunks(count: int, width: int) -> Iterator[slice]:
    """Yield slices of `count` rows so that rows times `width` stays within PRODUCT_FLOATS."""
    step = max(1, PRODUCT_FLOATS // max(width, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


@torch.no_grad()
def nearest(rows: Float[Tensor, "d_sae d"], n: int) -> tuple[Float[Tensor, "d_sae n"], Int[Tensor, "d_sae n"]]:
    """Return (cosines, latents) of the n rows with the largest cosine to each row, itself left out."""
    directions = unit(rows.float())
    n = min(n, len(rows) - 1)
    found = []
    for part in chunks(len(rows), len(rows)):
        cosines = directions[part] @ directions.t()
        cosines[torch.arange(len(cosines)), torch.arange(part.start, part.stop)] = -torch.inf
        found.append(cosines.topk(n, dim=1))
    return torch.cat([values for values, _ in found]).cpu(), torch.cat([indices for _, indices in found]).cpu()


@torch.no_grad()
def direct_logits(handle: ModelHandle, site: Site, atoms: Float[Tensor, "d_sae d_in"], n: int) -> Extremes | None:
    """Return the n largest and smallest direct logit weights of each atom, None where there is no direct path."""
    written = to_residual(handle, site, atoms)
    if written is None:
        return None
    norm = final_norm(handle)
    unembed = handle.unembed().float()
    n = min(n, len(unembed))
    found: list[list[Tensor]] = [[], [], [], []]
    for part in chunks(len(written), len(unembed)):
        rows = written[part].to(unembed.device)
        weights = (norm.centre(rows.double()) * norm.gain).float() @ unembed.t()
        weights -= weights.mean(1, keepdim=True)
        pieces = (*weights.topk(n, dim=1), *weights.topk(n, dim=1, largest=False))
        for column, piece in zip(found, pieces, strict=True):
            column.append(piece.cpu())
    return Extremes(*(torch.cat(column) for column in found))


def to_residual(
    handle: ModelHandle, site: Site, atoms: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "d_sae d_model"] | None:
    """Return what atoms at `site` add to the residual stream, None if they reach it through attention only."""
    if site.kind in RESIDUAL:
        return atoms.float()
    if site.kind not in ("head_out", "mlp_act"):
        return None
    path = f"{BLOCKS[handle.family]}.{site.layer}.{TAPS[handle.family][site.kind].module}"
    matrix = handle.module.get_submodule(path)
    rows = atoms.to(matrix.weight.device, matrix.weight.dtype)
    return (matrix(rows) - matrix(torch.zeros_like(rows[:1]))).float()
