"""All runs below one folder: starting or finding one by its request, opening one by its name, lineage, checks."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.config import canonical, to_json
from interp.names import shorten, unknown
from interp.runs.errors import RunError, RunNotFound
from interp.runs.files import cannot_write, sha256, shown, tree
from interp.runs.lock import WriterLock, now, writer
from interp.runs.records import (
    INFO,
    MANIFEST,
    SCHEMA,
    check_files,
    check_kind,
    code_version,
    identity,
    machine,
    read_info,
    read_manifest,
    slugify,
)
from interp.runs.run import Run

FOLDER = re.compile(r"[a-z0-9._-]+-[0-9a-f]{8}")
"""Names of run folders: slug and id; whatever else lies there is nobody's run."""

PREFIX = re.compile(r"[0-9a-f]{4,8}")
"""What may stand for an id."""


def runs_root(root: str | Path | None = None) -> Path:
    """Return the absolute folder of all runs: `root`, else $MECHSCOPE_RUNS, else ./runs. It need not exist."""
    return Path(root or os.environ.get("MECHSCOPE_RUNS") or "runs").expanduser().absolute()


def start_run(
    kind: str,
    config: Any,
    *,
    slug: str,
    parents: Sequence[str | Run] = (),
    root: str | Path | None = None,
    seed: int = 0,
    model: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Run:
    """Return the run for this request: the finished one, the broken one to go on with, or a new one.

    Args:
        kind: "sae", "activations", "features", ...: a folder below the root.
        config: all that decides the result, as a dict or a dataclass.
        slug: for people; not part of the identity.
        parents: the runs that this one is made from, or their refs ("<kind>/<name>").
        root: see `runs_root`.
        seed: of all randomness; part of the identity.
        model: for the record: name, revision, ...; a run made with another "digest" (of the weights) is refused.
        data: for the record, likewise: name, split, tokens, "digest", ...

    Returns:
        A run whose `finished` is True and which is frozen, or one whose writer is this process; its `resumed` is
        True where it was begun before.

    Raises:
        RunBusy: a live process is writing it.
        RunDamaged: it exists and is not sound.
    """
    request = _request(kind, config, [_parent(parent, root) for parent in parents], seed)
    run_id = identity(**request)[:8]
    base = runs_root(root) / kind
    folder = _existing(base, run_id) or base / f"{slugify(slug) or kind}-{run_id}"
    record = {"schema": SCHEMA, "id": run_id, "slug": folder.name.removesuffix(f"-{run_id}"), **request}
    record |= {"model": to_json(model), "data": to_json(data)}
    return _finished(folder, record) or _begin(folder, record)


def _request(kind: str, config: Any, parents: list[str], seed: int) -> dict[str, Any]:
    """Return what identifies a run, as JSON."""
    settings = to_json(config)
    if not isinstance(settings, dict):
        raise RunError(f"config must be a dict or a dataclass, got {shorten(config)}; wrap it.")
    return {"kind": check_kind(kind), "config": settings, "parents": parents, "seed": seed}


def _parent(parent: str | Run, root: str | Path | None) -> str:
    """Return the full ref of a parent, which need not be here unless it is given by less than that."""
    if isinstance(parent, Run):
        return parent.ref
    kind, _, name = str(parent).partition("/")
    return str(parent) if kind and FOLDER.fullmatch(name) else _ref(locate(parent, root))


def _existing(base: Path, run_id: str) -> Path | None:
    """Return the folder in `base` that ends in `run_id`, whatever its slug; a finished one before a broken one."""
    found = [path for path in _folders(base) if path.name.endswith(f"-{run_id}")]
    return max(found, key=lambda path: (path / MANIFEST).is_file(), default=None)


def _finished(folder: Path, record: Mapping[str, Any]) -> Run | None:
    """Return the finished run in `folder`, None where there is none."""
    return _checked(Run.load(folder), record) if (folder / MANIFEST).is_file() else None


def _begin(folder: Path, record: dict[str, Any]) -> Run:
    """Return the run in `folder`, begun now or gone on with, as its only writer and with run.json written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    lock = WriterLock(folder, read_info(folder) if (folder / INFO).is_file() else None)
    try:
        if done := _finished(folder, record):  # its writer came to the end since we looked
            lock.release()
            return done
        old = _checked(Run.load(folder), record).info if (folder / INFO).is_file() else {}
        attempts = old["attempts"] + 1 if isinstance(old.get("attempts"), int) else 1
        live = {"status": "running", "attempts": attempts, "code": code_version(), **machine(), **writer()}
        kept = {key: value for key, value in old.items() if key != "error"}
        run = Run(folder, {**record, "created": now(), "progress": None, **kept, **live}, None)
        run.resumed = bool(old)
        run.start(lock)
    except BaseException:
        lock.release()
        raise
    return run


def _checked(run: Run, record: Mapping[str, Any]) -> Run:
    """Return `run`, or refuse to take it for `record`: same short hash but another request, model or data."""
    for key in ("config", "parents", "seed"):
        if canonical(run.info.get(key)) != canonical(record[key]):
            raise RunError(f"{run.ref} has the same short hash as this request, but another {key}; change the seed.")
    for key in ("model", "data"):
        old, new = (
            info["digest"] if isinstance(info, dict) and "digest" in info else None
            for info in (run.info.get(key), record.get(key))
        )
        if old is not None and new is not None and old != new:
            raise RunError(
                f"{run.ref} was made with another {key} of the same name (the digests differ); "
                f"delete {shown(run.path)} to run it again, or name the revision in the configuration."
            )
    return run


def open_run(ref: str | Path | Run, root: str | Path | None = None) -> Run:
    """Return the run that `ref` names, opened for reading.

    Args:
        ref: an id or a unique beginning of one (4 digits or more), "<kind>/<name>", "<kind>/<id>", a name, or a path
            inside the root.
        root: see `runs_root`.

    Raises:
        RunNotFound: no run answers to `ref`, or several do.
        RunDamaged: it is not sound.
        SchemaError: a newer version wrote it.
    """
    return Run.load(locate(ref, root))


def locate(ref: str | Path | Run, root: str | Path | None = None) -> Path:
    """Return the folder of the run that `ref` names, as in `open_run`, without opening it."""
    if isinstance(ref, Run):
        return ref.path
    base = runs_root(root)
    text = str(ref).removesuffix("/")
    folders = list(_scan(base))
    kind, _, short = text.rpartition("/")
    exact = [p for p in folders if text in (_ref(p), p.name, p.name[-8:])]
    begun = [
        p for p in folders if PREFIX.fullmatch(short) and p.name[-8:].startswith(short) and kind in ("", p.parent.name)
    ]
    found = exact or begun
    if len(found) > 1:
        raise RunNotFound(f"{shorten(text)} fits {len(found)} runs: {', '.join(map(_ref, found))}; give more of it.")
    if found:
        return found[0]
    path = _resolved(text)
    for folder in folders:
        if path is not None and folder.resolve() == path:
            return folder
    if path is not None and (path / INFO).is_file():
        raise RunNotFound(f"{shorten(text)} lies outside {shown(base)}; give --runs {shown(path.parent.parent)}.")
    short_names = {name: _ref(p) for p in folders for name in (p.name[-8:], p.name, f"{p.parent.name}/{p.name[-8:]}")}
    raise RunNotFound(unknown(f"run in {shown(base)}:", text, map(_ref, folders), short_names))


def _resolved(text: str) -> Path | None:
    """Return the existing path that `text` names; None where it names none."""
    try:
        return Path(text).expanduser().resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # missing, NUL, no such home folder
        return None


def find_runs(
    root: str | Path | None = None,
    kind: str | None = None,
    finished: bool | None = None,
    where: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Return the runs below `root`, newest first; unsound ones are left to `damaged_runs`.

    Args:
        root: see `runs_root`.
        kind: only this kind.
        finished: only finished ones (True), or only the others (False).
        where: only runs whose configuration holds these values, such as {"sae.rule": "topk", "site": "resid_post.2"};
            dots go down into nested objects.
    """
    found = []
    for folder in _scan(runs_root(root), kind):
        with contextlib.suppress(RunError):
            run = Run.load(folder)
            if finished in (None, run.finished) and all(_get(run.config, k) == v for k, v in (where or {}).items()):
                found.append(run)
    return sorted(found, key=lambda run: (run.info["created"], run.ref), reverse=True)


def damaged_runs(root: str | Path | None = None) -> list[tuple[Path, str]]:
    """Return (folder, what is wrong) for the runs that cannot be opened, sorted by folder."""
    damaged = []
    for folder in _scan(runs_root(root)):
        try:
            Run.load(folder)
        except RunError as error:
            damaged.append((folder, str(error)))
    return sorted(damaged)


def children(run: Run, root: str | Path | None = None) -> list[Run]:
    """Return the runs that name `run` as a parent, newest first; `root` is the run's own where not given."""
    return [other for other in find_runs(root or run.root) if run.ref in other.parents]


def lineage(run: Run, root: str | Path | None = None) -> list[Run]:
    """Return the runs that `run` was made from, directly or not, parents first; missing ones are left out."""
    order: dict[str, Run] = {}

    def visit(refs: Sequence[str], above: tuple[str, ...]) -> None:
        for ref in refs:
            if ref in order or ref in above:
                continue
            with contextlib.suppress(RunError):
                parent = open_run(ref, root or run.root)
                visit(parent.parents, (*above, ref))
                order[parent.ref] = parent

    visit(run.parents, (run.ref,))
    return list(order.values())


def verify_run(run: Run | Path) -> list[str]:
    """Return everything that is wrong with a finished run, reading every byte of it; [] says that it is sound.

    Args:
        run: a run, or a folder from `locate` where it cannot be opened.
    """
    folder = run.path if isinstance(run, Run) else run
    try:
        info = read_info(folder)
        manifest = read_manifest(folder, info)
    except RunError as error:
        return [str(error)]
    if manifest is None:
        return [f"{_ref(folder)} is not finished ({Run(folder, info, None).status}); only a finished run has hashes."]
    problems = check_files(folder, manifest)
    for name, entry in manifest["files"].items():
        path = folder / name
        with contextlib.suppress(OSError):  # already among the problems
            if path.stat().st_size == entry["bytes"] and sha256(path) != entry["sha256"]:
                problems.append(f"{shown(path)} was changed: its SHA-256 is not the one in the manifest.")
    extra = set(tree(folder)) - set(manifest["files"]) - {MANIFEST}
    return problems + [f"{shown(folder / name)} is extra: the manifest does not know it." for name in sorted(extra)]


def _ref(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _scan(base: Path, kind: str | None = None) -> Iterator[Path]:
    """Yield the folders of all runs below `base`; empty ones (a run that is just starting) are left out."""
    kinds = [kind] if kind is not None else sorted(path.name for path in _list(base))
    for name in kinds:
        yield from (path for path in _folders(base / name) if _begun(path))


def _folders(base: Path) -> Iterator[Path]:
    """Yield the folders in `base` that are named like runs; links that leave the root's folder are no runs."""
    for path in _list(base):
        if FOLDER.fullmatch(path.name) and (
            not path.is_symlink() or path.resolve().is_relative_to(base.parent.resolve())
        ):
            yield path


def _begun(folder: Path) -> bool:
    """Return whether anything but the lock lies in `folder`."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return any(not entry.name.startswith(".") for entry in entries)
    return False


def _list(base: Path) -> list[Path]:
    """Return the folders in `base`, hidden ones left out; [] where it is missing or cannot be read."""
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        return sorted(base / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return []


def _get(config: Any, key: str) -> Any:
    """Return the value at the dotted `key`, None where there is none."""
    if isinstance(config, dict) and key in config:
        return config[key]
    head, dot, rest = key.partition(".")
    return _get(config.get(head), rest) if dot and isinstance(config, dict) else None
