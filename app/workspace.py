"""What people say about features: labels, notes and bookmarks, as plain JSON in `workspace/` beside the runs.

One file for each dictionary, one entry for each latent, keys sorted, one field a line: two people's files merge with
git, or with `merge` (field by field, the later edit wins). A file is read again before each write and replaced
atomically, so two windows do not undo each other's edits. Runs themselves are never touched.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA = 1
LABEL_LENGTH = 120  # characters
NOTE_LENGTH = 4000
FIELDS = ("bookmarked", "label", "note")
_thread_lock = threading.Lock()


class WorkspaceError(ValueError):
    """A workspace file cannot be read or written; the message says which, why and what to do."""


@dataclass(frozen=True)
class Note:
    """What was said about one latent."""

    label: str = ""
    """A few words."""
    note: str = ""
    """Free text."""
    bookmarked: bool = False
    """Kept for later."""

    def __bool__(self) -> bool:
        """Return whether anything was said."""
        return bool(self.label or self.note or self.bookmarked)


class Workspace:
    """The notes on one dictionary."""

    def __init__(self, runs: Path, dictionary: str) -> None:
        """Notes on the run `dictionary` ("sae/<name>") of the folder `runs`; nothing is read or made yet."""
        if not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*", dictionary) or ".." in dictionary:
            raise WorkspaceError(f"A workspace belongs to a run such as sae/name-1234abcd, got {dictionary!r}.")
        self.dictionary = dictionary
        self.path = Path(runs).absolute().parent / "workspace" / f"{dictionary.replace('/', '.')}.json"

    def notes(self) -> dict[int, Note]:
        """Return what was said, by latent; {} where nothing was.

        Raises:
            WorkspaceError: the file is there but cannot be read.
        """
        notes = {}
        for latent, entry in self._read()["features"].items():
            note = Note(str(entry.get("label", "")), str(entry.get("note", "")), entry.get("bookmarked") is True)
            if note:
                notes[int(latent)] = note
        return notes

    def save(self, latent: int, note: Note) -> None:
        """Write what was said about `latent`; fields that did not change keep their date.

        Raises:
            WorkspaceError: the file cannot be read, or the folder cannot be written.
        """
        label, text = note.label.strip()[:LABEL_LENGTH], note.note.strip()[:NOTE_LENGTH]
        wanted: dict[str, str | bool] = {"label": label, "note": text, "bookmarked": note.bookmarked}
        with self._locked():
            data = self._read()
            entry = dict(data["features"].get(str(latent), {}))
            edited = dict(entry.get("edited", {}))
            for name, value in wanted.items():
                if entry.get(name, type(value)()) != value:
                    entry[name], edited[name] = value, _now()
            if edited:
                data["features"][str(latent)] = entry | {"edited": edited}
                self._write(data)

    def merge(self, other: Mapping[str, Any]) -> None:
        """Take the entries of `other`, the content of another copy of this file, where they are later."""
        with self._locked():
            self._write(merge(self._read(), _checked(other, self.path)))

    def _read(self) -> dict[str, Any]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {"schema": SCHEMA, "dictionary": self.dictionary, "features": {}}
        except (OSError, UnicodeDecodeError) as problem:
            raise WorkspaceError(f"{self.path} cannot be read ({problem}); repair or move it away.") from problem
        try:
            return _checked(json.loads(text), self.path)
        except ValueError as problem:
            if isinstance(problem, WorkspaceError):
                raise
            hint = "it holds a git conflict, resolve it" if "<<<<<<<" in text else "repair it or move it away"
            raise WorkspaceError(f"{self.path} is not JSON ({problem}); {hint}. Nothing was changed.") from problem

    def _write(self, data: Mapping[str, Any]) -> None:
        features = {key: data["features"][key] for key in sorted(data["features"], key=int)}
        text = json.dumps({**data, "features": features}, indent=1, sort_keys=False, ensure_ascii=False)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
            os.replace(temporary, self.path)
        except OSError as problem:
            temporary.unlink(missing_ok=True)
            raise WorkspaceError(
                f"{self.path} cannot be written ({problem.strerror}); the note is not saved."
            ) from problem

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _thread_lock, (self.path.parent / ".lock").open("a") as file, _file_lock(file.fileno()):
                yield
        except OSError as problem:
            raise WorkspaceError(f"{self.path.parent} cannot be written ({problem.strerror}).") from problem


def merge(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Return both files' entries; where a field differs, the later edit wins, and of two equally old ones the larger.

    The result does not depend on the order of the arguments.
    """
    features: dict[str, Any] = {}
    for latent in {*a["features"], *b["features"]}:
        entries = [side["features"].get(latent, {}) for side in (a, b)]
        merged: dict[str, Any] = {}
        edited: dict[str, str] = {}
        for name in FIELDS:
            dated = [(str(e.get("edited", {}).get(name, "")), e[name]) for e in entries if name in e]
            if dated:
                date, merged[name] = max(dated, key=lambda pair: (pair[0], str(pair[1])))
                edited |= {name: date} if date else {}
        features[latent] = merged | {"edited": edited}
    return {**a, "features": features}


def _checked(data: Any, path: Path) -> dict[str, Any]:
    features = data.get("features") if isinstance(data, Mapping) else None
    if not isinstance(features, Mapping):
        raise WorkspaceError(f'{path} must be a JSON object with "features"; repair it or move it away.')
    if not isinstance(data.get("schema"), int) or data["schema"] > SCHEMA:
        raise WorkspaceError(
            f"{path} has schema {data.get('schema')!r}; this version reads {SCHEMA}. Upgrade mechscope."
        )
    for latent, entry in features.items():
        if not (latent.isascii() and latent.isdigit() and len(latent) < 10) or not isinstance(entry, Mapping):
            raise WorkspaceError(f"{path}: entry {latent!r} is not a latent with its fields; repair it or remove it.")
        if not isinstance(entry.get("edited", {}), Mapping):
            raise WorkspaceError(f'{path}: "edited" of latent {latent} must be an object; repair it or remove it.')
    return {**data, "features": dict(features)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@contextmanager
def _file_lock(descriptor: int) -> Iterator[None]:
    """Hold an advisory lock between processes, where the platform has one."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
