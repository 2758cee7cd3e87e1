"""What skipping a block does to the blocks after it, and to the output (Csordas, Manning and Potts 2025).

Block s is left out at some positions: its output there is its input. With c_l = h_{l+1} - h_l what block l adds,

    E(s, l)  = |c_l - c_l^{skip s}| / |c_l|            out(s) = |p - p^{skip s}|_2 and KL(p || p^{skip s})

per token; p are next-token probabilities, so that the first is at most sqrt 2. E(s, l) = 0 for l < s, E(s, s) = 1.

    current   s is left out everywhere and the change is measured everywhere
    future    s is left out at positions before t, and measured from t on: what later tokens take from it
    total     blocks after s see each other's changes
    local     block l gets its own input less c_s, all else as it was: what it reads of c_s itself

`part` leaves out attention alone or the MLP alone. BOS and position 0 are never left out and never measured. The
published aggregate is the largest value over tokens and prompts, which one odd token decides; the mean and the 95th
percentile stand beside it.

    D = sum_s s e_s / sum_s e_s,  e_s = sum_l E(s, l) / (L - 1 - s) or out(s)           depth score, counted in blocks
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.activations.outliers import norms
from interp.layers.lens import Prediction, row_chunk
from interp.layers.stream import is_parallel
from interp.layers.suffix import Base, Suffix, wide
from interp.layers.tokens import upper
from interp.models.handle import ModelHandle
from interp.names import unknown
from interp.sites import Site

PARTS = ("block", "attn", "mlp")
"""What can be left out."""
LEAST = 1e-6
"""Least size of c_l in a denominator, as published."""


@dataclass(frozen=True, eq=False)
class SkipEffects:
    """Effects of leaving out each block, token by token; NaN where nothing is measured."""

    change: Float[Tensor, "skipped affected batch pos"]
    """E(s, l)."""
    out_l2: Float[Tensor, "skipped batch pos"]
    """L2 distance of the next-token probabilities, at most sqrt 2."""
    out_kl: Float[Tensor, "skipped batch pos"]
    """KL(p || p without s), in nats."""


@torch.no_grad()
def skip_effects(
    handle: ModelHandle,
    tokens: Int[Tensor, "batch pos"],
    *,
    part: str = "block",
    until: Int[Tensor, " batch"] | None = None,
    keep: Bool[Tensor, "batch pos"] | None = None,
    local: bool = False,
    suffix: Suffix | None = None,
    base: Base | None = None,
) -> SkipEffects:
    """Return the effects of leaving out each block, one after the other.

    Args:
        handle: the model.
        tokens: token ids, padding at the end.
        part: `block`, `attn` or `mlp`.
        until: for each row the position t before which a block is left out, and from which on the change is measured;
            None: left out and measured at all positions.
        keep: positions that count, neither padding nor BOS; None: all but position 0, which never does.
        local: take the direct effect, without what blocks do to each other.
        suffix: what runs the blocks; None makes one.
        base: what the unchanged model makes of `tokens`; None runs it.

    Raises:
        ValueError: an unknown part, or a t that leaves nothing to skip or to measure.
    """
    if part not in PARTS:
        raise ValueError(unknown("part", part, PARTS))
    suffix = Suffix(handle, tokens) if suffix is None else suffix
    base = suffix.base(tokens) if base is None else base
    left_out, measured = _masks(tokens, keep, until)
    left_out, measured = left_out.to(handle.device), measured.to(handle.device)
    layers = handle.n_layers
    change = torch.zeros(layers, layers, *tokens.shape, dtype=torch.float64)
    outs = torch.full((2, layers, *tokens.shape), math.nan, dtype=torch.float64)
    sizes = [norms(base.contribution(layer)).clamp_min(LEAST) for layer in range(layers)]
    run = _local if local else _total
    clean = Output(base.logits, measured)
    for s in range(layers):
        changed, last = run(suffix, base, s, part, left_out)
        for layer, contribution in changed.items():
            change[s, layer] = norms(base.contribution(layer) - contribution) / sizes[layer]
        l2, kl = clean.distance(suffix.run(last, layers, tokens).logits)
        outs[0, s][measured.cpu()], outs[1, s][measured.cpu()] = l2, kl
    change[:, :, ~measured.cpu()] = math.nan
    return SkipEffects(change, outs[0], outs[1])


def _masks(
    tokens: Tensor, keep: Tensor | None, until: Tensor | None
) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Return (where blocks are left out, where changes are measured)."""
    keep = torch.ones_like(tokens, dtype=torch.bool) if keep is None else keep.clone()
    keep[:, 0] = False
    if until is None:
        return keep, keep
    places = torch.arange(tokens.shape[1], device=keep.device)[None]
    bounds = until.to(keep.device)[:, None]
    left_out, measured = keep & (places < bounds), keep & (places >= bounds)
    if not (left_out.any(1) & measured.any(1)).all():
        row = int((~(left_out.any(1) & measured.any(1))).nonzero()[0, 0])
        raise ValueError(
            f"until must lie between tokens that count, position 1 or more before it, got {int(until[row])} in row "
            f"{row} of {int(keep[row].sum())} such tokens."
        )
    return left_out, measured


def _without(suffix: Suffix, base: Base, s: int, part: str, left_out: Tensor) -> Tensor:
    """Return the stream after block s with it, or a part of it, left out."""
    before, after = base.stream[s], base.stream[s + 1]
    where = left_out[..., None]
    if part == "block":
        return torch.where(where, before, after)
    if part == "mlp":
        return torch.where(where, before + base.attn[s], after)
    if is_parallel(suffix.handle):  # the MLP beside it does not see attention
        return torch.where(where, before + base.mlp[s], after)
    silenced = torch.where(where, 0.0, base.attn[s])
    return suffix.run(before, s, base.tokens, last=s, edits={Site(s, "attn_out"): silenced}).stream[0]


def _total(suffix: Suffix, base: Base, s: int, part: str, left_out: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """Return (what blocks from s on add with it left out, the stream at the end)."""
    x = _without(suffix, base, s, part, left_out)
    stream = [base.stream[s], x, *suffix.run(x, s + 1, base.tokens, reads=0).stream]
    return {s + i: wide(b) - wide(a) for i, (a, b) in enumerate(pairwise(stream))}, stream[-1]


def _local(suffix: Suffix, base: Base, s: int, part: str, left_out: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """Return the same where each block sees the loss of s alone."""
    gone = {"attn": base.attn[s], "mlp": base.mlp[s], "block": base.stream[s + 1] - base.stream[s]}[part]
    gone = torch.where(left_out[..., None], gone, 0.0)
    found = {s: base.contribution(s) - wide(gone)}
    for layer in range(s + 1, suffix.handle.n_layers):
        x = base.stream[layer] - gone
        found[layer] = wide(suffix.run(x, layer, base.tokens, last=layer).stream[0]) - wide(x)
    return found, base.stream[-1] - gone


class Output:
    """The unchanged next-token distributions at some positions, and how far others are from them."""

    def __init__(self, logits: Float[Tensor, "batch pos d_vocab"], where: Bool[Tensor, "batch pos"]) -> None:
        self.where = where
        rows = logits[where]
        self.parts = [Prediction(part) for part in rows.split(row_chunk(logits.shape[-1], logits.device))]

    def distance(self, logits: Float[Tensor, "batch pos d_vocab"] | None) -> tuple[Tensor, Tensor]:
        """Return (L2 distance, KL) of each of the positions."""
        if logits is None:
            raise ValueError("Distances need the logits of the changed run, got none.")
        rows = logits[self.where]
        found = []
        for clean, part in zip(self.parts, rows.split(row_chunk(rows.shape[-1], rows.device)), strict=True):
            other = Prediction(part)
            found.append((torch.linalg.vector_norm(other.p - clean.p, dim=-1), clean.kl_to(other).clamp_min(0)))
        l2, kl = (torch.cat(column).double().cpu() for column in zip(*found, strict=True))
        return l2, kl


class SkipMatrix:
    """Effects of many batches, from which means, 95th percentiles and largest values follow."""

    def __init__(self) -> None:
        """Begin without tokens."""
        self._change: list[Tensor] = []
        self._outs: list[Tensor] = []
        self._sequence: list[Tensor] = []
        self._seen = 0

    def update(self, found: SkipEffects) -> None:
        """Add the effects of one batch."""
        measured = torch.isfinite(found.out_l2).any(0) | torch.isfinite(found.change).flatten(0, 1).any(0)
        self._change.append(found.change[:, :, measured])
        self._outs.append(torch.stack([found.out_l2, found.out_kl])[:, :, measured])
        rows = torch.arange(len(measured))[:, None].expand_as(measured) + self._seen
        self._sequence.append(rows[measured])
        self._seen += len(measured)

    @property
    def tokens(self) -> int:
        """Tokens that were measured."""
        return sum(len(rows) for rows in self._sequence)

    def change(self) -> dict[str, Float[Tensor, "skipped affected"]]:
        """Return E as `mean`, `p95` and `max` over tokens; NaN where none was finite."""
        return aggregates(torch.cat(self._change, -1))

    def output(self) -> dict[str, Float[Tensor, "measure skipped"]]:
        """Return out(s), L2 first and KL second, as `mean`, `p95` and `max` over tokens."""
        return aggregates(torch.cat(self._outs, -1))

    def output_by_sequence(self) -> tuple[Float[Tensor, "seq skipped_l2_kl"], Int[Tensor, " seq"]]:
        """Return (sums over the tokens of each sequence of L2 and KL [seq, 2 L], tokens of each)."""
        values, rows = torch.cat(self._outs, -1).flatten(0, 1), torch.cat(self._sequence)
        usable = torch.isfinite(values).all(0)
        sums = torch.zeros(self._seen, len(values), dtype=torch.float64).index_add_(
            0, rows[usable], values[:, usable].T
        )
        return sums, torch.bincount(rows[usable], minlength=self._seen)


def aggregates(values: Float[Tensor, "*cell token"]) -> dict[str, Float[Tensor, "*cell"]]:
    """Return `mean`, `p95` and `max` over the finite values of each cell; NaN where there is none."""
    flat = values.reshape(-1, values.shape[-1])
    found = torch.full((3, len(flat)), math.nan, dtype=torch.float64)
    for i, row in enumerate(flat):
        finite = row[torch.isfinite(row)]
        if len(finite):
            found[:, i] = torch.stack([finite.mean(), torch.tensor(upper(finite), dtype=finite.dtype), finite.max()])
    return {name: row.view(values.shape[:-1]) for name, row in zip(("mean", "p95", "max"), found, strict=True)}


def layer_effects(change: Float[Tensor, "skipped affected"]) -> Float[Tensor, " skipped"]:
    """Return e_s: the mean effect of block s on the blocks after it; 0 of the last, which has none."""
    layers = len(change)
    later = torch.triu(torch.nan_to_num(change), diagonal=1).sum(1)
    return later / (layers - 1 - torch.arange(layers)).clamp_min(1)


def depth_score(effects: Float[Tensor, " layer"]) -> float:
    """Return D, the mean layer weighted by effect: 0 to L - 1; NaN where there is no effect."""
    total = float(effects.sum())
    return float((torch.arange(len(effects)) * effects).sum()) / total if total > 0 else math.nan
