"""One run: a folder that one process writes, then freezes, and that everybody may read at any time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from interp.runs import tables, tensors
from interp.runs.errors import RunDamaged, RunError
from interp.runs.files import PART, append_line, inside, plain, read_json, replacing, sha256, tree, write_json
from interp.runs.lock import LOCK, WriterLock, alive, now
from interp.runs.metrics import complete, read_rows, row
from interp.runs.records import AGAIN, INFO, MANIFEST, METRICS, SCHEMA, check_files, read_info, read_manifest, seal

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

log = logging.getLogger(__name__)

HEARTBEAT = 1.0
"""Seconds between two writes of run.json by `Run.progress`, at least."""


class Run:
    """A run's folder. `start_run` returns one to write, `open_run` and `find_runs` return one to read.

    A run that is read is as it was when it was opened; open it again for a fresh look.
    """

    def __init__(self, path: Path, info: dict[str, Any], manifest: dict[str, Any] | None) -> None:
        """Use `start_run` or `open_run` instead; this takes records that have been checked."""
        self.path = path
        self.info: dict[str, Any] = info
        self.manifest = manifest
        self.resumed = False
        """Whether `start_run` found this run begun and left unfinished."""
        self._lock: WriterLock | None = None
        self._beat = float("-inf")

    @classmethod
    def load(cls, path: Path, *, check: bool = True) -> Run:
        """Return the run in the folder `path`.

        Args:
            path: a folder `<root>/<kind>/<slug>-<hash8>`.
            check: whether to look at the size and the header of every file; no file is read to its end.

        Raises:
            RunDamaged: a file is missing, cut off, changed or foreign.
            SchemaError: a newer version wrote it.
        """
        info = read_info(path)
        manifest = read_manifest(path, info)
        problems = check_files(path, manifest) if check and manifest is not None else []
        if problems:
            more = f" ({len(problems) - 1} more files are wrong.)" if len(problems) > 1 else ""
            raise RunDamaged(f"{problems[0]}{more} {AGAIN}")
        return cls(path, info, manifest)

    def __repr__(self) -> str:
        """Return name and state, such as "Run(sae/tiny-1a2b3c4d, finished)"."""
        return f"Run({self.ref}, {self.status})"

    @property
    def kind(self) -> str:
        """What the run is: "sae", "activations", "features", ..."""
        return self.info["kind"]

    @property
    def id(self) -> str:
        """Eight hexadecimal digits: the hash of the request."""
        return self.info["id"]

    @property
    def name(self) -> str:
        """The folder's name, "<slug>-<id>"."""
        return self.path.name

    @property
    def slug(self) -> str:
        """The part of the name that is for people; derived runs take it over."""
        return self.name.removesuffix(f"-{self.id}")

    @property
    def ref(self) -> str:
        """What names the run among all others, "<kind>/<name>"."""
        return f"{self.kind}/{self.name}"

    @property
    def root(self) -> Path:
        """The folder of all runs that this one lies in."""
        return self.path.parent.parent

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, as JSON."""
        return self.info["config"]

    @property
    def parents(self) -> list[str]:
        """Refs of the runs that this one was made from."""
        return self.info["parents"]

    @property
    def finished(self) -> bool:
        """Whether the run is complete and frozen."""
        return self.manifest is not None

    @property
    def writable(self) -> bool:
        """Whether this object holds the writer's lock."""
        return self._lock is not None and self._lock.held

    @property
    def summary(self) -> dict[str, Any]:
        """What `finish` was given; {} before."""
        return self.manifest["summary"] if self.manifest else {}

    @property
    def status(self) -> str:
        """One of "running", "interrupted" (nobody writes it, `start_run` resumes it), "failed" and "finished"."""
        if self.finished:
            return "finished"
        if self.info["status"] == "failed":
            return "failed"
        working = self.writable or (self.info["status"] == "running" and alive(self.info))
        return "running" if working else "interrupted"

    @property
    def files(self) -> dict[str, int]:
        """{name: bytes} of the files: those of the manifest, or those that are there now."""
        if self.manifest:
            return {name: entry["bytes"] for name, entry in self.manifest["files"].items()}
        sizes = {}
        for name in tree(self.path):
            with suppress(OSError):  # replaced or removed by its writer just now
                sizes[name] = (self.path / name).stat().st_size
        return sizes

    # Reading

    def file(self, name: str) -> Path:
        """Return the path of the file `name`, which need not exist.

        Raises:
            RunError: the name leaves the folder (.., absolute, NUL, a symbolic link) or is hidden.
        """
        return inside(self.path, name)

    def json(self, name: str) -> Any:
        """Return the JSON file `name`."""
        return read_json(self._existing(name, ".json"))

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Return {tensor: array} of the safetensors file `name`; bfloat16 comes as float32."""
        return tensors.read(self._existing(name, ".safetensors"))

    def rows(self, name: str, tensor: str, index: Any) -> np.ndarray:
        """Return `tensor[index]` of the safetensors file `name` without reading the rest.

        Args:
            name: the file.
            tensor: name of a tensor in it.
            index: what numpy takes: a slice, an integer, integers, or a tuple of them.
        """
        return tensors.rows(self._existing(name, ".safetensors"), tensor, index)

    def tensor_info(self, name: str) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
        """Return ({tensor: (dtype, shape)}, metadata) of the safetensors file `name` from its header alone."""
        return tensors.info(self._existing(name, ".safetensors"))

    def table(self, name: str, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
        """Return the Parquet file `name`, or only some columns and rows of it.

        Args:
            name: the file.
            columns: names of the columns wanted; None takes all.
            filters: as in `pyarrow.parquet.read_table`, such as [("latent", "==", 3)]; row groups without a match
                are not read.
        """
        return tables.read(self._existing(name, ".parquet"), columns, filters)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows that `log` wrote, oldest first; a last line cut off by a crash is left out."""
        return read_rows(self.file(METRICS))

    def _existing(self, name: str, suffix: str) -> Path:
        path = inside(self.path, name)
        if path.suffix != suffix:
            raise RunError(f"{name} is no {suffix} file; read it with the method for its kind.")
        if not path.is_file():
            there = ", ".join(sorted(self.files)) or "none"
            raise RunError(f"{self.ref} has no file {name!r}. There are: {there}.")
        return path

    # Writing

    def start(self, lock: WriterLock) -> None:
        """Become the writer: called by `start_run` only, with the lock it took."""
        self._lock = lock
        for stale in self.path.rglob(f"*{PART}"):  # of a process that was killed while it wrote
            stale.unlink(missing_ok=True)
        self._write_info(durable=True)
        complete(self.file(METRICS))

    def progress(self, done: float, total: float | None, unit: str, **more: Any) -> None:
        """Say how far the job is; run.json holds it, together with the time, at most once a second.

        Args:
            done: how many units are done.
            total: how many there are, None where nobody knows.
            unit: of what, such as "tokens".
            more: what else a watcher wants to see, such as the throughput.
        """
        self._check_writable()
        self.info = self.info | {"progress": {"done": done, "total": total, "unit": unit, **more}}
        if time.monotonic() - self._beat >= HEARTBEAT:
            self._write_info()
            self._beat = time.monotonic()

    def log(self, step: int, **metrics: Any) -> None:
        """Append one row to metrics.jsonl: step, the metrics, and "time" in seconds since 1970.

        Numbers that are not finite are stored as null.
        """
        self._check_writable()
        append_line(self.path / METRICS, row(step, metrics))

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows after `step`: what a job writes again when it resumes from an older checkpoint."""
        self._check_writable()
        rows = [line for line in self.metrics() if line["step"] <= step]
        with replacing(self.path / METRICS) as temporary:
            temporary.write_text("".join(row(line.pop("step"), line) + "\n" for line in rows), encoding="utf-8")

    def save_tensors(self, name: str, values: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Path:
        """Write torch tensors or numpy arrays to the safetensors file `name`; return its path."""
        with self._saving(name, ".safetensors") as temporary:
            tensors.write(temporary, values, metadata)
        return self.path / name

    def save_table(self, name: str, table: pa.Table, row_group_size: int | None = None) -> Path:
        """Write `table` to the Parquet file `name`; return its path.

        Args:
            name: the file, such as "latents.parquet".
            table: what to write.
            row_group_size: rows that are read together at least; None takes pyarrow's default of about a million.
        """
        with self._saving(name, ".parquet") as temporary:
            tables.write(temporary, table, row_group_size)
        return self.path / name

    def save_json(self, name: str, obj: Any) -> Path:
        """Write `obj` to the JSON file `name`; return its path. Numbers that are not finite become null."""
        self._check_name(name, ".json")
        write_json(self.path / name, obj)
        return self.path / name

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Freeze the run: hash its files, write the manifest with `summary`, let go of the lock.

        Raises:
            RunError: the run is not being written by this object, or a link in it leaves the folder.
        """
        self._check_writable()
        finished = now()
        self.info = self.info | {"status": "finished", "finished": finished}
        self._write_info(durable=True)
        paths = {name: inside(self.path, name) for name in tree(self.path) if name != MANIFEST}
        manifest = {
            "schema": SCHEMA,
            **{key: self.info[key] for key in ("kind", "id", "created")},
            "finished": finished,
            "summary": dict(summary),
            "files": {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in paths.items()},
        }
        manifest = plain(manifest)
        write_json(self.path / MANIFEST, manifest | {"digest": seal(manifest)})
        self.manifest = read_manifest(self.path, self.info)
        (self.path / LOCK).unlink(missing_ok=True)
        self.close()

    def fail(self, error: BaseException | str) -> None:
        """Mark the run as failed, with the reason, and let go of the lock; `start_run` still resumes it."""
        reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._stop("failed", error=reason[:2000])

    def close(self) -> None:
        """Let go of the lock; an unfinished run stays as it is and `start_run` resumes it."""
        if self.writable and not self.finished:
            self._stop("interrupted")
        elif self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Run:
        """Return the run itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Mark the run as failed (an error) or interrupted (Ctrl-C, exit, not finished); swallow nothing."""
        if isinstance(error, Exception) and self.writable:
            self.fail(error)
        self.close()

    def _stop(self, status: str, **more: Any) -> None:
        self._check_writable()
        self.info = self.info | {"status": status} | more
        try:
            self._write_info(durable=True)
        except RunError as error:  # a full disk must not hide why the job ended; nobody holding the lock says enough
            log.warning("%s", error)
        finally:
            if self._lock is not None:
                self._lock.release()

    def _write_info(self, *, durable: bool = False) -> None:
        self.info = self.info | {"heartbeat": now()}
        write_json(self.path / INFO, self.info, durable=durable)

    def _check_writable(self) -> None:
        if self.finished:
            raise RunError(f"{self.ref} is finished and frozen; start a new run with it as a parent.")
        if not self.writable:
            raise RunError(f"{self.ref} was opened for reading or has been closed; start_run returns one to write.")

    def _check_name(self, name: str, suffix: str) -> Path:
        self._check_writable()
        path = inside(self.path, name)
        if path.suffix != suffix:
            raise RunError(f"The name of this file must end in {suffix}, got {name!r}; rename it.")
        if name in (INFO, MANIFEST):
            raise RunError(f"{name} is written by the run itself; choose another name.")
        return path

    @contextmanager
    def _saving(self, name: str, suffix: str) -> Iterator[Path]:
        with replacing(self._check_name(name, suffix)) as temporary:
            yield temporary
