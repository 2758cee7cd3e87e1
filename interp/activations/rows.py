"""Rows: which positions of which blocks are captured, in what order, and the pass that captures them.

An epoch visits the blocks in some order; its rows are the usable positions (no padding, no BOS when that is dropped)
of those blocks one after the other. Any stretch [first, last) of that sequence can be captured on its own, which is
what makes batches and shards pure functions of their number. A block at the edge of a stretch is run again for the
next one: at most one block per stretch.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.activations.outliers import near, norms, typical_norm
from interp.data.blocks import Blocks
from interp.hooks import capture
from interp.metrics import finite_rows, next_token_loss
from interp.sites import Site

if TYPE_CHECKING:
    from interp.models import ModelHandle

FORWARD_TOKENS = {"cpu": 2048}
"""Tokens per forward pass by device type: what keeps a CPU's caches warm and a GPU busy."""
_FORWARD_TOKENS_ELSEWHERE = 32_768
_LOGIT_FLOATS = 1 << 24
"""Most logits of a pass that keeps them for its gradient, in floats (64 MiB in float32, held a few times over)."""

REASONS = ("padding", "bos", "nonfinite", "outliers")
"""Why a position does not become a row, in the order in which it is asked."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Consecutive rows of an epoch, captured at every site in one pass."""

    values: dict[Site, Float[Tensor, "row width"]]
    """Activations on the model's device, in the model's dtype."""
    usable: Bool[Tensor, " row"]
    """False where a row is non-finite or an outlier at any site."""
    norms: dict[Site, Float[Tensor, " row"]]
    """Norm of every row, float64."""
    block: Int[Tensor, " row"]
    """Which block each row is from."""
    position: Int[Tensor, " row"]
    """Which position of it."""
    counts: dict[str, int]
    """Positions by what became of them: rows, and the `REASONS`."""
    gradients: dict[Site, Float[Tensor, "row width"]] = field(default_factory=dict)
    """Gradient of the loss at each site, where it was asked for."""


class RowPlan:
    """The rows of one epoch: `order` of the blocks, and the usable positions of each."""

    def __init__(self, blocks: Blocks, order: np.ndarray, *, drop_bos: bool) -> None:
        """Plan to visit the blocks in `order` (a permutation, or a part of one)."""
        self.order = order
        self._usable = usable_positions(blocks, drop_bos)
        self._ends = np.cumsum(self._usable.sum(1)[order])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def usable(self, chosen: np.ndarray) -> np.ndarray:
        """Return the usable positions of the blocks `chosen`, bool [block pos]."""
        return self._usable[chosen]

    def blocks_of(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (block numbers, usable positions bool [block pos]) of the rows [first, last)."""
        begin = int(np.searchsorted(self._ends, first, side="right"))
        end = int(np.searchsorted(self._ends, last, side="left")) + 1
        chosen = self.order[begin:end]
        mask = self._usable[chosen]  # a copy, indexed by an array
        flat = np.flatnonzero(mask)
        before = first - (int(self._ends[begin - 1]) if begin else 0)
        mask.ravel()[np.concatenate([flat[:before], flat[before + last - first :]])] = False
        return chosen, mask


def usable_positions(blocks: Blocks, drop_bos: bool) -> np.ndarray:
    """Return which positions can become rows before the model has run: no padding, no BOS if `drop_bos`."""
    return (blocks.keep & ~blocks.bos() if drop_bos else blocks.keep).numpy()


class Draw(enum.IntEnum):
    """What a random draw is for; part of its seed, so that no two purposes share a stream."""

    EPOCH = 1
    POOL = 2
    SAMPLE = 3
    SHARD = 4
    READ = 5


def generator(draw: Draw, *key: int) -> np.random.Generator:
    """Return the random stream of `draw` that `key` (seed, epoch, ...) stands for."""
    return np.random.default_rng([int(draw), *key])


def capture_rows(
    model: ModelHandle,
    blocks: Blocks,
    sites: Sequence[Site],
    plan: RowPlan,
    first: int,
    last: int,
    *,
    outlier_norm: float | None = None,
    buffers: dict[Site, Tensor] | None = None,
    gradient: bool = False,
    on_progress: Callable[[int], object] = lambda _: None,
) -> Stretch:
    """Run the model over the blocks that hold the rows [first, last) and keep those rows at every site.

    All sites come from one pass, which stops after the deepest of them. A row is unusable when at any site it holds
    NaN or infinity, or its norm is above `outlier_norm` times the median norm of the stretch; the same rows are so
    usable at every site, and rows of several sites stay aligned.

    Args:
        model: the model; its lock is held one forward pass at a time.
        blocks: the text.
        sites: where to capture.
        plan: the epoch's rows.
        first: number of the first row.
        last: one past the last.
        outlier_norm: multiple of the median norm, None keeps all.
        buffers: tensors to reuse from call to call (kept and filled here); the values are views of them.
        gradient: also keep the gradient of the loss, summed over all next tokens of a row's block (a row's gradient so
            depends on its own block only); the pass then goes to the logits and back.
        on_progress: hears the rows done so far, after each forward pass.
    """
    chosen, mask = plan.blocks_of(first, last)
    buffers = {} if buffers is None else buffers
    lengths: dict[Site, list[Tensor]] = {site: [] for site in sites}
    slopes: dict[Site, list[Tensor]] = {site: [] for site in sites if gradient}
    done = 0
    with torch.inference_mode(False), torch.no_grad():  # what a store hands out must be usable under autograd
        for found, slope, where in _passes(model, blocks, sites, chosen, mask, gradient):
            for site, flat in slope.items():
                slopes[site].append(flat.index_select(0, where.to(flat.device)))
            for site, flat in found.items():
                rows = _buffer(buffers, site, flat, last - first)[done : done + len(where)]
                torch.index_select(flat, 0, where.to(flat.device), out=rows)
                lengths[site].append(norms(rows))
            done += len(where)
            on_progress(done)
    found_norms = {site: torch.cat(parts) for site, parts in lengths.items()}
    finite, close = _judge(found_norms, outlier_norm)
    gradients = {site: torch.cat(parts) for site, parts in slopes.items()}
    for rows in gradients.values():
        finite &= finite_rows(rows).cpu()
    usable = finite & close
    block, position = np.nonzero(mask)
    counts = _static_counts(blocks, plan, chosen, mask) | {
        "rows": int(usable.sum()),
        "nonfinite": int((~finite).sum()),
        "outliers": int((finite & ~close).sum()),
    }
    values = {site: buffers[site][:done] for site in sites}
    origin = torch.from_numpy(chosen[block]), torch.from_numpy(position)
    return Stretch(values, usable, found_norms, *origin, counts, gradients)


def _passes(
    model: ModelHandle,
    blocks: Blocks,
    sites: Sequence[Site],
    chosen: np.ndarray,
    mask: np.ndarray,
    gradient: bool,
) -> Iterator[tuple[dict[Site, Tensor], dict[Site, Tensor], Int[Tensor, " wanted"]]]:
    """Yield, pass by pass, activations of all positions, the gradients there if wanted, and which rows are wanted."""
    step = blocks_per_forward(model, blocks.context)
    if gradient:
        step = max(1, min(step, _LOGIT_FLOATS // (blocks.context * model.d_vocab)))
    for begin in range(0, len(chosen), step):
        index = torch.from_numpy(chosen[begin : begin + step])
        tokens = blocks.tokens[index].long().to(model.device)
        with capture(model, sites, stop=not gradient, grad=gradient) as found:
            if gradient:
                loss_backward(model, tokens, blocks.keep[index].to(model.device))
            else:
                model.forward(tokens)
        where = torch.from_numpy(np.flatnonzero(mask[begin : begin + step]))
        slopes = {site: found[site].grad for site in sites} if gradient else {}
        yield _as_rows(found), _as_rows(slopes), where


def _as_rows(found: Mapping[Site, Tensor | None]) -> dict[Site, Float[Tensor, "row width"]]:
    """Return activations [block pos ...] as rows, detached."""
    return {site: value.detach().flatten(2).flatten(0, 1) for site, value in found.items() if value is not None}


def loss_backward(model: ModelHandle, tokens: Int[Tensor, "block pos"], keep: Bool[Tensor, "block pos"]) -> None:
    """Run the model and send the loss, summed over the next tokens, back to what is being captured."""
    with torch.enable_grad():
        losses = next_token_loss(model.logits(tokens), tokens)
        real = keep[:, 1:] & keep[:, :-1] & torch.isfinite(losses)
        torch.where(real, losses, 0.0).sum().backward()


def blocks_per_forward(model: ModelHandle, context: int) -> int:
    """Return how many blocks one forward pass takes."""
    return max(1, FORWARD_TOKENS.get(model.device.type, _FORWARD_TOKENS_ELSEWHERE) // context)


def _buffer(buffers: dict[Site, Tensor], site: Site, rows: Tensor, count: int) -> Tensor:
    """Return a buffer of at least `count` rows: fresh ones each time would cost a page fault per 4 KiB."""
    held = buffers.get(site)
    if held is None or len(held) < count:
        held = buffers[site] = torch.empty(count, rows.shape[1], dtype=rows.dtype, device=rows.device)
    return held


def _judge(
    lengths: dict[Site, Float[Tensor, " row"]], outlier_norm: float | None
) -> tuple[Bool[Tensor, " row"], Bool[Tensor, " row"]]:
    """Return (finite at every site, near the median at every site)."""
    finite = torch.stack([torch.isfinite(length) for length in lengths.values()]).all(0)
    judged = [near(length, outlier_norm, typical_norm(length[finite])) for length in lengths.values()]
    return finite, torch.stack(judged).all(0)


def _static_counts(blocks: Blocks, plan: RowPlan, chosen: np.ndarray, mask: np.ndarray) -> dict[str, int]:
    """Count padding and dropped BOS, each block where its first usable row is, so that stretches add up to an epoch."""
    usable = plan.usable(chosen)
    starts = (usable & (np.cumsum(usable, 1) == 1) & mask).any(1)
    index = torch.from_numpy(chosen[starts])
    padding = int((~blocks.keep[index]).sum())
    return {"padding": padding, "bos": int((~usable[starts]).sum()) - padding}
