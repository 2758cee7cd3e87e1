"""Exact selection over a whole batch of pre-activations: its largest entries, and the largest of each latent.

    batch_largest    the n largest entries of the matrix, wherever they stand (batch_topk, mutual_choice)
    column_largest   of each latent its own number of largest entries over the rows (feature_choice)

A plain `topk` over 2048 x 4096 entries takes as long as two products with the encoder. A sample of the entries gives a
floor that somewhat more than n of them reach; only strips of entries whose maximum reaches it are opened, and only
what reaches it there is sorted. If the sample misled, the plain way is taken: the result is always the exact one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae import kernels
from sae.budgets import round_counts
from sae.code import Code

if TYPE_CHECKING:
    from sae.model import Sae

HEIGHT = 8
"""Entries of a strip."""
STEP = 61
"""Every how many-th entry the sample takes at first."""
MARGIN = 4.0
"""By how many standard deviations of the sample's count the floor is lowered."""


def batch_largest(pre: Float[Tensor, "rows columns"], n: int) -> Int[Tensor, " n"]:
    """Return the places, ascending in the flattened matrix, of its `n` largest entries (as `topk`: NaN is largest).

    Raises:
        ValueError: n is not in 0..number of entries.
    """
    flat = pre.view(-1)
    if not 0 <= n <= flat.numel():
        raise ValueError(f"n must lie in 0..{flat.numel()} entries of a {list(pre.shape)} matrix, got {n}.")
    places = _candidates(flat, n, pre.shape[-1]) if pre.device.type == "cpu" else None
    if places is None:
        return flat.topk(n, sorted=False).indices.sort().values
    best = flat.index_select(0, places).topk(n, sorted=False).indices
    return places.index_select(0, best).sort().values


def _candidates(flat: Float[Tensor, " entries"], n: int, columns: int) -> Int[Tensor, " some"] | None:
    """Return the places of all entries above a floor that at least `n` reach, None where looking does not pay."""
    total = flat.numel()
    if n * HEIGHT * 4 > total or total % HEIGHT or n < 2 * STEP:
        return None
    step = next(step for step in range(STEP, 2 * STEP + columns, 2) if math.gcd(step, columns) == 1 or columns == 1)
    expected = n / step
    floor = flat[::step].topk(int(expected + MARGIN * math.sqrt(expected)) + 1, sorted=False).values.amin()
    # Strips of entries that are total / HEIGHT apart: their maxima are elementwise, which vectorises.
    width = total // HEIGHT
    strips = flat.view(HEIGHT, width).amax(0).lt(floor).logical_not_().nonzero().squeeze(1)
    if strips.numel() * 4 > width:  # many equal entries
        return None
    places = (strips + torch.arange(0, total, width).unsqueeze(1)).flatten()
    reach = flat.index_select(0, places).lt(floor).logical_not_().nonzero().squeeze(1)
    return places.index_select(0, reach) if reach.numel() >= n else None


def above(pre: Float[Tensor, "batch d_sae"], floor: Float[Tensor, "*d_sae"]) -> Code:
    """Return the CSR code of the entries of `pre` that exceed `floor`, one number or one for each latent."""
    return Code.at(pre, (pre > floor).flatten().nonzero().squeeze(1))


def column_shares(
    columns: Float[Tensor, "d_sae batch"], shares: Float[Tensor, " d_sae"], generator: torch.Generator | None = None
) -> Int[Tensor, " n"]:
    """Return the places of each latent's largest entries, as many as its share of the rows (`budgets.round_counts`)."""
    return column_largest(columns, round_counts(shares, columns.shape[1], generator))


def column_largest(columns: Float[Tensor, "d_sae batch"], counts: Int[Tensor, " d_sae"]) -> Int[Tensor, " n"]:
    """Return the places, positions in the flattened matrix in no order, of the `counts[i]` largest of each row i.

    Rows whose counts lie between the same powers of two are searched together. `columns` are the pre-activations with
    latents as rows (`transposed`), where a latent's entries lie side by side.

    Raises:
        ValueError: a count is not in 0..batch.
    """
    batch = columns.shape[1]
    most = int(counts.max()) if counts.numel() else 0
    if not (most <= batch and int(counts.min()) >= 0):
        raise ValueError(f"counts must lie in 0..batch={batch}, got {int(counts.min())} to {most}; take more rows.")
    found = []
    for power in range(most.bit_length()):
        latents = ((counts >= 2**power) & (counts < 2 ** (power + 1))).nonzero().squeeze(1)
        if latents.numel() == 0:
            continue
        wanted = counts[latents]
        k = int(wanted.max())
        some = columns if len(latents) == len(columns) else columns.index_select(0, latents)
        values, indices = kernels.largest(some, k)
        if int(wanted.min()) < k:
            indices = indices.gather(1, values.argsort(dim=1, descending=True))
        places = latents.unsqueeze(1) * batch + indices
        found.append(places[torch.arange(k, device=columns.device) < wanted.unsqueeze(1)])
    return torch.cat(found) if found else counts.new_zeros(0)


def transposed(x: Float[Tensor, "batch d_in"], sae: Sae) -> Float[Tensor, "d_sae batch"]:
    """Return the pre-activations of normalised rows with latents as rows, without a graph.

    The product costs the same either way round, and turning its result costs a tenth of it.
    """
    with torch.no_grad():
        weight, bias, _ = sae.unit()
        if sae.centre is not None:
            bias = bias - weight @ sae.centre
        return torch.addmm(bias.unsqueeze(1), weight, x.t())


def from_columns(columns: Float[Tensor, "d_sae batch"], places: Int[Tensor, " n"]) -> Code:
    """Return the CSR code of the entries of a transposed matrix at `places`, latents ascending within a row."""
    d_sae, batch = columns.shape
    keys, order = (places % batch * d_sae + places // batch).sort()
    starts = torch.arange(0, (batch + 1) * d_sae, d_sae, device=places.device)
    values = columns.flatten().index_select(0, places.index_select(0, order))
    return Code(keys % d_sae, values, d_sae, torch.searchsorted(keys, starts))


def floors(code: Code) -> Float[Tensor, " d_sae"]:
    """Return for each latent the level above which as many rows lie on average as it is on in; inf where it is off.

    The smallest of m values lies too high for that: where values thin out exponentially, by about 1 / 2m of a scale of
    which the step up to the second smallest is 1 / (m - 1) on average.
    """
    flat, values = code.indices.flatten(), code.values.detach().flatten()
    flat = torch.where(values > 0, flat, code.d_sae)
    empty = values.new_full((code.d_sae + 1,), torch.inf)
    least = empty.scatter_reduce(0, flat, values, "amin")
    others = torch.where(values > least[flat], values, torch.inf)
    step = (empty.scatter_reduce(0, flat, others, "amin") - least).nan_to_num(0.0, posinf=0.0)
    m = torch.bincount(flat, minlength=code.d_sae + 1).clamp_min(1)
    return (least - (m - 1) / (2 * m) * step).clamp_min(0)[:-1]


def follow_floors(code: Code, thresholds: Float[Tensor, " d_sae"], kept: Int[Tensor, " d_sae"], window: int) -> None:
    """Move each latent's running threshold to its floor in `code`, in place, where it is on in it.

    Args:
        code: of a step that is done.
        thresholds: mean floor of the batches that each latent was on in.
        kept: how many they were; counted on.
        window: batches over which the mean runs, at most; 1 or more.
    """
    found = floors(code)
    on = found < torch.inf
    kept += on
    share = 1 / kept.clamp(1, window).to(found.dtype)
    thresholds.copy_(torch.where(on, thresholds.lerp(found, share), thresholds))


def latents_between(code: Code, first: int, end: int) -> Code:
    """Return the slots of `code` whose latents lie in first..end-1, in CSR form, with the graph of their values."""
    flat = code.indices.flatten()
    inside = ((flat >= first) & (flat < end)).nonzero().squeeze(1)
    starts = torch.cat([code.offsets, code.offsets.new_tensor([flat.numel()])])
    return Code(
        flat.index_select(0, inside),
        code.values.flatten().index_select(0, inside),
        code.d_sae,
        torch.searchsorted(inside, starts),
    )
