"""What a cell of a sweep can do, by name: the `program` of a sweep's file. A new one is a module and a line here."""

from __future__ import annotations

import importlib
from typing import Any

from interp.names import unknown

PROGRAMS = {
    "compare": "app.sweeps.comparison",
    "train": "app.sweeps.training",
}
"""{program: module with `table()`, `run_cell(values, runs, mirror)` and `estimate(cells, runs, threads)`}."""


def open_program(name: str) -> Any:
    """Return the module of the program `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PROGRAMS:
        raise ValueError(unknown("program of a sweep:", name, PROGRAMS))
    return importlib.import_module(PROGRAMS[name])
