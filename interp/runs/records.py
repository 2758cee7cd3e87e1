"""What run.json and manifest.json hold: building, reading, checking, and where the code came from."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from interp.config import digest
from interp.runs.errors import RunDamaged, RunError, SchemaError
from interp.runs.files import check_header, inside, read_json, shown

SCHEMA = 1
"""Format that this version writes, and the newest that it reads."""

UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""{schema: function that returns a record of that schema as one of the next}, for run.json and manifest.json alike."""

INFO, MANIFEST, METRICS = "run.json", "manifest.json", "metrics.jsonl"

AGAIN = "Delete the folder and run the command again, or restore it from a copy."

_INFO_TYPES = {"kind": str, "id": str, "config": dict, "parents": list, "created": str, "status": str}
_MANIFEST_TYPES = {"kind": str, "id": str, "created": str, "finished": str, "summary": dict, "files": dict}


def slugify(text: str, limit: int = 60) -> str:
    """Return `text` as a part of a folder name: lower-case letters, digits, . _ -, at most `limit` characters."""
    slug = re.sub(r"[^a-z0-9._]+", "-", str(text).lower())
    return re.sub(r"\.{2,}", ".", slug)[:limit].strip("-._")


def check_kind(kind: str) -> str:
    """Return `kind`, or refuse one that is no plain folder name."""
    if not isinstance(kind, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", kind):
        raise RunError(f"kind must be up to 40 lower-case letters, digits and _, got {kind!r}; rename it.")
    return kind


def identity(kind: str, config: Mapping[str, Any], parents: Sequence[str], seed: int) -> str:
    """Return the 64 digits that identify a request; the first 8 end the folder's name."""
    return digest({"kind": kind, "config": config, "parents": parents, "seed": seed})


def code_version() -> dict[str, Any]:
    """Return {"mechscope": version, "commit": git commit or None, "dirty": whether tracked files differ from it}."""
    try:
        version = metadata.version("mechscope")
    except metadata.PackageNotFoundError:
        version = "not installed"
    checkout = Path(__file__).resolve().parents[2]
    commit = _git(checkout, "rev-parse", "HEAD") if (checkout / ".git").exists() else None
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"mechscope": version, "commit": commit, "dirty": None if changes is None else bool(changes)}


def machine() -> dict[str, str]:
    """Return the versions of Python and of the system."""
    return {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def read_info(folder: Path) -> dict[str, Any]:
    """Return run.json of `folder`, checked.

    Raises:
        RunDamaged: it is missing, cut off, belongs to another folder, or was changed.
        SchemaError: it was written by a newer version.
    """
    info = _record(folder, INFO, _INFO_TYPES)
    if folder.parent.name != info["kind"] or not folder.name.endswith("-" + info["id"]):
        raise RunDamaged(
            f"{shown(folder)} holds the {INFO} of {info['kind']}/...-{info['id']}: it belongs to another folder. "
            f"Move it back to where it was written."
        )
    try:
        found = identity(info["kind"], info["config"], info["parents"], info.get("seed", 0))
    except ValueError:  # a number that is not finite
        found = ""
    if found[:8] != info["id"]:
        raise RunDamaged(
            f"{shown(folder / INFO)} was changed: its configuration is not the one of run {info['id']}. {AGAIN}"
        )
    return info


def read_manifest(folder: Path, info: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return manifest.json of `folder`, checked against itself and `info`; None where the run is not finished."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = _record(folder, MANIFEST, _MANIFEST_TYPES)
    for key in ("kind", "id"):
        if manifest[key] != info[key]:
            raise RunDamaged(
                f"{shown(folder / MANIFEST)} is of another run: {key} {manifest[key]!r}, not {info[key]!r}. {AGAIN}"
            )
    if "digest" in manifest and manifest["digest"] != seal(manifest):
        raise RunDamaged(f"{shown(folder / MANIFEST)} was changed after the run finished. {AGAIN}")
    for name, entry in manifest["files"].items():
        try:
            inside(folder, name)
        except RunError as error:
            raise RunDamaged(f"{shown(folder / MANIFEST)} lists a file that is not the run's own. {error}") from error
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("bytes"), int)
            or not isinstance(entry.get("sha256"), str)
        ):
            raise RunDamaged(
                f"{shown(folder / MANIFEST)} is damaged: the entry of {name!r} lacks bytes or sha256. {AGAIN}"
            )
    return manifest


def seal(manifest: Mapping[str, Any]) -> str:
    """Return the hash of a manifest over all of its keys but "digest", which holds it."""
    return digest({key: value for key, value in manifest.items() if key != "digest"})


def check_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the sizes and headers of the files that `manifest` lists; [] where nothing is."""
    problems = []
    for name, entry in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                problems.append(
                    f"{shown(path)} has {size} bytes, the manifest says {entry['bytes']}: cut off or changed."
                )
            else:
                check_header(path)
        except FileNotFoundError:
            problems.append(f"{shown(path)} is missing.")
        except OSError as error:
            problems.append(f"{shown(path)} cannot be read: {error.strerror}.")
        except RunDamaged as error:
            problems.append(str(error))
    return problems


def _record(folder: Path, name: str, types: Mapping[str, type]) -> dict[str, Any]:
    """Return the JSON object `name` of `folder` in today's schema, its keys checked for their types."""
    try:
        record = read_json(inside(folder, name))
    except RunError as error:
        raise RunDamaged(f"{error} {AGAIN}") from error
    if not isinstance(record, dict) or type(record.get("schema")) is not int:
        raise RunDamaged(f"{shown(folder / name)} is no record of a run: it lacks an integer 'schema'. {AGAIN}")
    record = upgrade(record, folder)
    for key, kind in types.items():
        if not isinstance(record.get(key), kind):
            raise RunDamaged(f"{shown(folder / name)} is damaged: '{key}' is missing or no {kind.__name__}. {AGAIN}")
    return record


def upgrade(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return `record` in today's schema; keys that nobody knows stay.

    Raises:
        SchemaError: it is newer than this version, or older than any upgrade.
    """
    if record["schema"] > SCHEMA:
        raise SchemaError(
            f"{shown(folder)} has schema {record['schema']}; this version reads {SCHEMA}. Upgrade mechscope."
        )
    while record["schema"] < SCHEMA:
        step = UPGRADES.get(record["schema"])
        if step is None:
            raise SchemaError(
                f"{shown(folder)} has schema {record['schema']}, which no version of mechscope wrote. {AGAIN}"
            )
        record = step(record)
    return record
