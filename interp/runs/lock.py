"""The writer's lock: held while a run is written, gone with the process that held it, however it ended."""

from __future__ import annotations

import json
import os
import socket
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from interp.runs.errors import RunBusy
from interp.runs.files import cannot_write, shown

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: only the record of the writing process in run.json is left to go by
    fcntl = None

LOCK = ".lock"
"""Name of the lock file in a run's folder."""

SILENCE = 300.0
"""Seconds without a heartbeat after which a writer that cannot be looked up counts as gone."""


def now() -> str:
    """Return the time in UTC as ISO 8601 with microseconds; such texts sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def writer() -> dict[str, Any]:
    """Return what identifies this process: host, pid, and a mark that a later process of the same pid lacks."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "process": _mark(os.getpid())}


def alive(info: Mapping[str, Any]) -> bool:
    """Return whether the process that `writer()` described in `info` still runs.

    On another host, or where processes cannot be looked up, a heartbeat of the last 300 s decides.
    """
    pid, mark = info.get("pid"), info.get("process")
    if not isinstance(pid, int) or pid <= 0:
        return False
    if info.get("host") != socket.gethostname() or os.name != "posix":
        return _recent(info.get("heartbeat"))
    if mark is not None and (found := _mark(pid)) is not None:
        return found == mark
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return mark is None


def _recent(heartbeat: Any) -> bool:
    """Return whether `heartbeat`, a text of `now`, lies less than `SILENCE` seconds back."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(heartbeat)).total_seconds() < SILENCE
    except (TypeError, ValueError):
        return False


def _mark(pid: int) -> str | None:
    """Return when process `pid` started, as the kernel counts it, or None where that cannot be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else f"{boot[:8]}-{fields[19]}"


class WriterLock:
    """An exclusive lock on a run's folder; a second one raises RunBusy, in this process as in another."""

    def __init__(self, folder: Path, info: Mapping[str, Any] | None) -> None:
        """Take the lock at once.

        Args:
            folder: the run's folder, which must exist.
            info: what run.json says now, None where there is none; decides where the system has no file locks.

        Raises:
            RunBusy: somebody else is writing.
            RunError: the folder cannot be written.
        """
        self.path = folder / LOCK
        if fcntl is None and info is not None and info.get("status") == "running" and alive(info):
            raise _busy(folder, info)
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._close = weakref.finalize(self, os.close, handle)
        _held.add(self)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(writer()).encode())
        except BlockingIOError as error:
            holder = _holder(handle) or info or {}
            self.release()
            raise _busy(folder, holder) from error
        except OSError as error:
            self.release()
            raise cannot_write(self.path, error) from error

    def release(self) -> None:
        """Let go; again is harmless."""
        self._close()

    @property
    def held(self) -> bool:
        """Whether this lock is still ours."""
        return self._close.alive


_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """Close the copies that a forked process holds: it would keep the run locked when its parent is killed."""
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _holder(handle: int) -> dict[str, Any] | None:
    """Return what the holder wrote into the lock file, or None while it has not yet."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _busy(folder: Path, holder: Mapping[str, Any]) -> RunBusy:
    here = " (this process)" if holder.get("pid") == os.getpid() and holder.get("host") == socket.gethostname() else ""
    return RunBusy(
        f"{shown(folder)} is being written by process {holder.get('pid', 'unknown')}{here} on host "
        f"{holder.get('host', 'unknown')}; wait until it is done, or stop it and run the same command again."
    )
