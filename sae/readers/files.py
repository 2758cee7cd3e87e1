"""Strangers' files: sizes are checked before anything is read, shapes before anything is allocated, nothing is run."""

from __future__ import annotations

import json
import math
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.names import shorten, unknown
from interp.runs.files import shown
from interp.runs.tensors import info, read

if TYPE_CHECKING:
    import numpy as np

TEXT_LIMIT = 1 << 20
"""Bytes of a configuration, or of a safetensors header, at most: real ones have a few thousand."""
NPZ_RATIO = 50
"""How much larger than its file an archive may become: weights hardly shrink when they are compressed."""
FLOATS = {"F16", "BF16", "F32", "F64"}
INTEGERS = {"I32", "I64"}


def regular(path: Path) -> int:
    """Return the size of an ordinary file.

    Raises:
        ValueError: there is none, or it is a folder, a pipe or a device.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise ValueError(f"{shown(path)} is missing or cannot be read; give the folder that holds it.") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{shown(path)} is no ordinary file; give the folder of a dictionary.")
    return status.st_size


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        ValueError: it is missing, larger than a configuration ever is, or no JSON object.
    """
    size = regular(path)
    if size > TEXT_LIMIT:
        raise ValueError(f"{shown(path)} has {size:,} bytes, a configuration at most {TEXT_LIMIT:,}; it is none.")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(path)} is cut off or damaged: it is no JSON. Fetch it again.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{shown(path)} must hold a JSON object, got {shorten(data)}.")
    return data


def setting(config: Mapping[str, Any], key: str, kind: type, where: str, default: Any = ...) -> Any:
    """Return `config[key]` (`default` where it is missing or null), which must be of type `kind`."""
    value = config.get(key)
    if value is None:
        if default is ...:
            raise ValueError(f"{where} lacks the key '{key}', which a dictionary of this format has.")
        return default
    accepted = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not accepted or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"{where}: '{key}' must be of type {kind.__name__}, got {shorten(value)}.")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, floating ones as float32.

    Raises:
        ValueError: it is no whole safetensors file, its header is huge, or it holds other than numbers.
    """
    size = regular(path)
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if size >= 8 and header > TEXT_LIMIT:
        raise ValueError(
            f"{shown(path)} announces a header of {header:,} bytes, a dictionary's has at most {TEXT_LIMIT:,}; "
            "it is no safetensors file, or a hostile one."
        )
    for name, (kind, shape) in info(path)[0].items():
        if kind not in FLOATS | INTEGERS:
            raise ValueError(f"{shown(path)}: tensor {shorten(name)} {list(shape)} is {kind}; weights are F16 to F64.")
    return {name: _as_tensor(value) for name, value in read(path).items()}


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return the arrays of an .npz file as float32 tensors; objects, which would be unpickled, are refused.

    Raises:
        ValueError: it is no whole archive, holds something else than arrays of numbers, or would become far larger
            than its file.
    """
    import numpy as np

    size = regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                _check_entry(archive, entry, path)
            total = sum(entry.file_size for entry in entries)
            if total > NPZ_RATIO * size:
                raise ValueError(f"{shown(path)} has {size:,} bytes and would become {total:,}; it is a hostile file.")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _as_tensor(arrays[name]) for name in arrays.files}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(
            f"{shown(path)} is cut off or damaged: it is no whole .npz archive. Fetch it again."
        ) from error


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """Refuse an entry that is not exactly one array of floating-point numbers under a plain name."""
    from numpy.lib import format as npy

    name = entry.filename
    if not name.endswith(".npy") or not name[:-4].isidentifier():
        raise ValueError(
            f"{shown(path)} holds {shorten(name)}; an archive of weights holds plain names ending in .npy."
        )
    with archive.open(entry) as file:
        try:
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = header(file, max_header_size=10_000)
        except ValueError as error:
            raise ValueError(f"{shown(path)}: {name} is cut off or damaged: it is no numpy array.") from error
        begin = file.tell()
    if dtype.kind != "f":
        raise ValueError(
            f"{shown(path)}: {name} is an array of {dtype}, weights are floating-point numbers. Objects are pickles, "
            "which can run code when opened, and are never read."
        )
    if entry.file_size != begin + math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{shown(path)}: {name} is cut off: {list(shape)} of {dtype} do not fill {entry.file_size:,} bytes."
        )


def _as_tensor(value: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(value)
    return tensor.float() if tensor.is_floating_point() else tensor


def take(tensors: Mapping[str, Tensor], needed: Mapping[str, tuple[str, ...]], where: Path) -> dict[str, int]:
    """Check the names and shapes of tensors and return the size of each axis.

    Args:
        tensors: what a file holds.
        needed: {name: axes}; the same axis has the same size everywhere.
        where: the file, for messages.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape, or holds NaN or infinity.
    """
    for name in needed:
        if name not in tensors:
            raise ValueError(
                f"{shown(where)} lacks the tensor {name!r}; it holds {', '.join(sorted(tensors)) or 'none'}."
            )
    for name in tensors:
        if name not in needed:
            raise ValueError(unknown(f"tensor in {shown(where)}:", name, needed))
    sizes: dict[str, int] = {}
    for name, axes in needed.items():
        shape = tuple(tensors[name].shape)
        for axis, size in zip(axes, shape, strict=False):
            sizes.setdefault(axis, size)
        wanted = tuple(sizes.get(axis) for axis in axes)
        if shape != wanted:
            raise ValueError(
                f"{shown(where)}: {name} must have the shape [{' '.join(axes)}] = {list(wanted)}, got {list(shape)}."
            )
        if not torch.isfinite(tensors[name]).all():
            raise ValueError(f"{shown(where)}: {name} holds NaN or infinity; fetch the file again.")
    if 0 in sizes.values():
        raise ValueError(f"{shown(where)} holds an empty dictionary: {sizes}.")
    return sizes
