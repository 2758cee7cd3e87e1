"""Checkpoints of a training job: tensors and a little JSON in one safetensors file, replaced atomically.

safetensors refuses aliases and non-contiguous tensors and never runs code, so a checkpoint can be read
from anywhere. Optimiser state is stored by parameter order, which is what `Optimizer.state_dict` does too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.runs.files import replacing


def write_checkpoint(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write `tensors` and JSON-able `meta` to `path` so that a crash leaves the old file or the new one.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    with replacing(path) as temporary:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, temporary, {"meta": json.dumps(meta)})


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors on the CPU, meta) of a file that `write_checkpoint` wrote."""
    with safe_open(path, framework="pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()["meta"])  # noqa: SIM118


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str = "") -> dict[str, Tensor]:
    """Return the optimiser's state as {prefix + "index.key": tensor}; numbers become 0-d float64 tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str = "") -> None:
    """Put back what `optimizer_tensors` returned; hyper-parameters stay as the optimiser was built."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            index, key = name[len(prefix) :].split(".", 1)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
