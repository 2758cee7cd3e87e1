"""`mechscope capture`: the activations of a model on a text, written to disk once, for many trainings."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from app import console, sources
from app.command import Common
from interp.data import DataSpec

if TYPE_CHECKING:
    from interp.activations import CaptureConfig
    from interp.data import Blocks
    from interp.models import ModelHandle
    from interp.runs import Run


@dataclass(frozen=True)
class Args(Common):
    """Write the activations of a model at some sites to disk, in shuffled shards.

    The part of the text that is held out for evaluation is left out. The same command again finds the finished store,
    or goes on where it was stopped.
    """

    model: str = "tiny"
    """An embedded model, a local Hugging Face folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    model_dtype: str = "float32"
    """Number format the model computes in."""
    recipe: str | None = None
    """Compress the model first: a recipe's file, name or text, as in `mechscope compress`."""
    site: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Where to read, such as resid_post.2 or 'resid_post.*'; may be given several times. `mechscope models sites` lists
    them."""
    data: tyro.conf.OmitArgPrefixes[DataSpec] = field(default_factory=DataSpec)
    """The text."""
    dtype: Literal["float16", "float32"] = "float16"
    """Number format on disk."""
    shard_rows: int = 65_536
    """Rows per file."""
    shuffle: bool = True
    """Rows are written in random order, not in that of the text."""
    seed: int = 0
    """Of the shuffling."""
    keep_bos: bool = False
    """Keep the rows of BOS, whose norm is often hundreds of times that of others."""
    outlier_norm: float | None = None
    """Leave out rows longer than this many times the median norm; None keeps them."""
    device: str | None = None
    """Where to compute, such as cuda; None takes a GPU where there is one."""


def run(args: Args) -> dict[str, Any]:
    """Capture, or find what was captured; return the run, its size and what was left out."""
    from interp.config import to_json
    from interp.models import ModelSpec
    from interp.runs import start_run

    spec = ModelSpec(sources.local(args.model), args.revision, args.model_dtype, sources.recipe(args.recipe))
    data = replace(args.data, text=sources.local(args.data.text))
    handle = sources.open_model(spec, args.device)
    config = _config(args, handle)
    blocks, _ = sources.split_blocks(handle, data)
    request = {
        "model": to_json(spec),
        "data": to_json(data),
        "capture": to_json(config),
        "weights": handle.digest(),
        "tokens": blocks.digest(),
    }
    name = f"{sources.spec_slug(spec)}.{config.sites[0] if len(config.sites) == 1 else f'{len(config.sites)}-sites'}"
    started = time.monotonic()
    about = sources.provenance(request, request["weights"])
    with start_run("activations", request, slug=name, root=args.runs, seed=args.seed, **about) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            _write(record, handle, blocks, config)
    size = sum(record.files.values())
    seconds = round(time.monotonic() - started, 1)
    sites = list(config.sites)
    return {"run": str(record.path), **record.summary, "disk_bytes": size, "sites": sites, "seconds": seconds}


def _config(args: Args, handle: ModelHandle) -> CaptureConfig:
    """Return what to capture; patterns become the sites that the model has."""
    from interp.activations import CaptureConfig

    if not args.site:
        raise ValueError(
            f"Name at least one --site, such as --site resid_post.{handle.n_layers // 2}; "
            f"`mechscope models sites {args.model}` lists them."
        )
    found = {site for pattern in args.site for site in _sites(handle, pattern)}
    return CaptureConfig(
        sites=tuple(map(str, sorted(found))),
        dtype=args.dtype,
        shard_rows=args.shard_rows,
        shuffle=args.shuffle,
        seed=args.seed,
        drop_bos=not args.keep_bos,
        outlier_norm=args.outlier_norm,
    )


def _sites(handle: ModelHandle, pattern: str) -> list[Any]:
    if not set(pattern) & set("*?["):
        return [handle.check_site(pattern)]
    found = handle.sites(pattern)
    if not found:
        raise ValueError(f"No site of {handle.spec.name} matches {pattern!r}; `mechscope models sites` lists them.")
    return found


def _write(record: Run, handle: ModelHandle, blocks: Blocks, config: CaptureConfig) -> None:
    """Say what it will cost, refuse what the disk cannot hold, and write the store."""
    from interp.activations import check_disk, estimate, write_store

    cost = estimate(handle, blocks, config)
    console.note(f"{record.ref}: {cost.describe()}")
    there = [size for name, size in record.files.items() if name.endswith(".safetensors")]
    if there:
        console.note(f"going on with {len(there)} shards that are there")
    check_disk(cost.disk_bytes - sum(there), record.path)
    started = time.monotonic()
    with console.progress(cost.rows, "rows", "capture") as bar:
        info = write_store(record, handle, blocks, config, on_progress=bar.to)
    seconds = time.monotonic() - started
    left_out = ", ".join(f"{count:,} {name}" for name, count in info.counts.items() if name != "rows" and count)
    console.note(f"{info.rows:,} rows in {seconds:.0f} s; left out: {left_out or 'nothing'}")
