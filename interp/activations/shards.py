"""Shards: safetensors files of rows, mapped into memory rather than read, each carrying what it belongs to.

One metadata entry `shard` holds JSON: the store's key, the shard's number, its counts and the hash of every tensor.
(Several entries would be written in an order that changes from process to process, and files could not be compared.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from interp.activations.config import STORE, StoreInfo
from interp.config import canonical, from_json
from interp.runs import Run, RunDamaged, RunError
from interp.runs.files import shown, tensor_header

_NUMPY = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "I32": np.dtype("<i4")}


@dataclass(frozen=True)
class ShardMeta:
    """What a shard says of itself."""

    store: str
    """Key of the store it belongs to."""
    index: int
    """Its number."""
    counts: dict[str, int]
    """Positions by what became of them."""
    norms: dict[str, float]
    """Site -> sum of the norms of its rows."""
    sha256: dict[str, str]
    """Hash of the bytes of each tensor."""

    def header(self) -> dict[str, str]:
        """Return the metadata of the file."""
        return {"shard": canonical(self)}


def hashes(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return the sha256 of the bytes of each tensor."""
    return {name: sha256(tensors[name]) for name in sorted(tensors)}


def sha256(array: np.ndarray) -> str:
    """Return the sha256 of the bytes of a contiguous array."""
    return hashlib.sha256(cast(Any, array)).hexdigest() if array.size else hashlib.sha256().hexdigest()


def map_shard(path: Path) -> tuple[dict[str, np.ndarray], ShardMeta]:
    """Return the tensors of a shard as read-only views of the file, and what it says of itself.

    Raises:
        RunDamaged: the file is missing, cut off, or no shard.
    """
    try:
        entries, metadata, begin = tensor_header(path)
    except OSError as error:
        raise RunDamaged(f"{shown(path)} cannot be read: {error.strerror}.") from error
    try:
        meta = from_json(ShardMeta, json.loads(metadata["shard"]), "shard")
        tensors = {name: _map(path, entry, begin) for name, entry in entries.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise RunDamaged(f"{shown(path)} is no shard of an activation store ({error}).") from error
    return tensors, meta


def _map(path: Path, entry: dict, begin: int) -> np.ndarray:
    dtype, shape = _NUMPY[entry["dtype"]], tuple(entry["shape"])
    start, end = entry["data_offsets"]
    if end - start != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"a tensor of shape {shape} does not fill its {end - start} bytes")
    if start == end:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", begin + start, shape)


def read_info(run: Run) -> StoreInfo:
    """Return what the finished store in `run` holds.

    Raises:
        RunError: the run is no finished store, or its description is damaged.
    """
    if run.kind != "activations":
        raise RunError(
            f"{run.ref} is a run of kind {run.kind!r}; wanted 'activations', which `mechscope capture` makes."
        )
    if not run.finished:
        raise RunError(f"{run.ref} is not finished (it is {run.status}); the command that started it goes on with it.")
    data = run.json(STORE)
    try:
        return from_json(StoreInfo, data, STORE)
    except ValueError as error:
        raise RunDamaged(f"{run.ref} is damaged: {error}") from error
