"""The models that come with the package: what is there, read without any model library."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from interp.names import unknown


def embedded_models() -> dict[str, Path]:
    """Return {name: folder} of the models that come with the package, by name."""
    zoo = Path(str(files("interp") / "zoo"))
    return {path.parent.name: path.parent for path in sorted(zoo.glob("*/config.json"))}


def embedded_folder(name: str) -> Path:
    """Return the folder of the embedded model `name`, or raise ValueError with the nearest match."""
    known = embedded_models()
    if name not in known:
        raise ValueError(unknown("embedded model", name, known))
    return known[name]


def embedded_config(name: str) -> dict[str, Any]:
    """Return the Hugging Face configuration of the embedded model `name`."""
    return json.loads((embedded_folder(name) / "config.json").read_text(encoding="utf-8"))


def card(name: str) -> str:
    """Return the card of the embedded model `name`: what it is, what it was trained on, its licence."""
    path = embedded_folder(name) / "README.md"
    if not path.is_file():
        raise ValueError(f"The embedded model {name!r} has no card ({path.name}).")
    return path.read_text(encoding="utf-8")


def stored_bytes(name: str) -> int:
    """Return the size of the weights of the embedded model `name` on disk."""
    return sum(path.stat().st_size for path in embedded_folder(name).glob("*.safetensors"))
