"""metrics.jsonl: one JSON object a line, appended while a job runs, so that a crash costs the last line at most."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.runs.errors import RunDamaged
from interp.runs.files import cannot_write, plain, shown


def row(step: int, metrics: Mapping[str, Any]) -> str:
    """Return the line for `metrics` at `step`, without its end; "time" (s since 1970) is added where missing."""
    return json.dumps(plain({"step": int(step), **metrics, "time": metrics.get("time", round(time.time(), 3))}))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of `path`; a last line without its end is left out, a missing file is no rows.

    Raises:
        RunDamaged: a line that was written to its end is no row.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunDamaged(f"{shown(path)} cannot be read: {error.strerror}.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("step"), int):
            raise RunDamaged(
                f"{shown(path)} is damaged: line {number} is no row of metrics. Delete that line, or the run's folder."
            )
        rows.append(found)
    return rows


def complete(path: Path) -> None:
    """Cut off a last line without its end, so that the next row does not continue it."""
    if not path.exists():
        return
    try:
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)
    except OSError as error:
        raise cannot_write(path, error) from error
