"""Tensors of a run: safetensors files, written through the library, read as numpy without importing torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.names import unknown
from interp.runs.errors import RunDamaged, RunError
from interp.runs.files import shown, tensor_header

if TYPE_CHECKING:
    import numpy as np

DTYPES = {
    "BOOL": "?",
    "BF16": "<u2",
    **{f"{sign}{bits}": f"<{sign.lower()}{bits // 8}" for sign in "IU" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
"""What safetensors calls a dtype, and numpy. numpy lacks BF16: its 16 bits are read and widened to float32."""


def write(path: Path, values: Mapping[str, Any], metadata: Mapping[str, str] | None) -> None:
    """Write torch tensors or numpy arrays to `path`; a tensor that is a view or on a device is copied."""
    import numpy as np

    meta = {str(key): str(value) for key, value in metadata.items()} if metadata else None
    torch = sys.modules.get("torch")
    if torch is not None and any(isinstance(value, torch.Tensor) for value in values.values()):
        from safetensors.torch import save_file as save_torch

        held = {key: torch.as_tensor(value).detach().cpu().contiguous() for key, value in values.items()}
        save_torch(held, path, meta)
        return
    from safetensors.numpy import save_file

    # Made contiguous here: safetensors 0.8 writes the memory of a transposed array as if it were not transposed.
    save_file({key: np.ascontiguousarray(value).reshape(np.shape(value)) for key, value in values.items()}, path, meta)


def read(path: Path) -> dict[str, np.ndarray]:
    """Return {name: array} of all tensors in `path`."""
    return {name: _take(path, name, ...) for name in tensor_header(path)[0]}


def rows(path: Path, tensor: str, index: Any) -> np.ndarray:
    """Return `tensor[index]`, reading only the pages of the file that hold it."""
    try:
        return _take(path, tensor, index)
    except IndexError as error:
        shape = list(info(path)[0][tensor][1])
        raise RunError(f"{tensor} in {shown(path)} has shape {shape}; {error}.") from error


def info(path: Path) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Return ({name: (dtype, shape)}, metadata)."""
    entries, metadata, _ = tensor_header(path)
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}, metadata


def _take(path: Path, tensor: str, index: Any) -> np.ndarray:
    """Return a copy of `tensor[index]`."""
    import numpy as np

    entries, _, begin = tensor_header(path)
    if tensor not in entries:
        raise RunError(unknown(f"tensor in {shown(path)}:", tensor, entries))
    kind, shape = entries[tensor]["dtype"], tuple(entries[tensor]["shape"])
    if kind not in DTYPES:
        raise RunError(f"{tensor} in {shown(path)} is {kind}, which numpy cannot hold; read it with torch.")
    start, end = entries[tensor]["data_offsets"]
    dtype = np.dtype(DTYPES[kind])
    if end - start != dtype.itemsize * math.prod(shape):
        raise RunDamaged(f"{shown(path)} is damaged: {tensor} has {end - start} bytes for {list(shape)} of {kind}.")
    mapped = np.memmap(path, dtype, "r", begin + start, shape) if end > start else np.empty(shape, dtype)
    taken = np.array(mapped[index])
    return (taken.astype("<u4") << 16).view("<f4") if kind == "BF16" else taken
