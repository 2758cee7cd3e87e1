"""Facts about the machine and the installation, for `mechscope doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

DISTRIBUTION = "mechscope"
PACKAGES = (
    "torch", "transformers", "transformer-lens", "tokenizers", "safetensors", "datasets", "numpy", "pyarrow",
    "scikit-learn", "scipy", "einops", "jaxtyping", "plotly", "streamlit", "tyro", "wandb",
)  # fmt: skip
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def packages() -> dict[str, str | None]:
    """Return {distribution: installed version, None where it is missing}."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def requirement_problems() -> list[str]:
    """Return a sentence for each requirement of the installed mechscope that is missing or has another version."""
    from packaging.requirements import Requirement

    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # run from the folder of the repository, without an installation
        lines = list(PACKAGES)
    found = []
    for need in map(Requirement, lines):
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(need.name)
        except PackageNotFoundError:
            found.append(f"{need.name} is missing. Do: pip install '{need}'.")
            continue
        if not need.specifier.contains(have, prereleases=True):
            found.append(f"{need.name} must be {need.specifier}, got {have}. Do: pip install '{need}'.")
    return found


def devices() -> dict[str, Any]:
    """Return what torch computes on: threads, CPU capability, GPUs. Empty where torch does not import."""
    try:
        import torch
    except ImportError:
        return {}
    gpus = [
        {"name": torch.cuda.get_device_name(i), "gib": torch.cuda.get_device_properties(i).total_memory / 2**30}
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    kind = "cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    capability = torch.backends.cpu.get_cpu_capability()
    return {"device": kind, "gpus": gpus, "threads": torch.get_num_threads(), "cpu_capability": capability}


def memory_gib() -> tuple[float | None, float | None]:
    """Return (usable, available) memory in GiB, None where the system does not say; a container's limit counts."""
    total = available = None
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    except (OSError, ValueError):
        pass
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        bound = int(limit.read_text())
        total = min(total or bound, bound)
        available = min(available or total, total)
    except (OSError, ValueError):  # no such limit, or "max"
        pass
    return (total / 2**30 if total else None, available / 2**30 if available else None)


def disk_gib(folder: Path) -> float:
    """Return the free space in GiB where `folder` is or would be made."""
    return shutil.disk_usage(existing(folder)).free / 2**30


def existing(folder: Path) -> Path:
    """Return `folder` or its nearest parent that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def hub_cache() -> dict[str, Any]:
    """Return where downloaded models lie, how many there are, and which settings keep everything offline."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub")
    offline = [name for name in OFFLINE if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]
    return {
        "cache": str(cache),
        "models": len(list(cache.glob("models--*"))),
        "offline": offline,
        "wandb": os.environ.get("WANDB_MODE") or "online (if a run asks for it)",
    }


def system() -> dict[str, Any]:
    """Return versions of Python and the system, and the number of cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = {"python": platform.python_version(), "executable": sys.executable, "system": platform.platform()}
    return {**names, "cores": cores}
