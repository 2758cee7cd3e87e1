"""What a capture will cost, from a timed warm-up on a little of the text: time, disk and memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from interp.activations.config import ORIGIN, CaptureConfig
from interp.activations.rows import RowPlan, blocks_per_forward, capture_rows
from interp.data.blocks import Blocks

if TYPE_CHECKING:
    from interp.models import ModelHandle

_BYTES = {"float16": 2, "float32": 4}
_HEADER = 4096  # bytes of a shard that are not rows, about
_BLOCK_BYTES = 5  # per token in memory: an int32 and a bool


@dataclass(frozen=True)
class Estimate:
    """What a capture to disk will take, about."""

    tokens: int
    """Tokens the model runs over."""
    rows: int
    """Rows that come of them, before outliers are left out."""
    seconds: float
    """Seconds of computing on this machine as it is now."""
    disk_bytes: int
    """Bytes of the finished store."""
    memory_bytes: int
    """Bytes of memory at the peak, the model's weights included."""

    def describe(self) -> str:
        """Return one line for people."""
        return (
            f"{self.tokens:,} tokens, {self.rows:,} rows: about {duration(self.seconds)}, "
            f"{size(self.disk_bytes)} of disk, {size(self.memory_bytes)} of memory"
        )


def estimate(model: ModelHandle, blocks: Blocks, config: CaptureConfig) -> Estimate:
    """Return what `write_store(run, model, blocks, config)` will take, from one timed forward batch after a warm-up."""
    sites = config.parsed()
    plan = RowPlan(blocks, np.arange(len(blocks)), drop_bos=config.drop_bos)
    step = min(blocks_per_forward(model, blocks.context), len(blocks))
    few = int(plan.usable(np.arange(step)).sum())
    capture_rows(model, blocks, sites, plan, 0, max(1, few // 4))  # the first pass allocates and compiles
    begun = perf_counter()
    capture_rows(model, blocks, sites, plan, 0, few)
    per_block = (perf_counter() - begun) / step
    width = sum(model.width(site) for site in sites)
    shards = -(-len(plan) // config.shard_rows)
    stored = _BYTES[config.dtype]
    element = model.module.get_input_embeddings().weight.element_size()
    weights = sum(p.numel() * p.element_size() for p in model.module.parameters())
    # Rows as captured and as stored, and in a forward pass about ten tensors as wide as the MLP.
    rows_held = min(len(plan), config.shard_rows) * width * (element + stored)
    forward = 10 * step * blocks.context * model.d_mlp * element
    return Estimate(
        tokens=blocks.tokens.numel(),
        rows=len(plan),
        seconds=per_block * (len(blocks) + shards),
        disk_bytes=len(plan) * (width * stored + 4 * len(ORIGIN)) + shards * _HEADER,
        memory_bytes=weights + rows_held + forward + blocks.tokens.numel() * _BLOCK_BYTES,
    )


def check_disk(needed: int, folder: Path) -> None:
    """Refuse to begin what will not fit.

    Args:
        needed: bytes still to be written.
        folder: where; the nearest folder that exists counts.

    Raises:
        OSError: with both sizes.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(
            f"The store needs {size(needed)} of disk and {there} has {size(free)} free. "
            "Free some space, choose another folder with --runs, or capture fewer tokens, fewer sites, or float16."
        )


def size(count: float) -> str:
    """Return bytes for people: `1.5 GB` (powers of ten)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def duration(seconds: float) -> str:
    """Return a length of time for people: `4 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
