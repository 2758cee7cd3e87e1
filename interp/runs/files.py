"""Files of a run: names that stay inside, writes that replace whole files or nothing, headers, hashes.

Every write to a run goes through `replacing` (whole files) or `append_line` (metrics), so a crash or a full
disk leaves the previous file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interp.names import shorten
from interp.runs.errors import RunDamaged, RunError

PART = ".part"
"""Ending of the temporary file that `replacing` hands out."""

HEADER_LIMIT = 100_000_000
"""Bytes that safetensors allows for its header."""

_number = itertools.count()


def shown(path: Path) -> str:
    """Return `path` for a message: relative where it lies below the current folder."""
    with contextlib.suppress(ValueError, OSError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def inside(folder: Path, name: str) -> Path:
    """Return `folder / name`, or refuse a name that leaves `folder`, also through a symbolic link.

    Raises:
        RunError: the name is empty, absolute, hidden, holds NUL or "..", or resolves to somewhere else.
    """
    parts = name.split("/") if isinstance(name, str) else []
    if not parts or "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise RunError(
            f"A file of a run needs a plain relative name, got {shorten(name)}; use letters, digits, . _ - /."
        )
    if any(part.startswith(".") for part in parts) or re.match("[A-Za-z]:", name):
        raise RunError(f"Names in a run do not begin with a dot or a drive, got {shorten(name)}; choose another name.")
    path = folder / name
    if _has_link(folder, parts) and not _stays(folder, path):
        raise RunError(f"{shown(path)} is a link that leaves the run; replace it by the file itself.")
    return path


def _has_link(folder: Path, parts: list[str]) -> bool:
    """Return whether one of `parts` is a symbolic link; asking costs a twentieth of resolving."""
    step = str(folder)
    for part in parts:
        step = f"{step}{os.sep}{part}"
        if os.path.islink(step):  # noqa: PTH114
            return True
    return False


def _stays(folder: Path, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def cannot_write(path: Path, error: Exception, code: int | None = None) -> RunError:
    """Return the error for a write that failed, saying what was being written and what to do."""
    code = getattr(error, "errno", None) or code
    if code in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"The disk is full: {shown(path)} could not be written. What was finished before is intact; "
            f"free some space and run the same command again, or choose another folder with --runs."
        )
    reason = os.strerror(code) if code else str(error)
    return RunError(
        f"{shown(path)} could not be written: {reason}. Make the folder writable or choose another with --runs."
    )


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well, and vanishes otherwise.

    Args:
        path: the file to write or replace; its folder is made where it is missing.
        durable: whether to wait until the bytes are on the disk, so that they survive a loss of power.

    Raises:
        RunError: the disk is full or the folder cannot be written; the previous file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{next(_number)}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    except Exception as error:
        # safetensors wraps what the system said into its own error, as text.
        code = (
            re.search(r"(?:os error |code: )(\d+)", str(error)) if type(error).__name__ == "SafetensorError" else None
        )
        if code is None:
            raise
        raise cannot_write(path, error, int(code[1])) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, obj: Any, *, durable: bool = True) -> None:
    """Write `obj` to `path` as indented JSON; see `plain` for what becomes of numbers and arrays."""
    text = json.dumps(plain(obj), indent=1, allow_nan=False) + "\n"
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="ascii")


def read_json(path: Path) -> Any:
    """Return the JSON in `path`, or refuse it by name.

    Raises:
        RunDamaged: the file is missing, unreadable, cut off, or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RunDamaged(f"{shown(path)} is missing.") from error
    except OSError as error:
        raise RunDamaged(f"{shown(path)} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise RunDamaged(f"{shown(path)} is cut off or damaged: it is no JSON ({error}).") from error


def plain(value: Any) -> Any:
    """Return `value` for JSON: arrays and tensors as lists, paths as text, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        return plain(value.tolist())
    raise RunError(
        f"JSON holds numbers, text, lists and dicts, got {type(value).__name__}: {shorten(value)}; convert it."
    )


def append_line(path: Path, line: str) -> None:
    """Append `line` and a line end to `path` in one write; after a failure the file ends where it ended before."""
    data = line.encode("utf-8") + b"\n"
    size = None
    try:
        with path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            while data:
                data = data[file.write(data) :]
    except OSError as error:
        if size is not None:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
        raise cannot_write(path, error) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree(folder: Path) -> list[str]:
    """Return the names of all files below `folder`, sorted; hidden ones and folders that are links are left out."""
    names = []
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [(Path(base) / name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def check_header(path: Path) -> None:
    """Refuse a safetensors or Parquet file whose frame is not whole; other files pass.

    Raises:
        RunDamaged: the file is cut off or is something else.
    """
    if path.suffix == ".safetensors":
        tensor_header(path)
    elif path.suffix == ".parquet":
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(max(0, size - 8))
            end = file.read(8)
        footer = int.from_bytes(end[:4], "little")
        if size < 12 or start != b"PAR1" or end[4:] != b"PAR1" or footer > size - 12:
            raise RunDamaged(f"{shown(path)} is cut off or damaged: it is no whole Parquet file.")


def tensor_header(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str], int]:
    """Return ({name: {"dtype", "shape", "data_offsets"}}, metadata, where the data begins) of a safetensors file.

    Raises:
        RunDamaged: the header is no safetensors header, or does not describe exactly the bytes that follow it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise RunDamaged(f"{shown(path)} is cut off or damaged: it is no whole safetensors file.")
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        metadata = entries.pop("__metadata__", {})
        spans = sorted(_span(entry) for entry in entries.values())
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise RunDamaged(f"{shown(path)} is damaged: its safetensors header cannot be read.") from error
    ends = [0, *(end for _, end in spans)]
    if [start for start, _ in spans] != ends[:-1] or ends[-1] != size - 8 - length:
        raise RunDamaged(
            f"{shown(path)} is cut off or damaged: its header describes {ends[-1]} bytes, "
            f"{size - 8 - length} are there."
        )
    return entries, metadata, 8 + length


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    """Return the (start, end) of one tensor, or raise ValueError where they cannot be right."""
    start, end = entry["data_offsets"]
    shape = entry["shape"]
    if not isinstance(entry["dtype"], str) or not all(isinstance(n, int) and n >= 0 for n in (start, end, *shape)):
        raise ValueError("not a tensor entry")
    if end < start:
        raise ValueError("ends before it starts")
    return start, end
