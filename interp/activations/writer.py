"""Write activations to disk: shards written once, each a pure function of its number, so that a broken job continues.

The blocks are visited in one random order over the whole corpus; shard s holds the rows [s n, (s + 1) n) of that
order, shuffled. A shard that is on disk is complete (it took its name in one step) and is kept when a job goes on; the
files are byte for byte those of a job that was never broken, on the same machine and number of threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from interp.activations.config import ORIGIN, STORE, CaptureConfig, ShardInfo, StoreInfo, shard_name
from interp.activations.rows import REASONS, Draw, RowPlan, Stretch, capture_rows, generator
from interp.activations.shards import ShardMeta, hashes, map_shard, read_info
from interp.activations.stream import in_dtype
from interp.config import digest, to_json
from interp.data.blocks import Blocks
from interp.runs import Run, RunDamaged, RunError
from interp.sites import Site

if TYPE_CHECKING:
    from interp.models import ModelHandle


def write_store(
    run: Run,
    model: ModelHandle,
    blocks: Blocks,
    config: CaptureConfig,
    *,
    on_progress: Callable[[int], object] = lambda _: None,
) -> StoreInfo:
    """Capture `blocks` at the sites of `config` into `run`, finish it, and return what the store holds.

    Every shard is a safetensors file with one tensor per site, [rows width], and `token`, `block` and `position`
    int32 [rows]. What is in the run from an interrupted job with the same request is kept.

    Args:
        run: a run of kind "activations" that this process writes (`start_run`); a finished one is only read.
        model: the model.
        blocks: the text.
        config: sites and layout.
        on_progress: hears the rows done after each forward pass.

    Raises:
        RunError: a shard in the run is damaged, changed or from another capture; the disk is full.
        ValueError: no finite rows, a value beyond float16, a site that the model lacks.
    """
    if run.kind != "activations":
        raise RunError(f"A store is a run of kind 'activations', got {run.ref}.")
    if run.finished:
        return read_info(run)
    job = _Job(run, model, blocks, config)
    job.refuse_strangers()

    def report(done: int) -> None:
        on_progress(done)
        run.progress(done, len(job.plan), "rows")

    metas: list[ShardMeta] = []
    for index in range(job.n_shards):
        metas.append(job.existing(index) or job.write(index, report))
        report(min((index + 1) * config.shard_rows, len(job.plan)))
    info = job.info(metas)
    run.save_json(STORE, to_json(info))
    run.finish({"rows": info.rows, "shards": len(metas), "tokens": blocks.n_tokens, "excluded": info.counts})
    return info


class _Job:
    """One capture: what its shards are made of."""

    def __init__(self, run: Run, model: ModelHandle, blocks: Blocks, config: CaptureConfig) -> None:
        self.run, self.model, self.blocks, self.config = run, model, blocks, config
        self.sites = config.parsed()
        self.widths = {site: model.width(site) for site in self.sites}
        order = np.arange(len(blocks))
        if config.shuffle:
            order = generator(Draw.EPOCH, config.seed).permutation(len(blocks))
        self.plan = RowPlan(blocks, order, drop_bos=config.drop_bos)
        self.n_shards = -(-len(self.plan) // config.shard_rows)
        self.weights, self.tokens = model.digest(), blocks.digest()
        recipe = to_json(model.spec.recipe)  # what acts while the model runs shows in no weight
        self.key = digest({"weights": self.weights, "recipe": recipe, "tokens": self.tokens, "config": config})
        self.dtype = {"float16": torch.float16, "float32": torch.float32}[config.dtype]
        self.buffers: dict[Site, torch.Tensor] = {}
        if not self.n_shards:
            raise ValueError(
                "The text gives no usable row: every position is BOS or padding. Use more text or a longer context."
            )

    def refuse_strangers(self) -> None:
        """Raise RunDamaged where the folder holds shards that this job would not write."""
        wanted = {shard_name(index) for index in range(self.n_shards)}
        found = {path.name for path in self.run.path.iterdir() if re.fullmatch(r"rows-.*\.safetensors", path.name)}
        if found - wanted:
            names = ", ".join(sorted(found - wanted)[:5])
            raise RunDamaged(
                f"{self.run.ref} holds shards that are not part of it: {names}. Remove them and run the same command."
            )

    def existing(self, index: int) -> ShardMeta | None:
        """Return what shard `index` says if it is there and whole, None if it is to be written.

        Raises:
            RunDamaged: it is there, but damaged, changed, or from another capture.
        """
        path = self.run.file(shard_name(index))
        if not path.exists():
            return None
        advice = f"Remove {path.name} and run the same command: it writes the shard again."
        try:
            tensors, meta = map_shard(path)
        except RunDamaged as error:
            raise RunDamaged(f"{error} {advice}") from error
        if meta.store != self.key or meta.index != index:
            raise RunDamaged(
                f"{self.run.ref}: {path.name} belongs to another capture (other weights, text or layout). {advice}"
            )
        if hashes(tensors) != meta.sha256:
            raise RunDamaged(f"{self.run.ref}: {path.name} was changed after it was written. {advice}")
        return meta

    def write(self, index: int, on_progress: Callable[[int], object]) -> ShardMeta:
        """Capture shard `index` and save it."""
        first = index * self.config.shard_rows
        last = min(first + self.config.shard_rows, len(self.plan))
        stretch = capture_rows(
            self.model,
            self.blocks,
            self.sites,
            self.plan,
            first,
            last,
            outlier_norm=self.config.outlier_norm,
            buffers=self.buffers,
            on_progress=lambda done: on_progress(first + done),
        )
        if stretch.counts["nonfinite"] == last - first:
            raise ValueError(
                f"All {last - first} rows of shard {index} hold NaN or infinity. "
                "Check the model (`mechscope models verify`) and its dtype."
            )
        tensors = self._tensors(stretch, index)
        norms = {str(site): float(norm[stretch.usable].sum()) for site, norm in stretch.norms.items()}
        meta = ShardMeta(self.key, index, stretch.counts, norms, hashes(tensors))
        self.run.save_tensors(shard_name(index), tensors, meta.header())
        return meta

    def _tensors(self, stretch: Stretch, index: int) -> dict[str, np.ndarray]:
        """Return what the file holds: the usable rows in their order on disk."""
        order = np.flatnonzero(stretch.usable.numpy())
        if self.config.shuffle:
            order = generator(Draw.SHARD, self.config.seed, index).permutation(order)
        rows = torch.from_numpy(order)
        tensors = {
            str(site): in_dtype(values.index_select(0, rows.to(values.device)), self.dtype, site).cpu().numpy()
            for site, values in stretch.values.items()
        }
        block, position = stretch.block[rows], stretch.position[rows]
        origin = (self.blocks.tokens[block, position], block, position)
        return tensors | {name: column.to(torch.int32).numpy() for name, column in zip(ORIGIN, origin, strict=True)}

    def info(self, metas: Sequence[ShardMeta]) -> StoreInfo:
        """Return the description of the finished store; it follows from the shards alone."""
        counts = {name: sum(meta.counts[name] for meta in metas) for name in ("rows", *REASONS)}
        return StoreInfo(
            key=self.key,
            weights=self.weights,
            tokens=self.tokens,
            context=self.blocks.context,
            dtype=self.config.dtype,
            shuffled=self.config.shuffle,
            widths={str(site): size for site, size in self.widths.items()},
            shards=tuple(ShardInfo(shard_name(i), meta.counts["rows"], meta.sha256) for i, meta in enumerate(metas)),
            counts=counts,
            mean_norm={str(s): sum(meta.norms[str(s)] for meta in metas) / max(counts["rows"], 1) for s in self.sites},
        )
