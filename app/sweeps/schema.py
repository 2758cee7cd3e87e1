"""A sweep's file: wandb's schema, checked key by key, and the cells it stands for.

The file goes unchanged to `wandb sweep` and `wandb agent`. Here `program` names what a cell does, and `command` is only
checked: it is what wandb's agent runs. Keys that only wandb's server can serve are refused by name.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.sweeps.distributions import Parameter, parameter
from interp.names import shorten, unknown

MACROS = (
    "env", "interpreter", "program", "args", "args_no_hyphens", "args_no_boolean_flags", "args_no_equals", "args_json",
    "args_json_file", "args_append_hydra", "args_override_hydra",
)  # fmt: skip
"""What wandb's agent fills in; one that it does not know it drops without a word."""

_ONLINE = "`wandb sweep FILE` and `wandb agent ID` run it; here use method: grid or random."
REFUSED = {
    "metrics": f"several metrics are optimised by wandb's server: {_ONLINE}",
    "scheduler": f"schedulers belong to wandb's server: {_ONLINE}",
    "job": f"launch jobs belong to wandb's server: {_ONLINE}",
    "image_uri": f"launch images belong to wandb's server: {_ONLINE}",
}
KEYS = {
    "apiVersion", "kind", "controller", "description", "program", "entity", "project", "method", "command", "name",
    "run_cap", "metric", "early_terminate", "parameters", *REFUSED,
}  # fmt: skip
METRIC_KEYS = ("name", "goal", "target", "impute", "impute_while_running")
_TRIES = 200  # drawings without a new cell after which a random sweep counts as exhausted


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says."""

    name: str
    """For people, and wandb's group."""
    program: str
    """What a cell does."""
    method: str
    """"grid" or "random"."""
    parameters: tuple[Parameter, ...]
    """In the order of the file, nested ones with dots."""
    metric: str | None = None
    """What the table is sorted by."""
    goal: str = "minimize"
    """"minimize" or "maximize"."""
    run_cap: int | None = None
    """Cells at most."""
    project: str = "mechscope"
    """Of wandb."""
    entity: str | None = None
    """Of wandb."""
    notes: tuple[str, ...] = ()
    """What the file asks for and only wandb's server does."""

    def cells(self, count: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
        """Return {option: value} for each cell, all different.

        Args:
            count: how many; a grid takes the first ones. None takes `run_cap`, or all of a grid.
            seed: of a random sweep. More cells of the same seed begin with the same cells, and a parameter's values
                do not depend on which others there are.

        Raises:
            ValueError: a random sweep without a count, a grid over a range without levels.
        """
        limit = min((n for n in (count, self.run_cap) if n is not None), default=None)
        if self.method == "grid":
            return list(itertools.islice(self._grid(), limit))
        if limit is None:
            raise ValueError("A random sweep needs a number of cells: give --count, or run_cap in the file.")
        return list(itertools.islice(self._random(seed), limit))

    def _grid(self) -> Iterator[dict[str, Any]]:
        levels = []
        for one in self.parameters:
            values = one.levels()
            if values is None:
                raise ValueError(
                    f"A grid needs a list of values, and {one.name!r} is {one.distribution}; give it values, or use "
                    "method: random."
                )
            levels.append(values)
        names = [one.name for one in self.parameters]
        yield from _distinct(dict(zip(names, row, strict=True)) for row in itertools.product(*levels))

    def _random(self, seed: int) -> Iterator[dict[str, Any]]:
        """Yield cells; a space with few of them is exhausted when many drawings in a row bring none that is new."""

        def draw(i: int) -> dict[str, Any]:
            return {one.name: one.draw(random.Random(f"{seed}/{i}/{one.name}")) for one in self.parameters}

        yield from _distinct((draw(i) for i in itertools.count()), patience=_TRIES)


def _distinct(cells: Iterator[dict[str, Any]], patience: int | None = None) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    repeats = 0
    for cell in cells:
        key = repr(sorted(cell.items()))
        repeats = repeats + 1 if key in seen else 0
        if patience is not None and repeats > patience:
            return
        if key not in seen:
            seen.add(key)
            yield cell


def read_sweep(path: Path) -> Sweep:
    """Return the sweep in the YAML file `path`.

    Raises:
        ValueError: no YAML, an unknown key (with the nearest match), or something only wandb's server can do.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    return parse_sweep(data, path.name, path.stem)


def parse_sweep(data: Any, where: str = "sweep", stem: str = "sweep") -> Sweep:
    """Return the sweep that `data` (a file's content) describes; `stem` is its name unless it has one."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be an object with keys such as method and parameters, got {shorten(data)}.")
    for key in data:
        if key not in KEYS:
            raise ValueError(unknown(f"key in {where}:", key, KEYS))
        if key in REFUSED:
            raise ValueError(f"{where}: {key} cannot be run here: {REFUSED[key]}")
    _check_command(data.get("command"), where)
    metric = _metric(data.get("metric"), where)
    return Sweep(
        name=_text(data, "name", stem, where),
        program=_text(data, "program", "train", where),
        method=_method(data.get("method"), where),
        parameters=tuple(_parameters(data.get("parameters"), f"{where}: parameters")),
        metric=metric.get("name"),
        goal=metric.get("goal", "minimize"),
        run_cap=_run_cap(data.get("run_cap"), where),
        project=_text(data, "project", "mechscope", where),
        entity=data.get("entity"),
        notes=("early_terminate is left to wandb: here every cell runs to its end",) * ("early_terminate" in data),
    )


def _method(method: Any, where: str) -> str:
    if method in ("bayes", "custom"):
        raise ValueError(f"{where}: method {method} needs wandb's server: {_ONLINE}")
    if method not in ("grid", "random"):
        raise ValueError(f"{where}: " + unknown("method", method, ("grid", "random", "bayes")))
    return method


def _parameters(given: Any, where: str, prefix: str = "") -> Iterator[Parameter]:
    """Yield the parameters, nested ones under their dotted names."""
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{where} must name at least one parameter, got {shorten(given)}.")
    for key, value in given.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", key):
            raise ValueError(f"{where}: a parameter is named by letters, digits, _ . and -, got {shorten(key)}.")
        if isinstance(value, Mapping) and "parameters" in value:
            if len(value) > 1:
                raise ValueError(f"{where}.{key} holds parameters and can hold nothing else, got {shorten(value)}.")
            yield from _parameters(value["parameters"], f"{where}.{key}", f"{name}.")
        else:
            yield parameter(name, value, f"{where}.{key}")


def _metric(given: Any, where: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ValueError(f"{where}: metric must be an object with a name, got {shorten(given)}.")
    for key in given:
        if key not in METRIC_KEYS:
            raise ValueError(unknown(f"key in {where}: metric:", key, METRIC_KEYS))
    if given.get("goal", "minimize") not in ("minimize", "maximize"):
        raise ValueError(f"{where}: " + unknown("goal", given["goal"], ("minimize", "maximize")))
    return dict(given)


def _check_command(command: Any, where: str) -> None:
    """Refuse a command with a macro that wandb's agent would silently leave out."""
    if command is None:
        return
    if not isinstance(command, list):
        raise ValueError(f"{where}: command must be a list of words, got {shorten(command)}.")
    for word in map(str, command):
        macro = re.fullmatch(r"\$\{(.*)\}", word)
        if macro and macro[1] not in MACROS and not macro[1].startswith("envvar:"):
            raise ValueError(unknown(f"macro in {where}: command:", macro[1], MACROS))


def _text(data: Mapping[str, Any], key: str, default: str, where: str) -> str:
    value = data.get(key, default)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: {key} must be text, got {shorten(value)}.")
    return value


def _run_cap(value: Any, where: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{where}: run_cap must be a whole number of 1 or more, got {shorten(value)}.")
    return value
