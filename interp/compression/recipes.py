"""Recipes as text: a small YAML or JSON list of steps, in a file, on the command line, and in the record of a run.

- {step: magnitude, sparsity: 0.3}
- {step: rtn, bits: 4, group: 64}
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from interp.compression.steps import STEPS
from interp.config import from_json, to_json
from interp.models.spec import ModelSpec
from interp.names import shorten, unknown
from interp.types import Recipe

LIMIT = 65_536
"""Bytes of a recipe's file, at most."""
MOST_STEPS = 1_000
"""Steps of a recipe, at most."""
DEPTH = 16
"""Brackets inside one another, at most; YAML's reader needs time that grows with their square."""

NAMED: dict[str, list[dict[str, Any]]] = {
    "int8": [{"step": "rtn", "bits": 8}],
    "int6": [{"step": "rtn", "bits": 6}],
    "int4": [{"step": "rtn", "bits": 4}],
    "int4-g64": [{"step": "rtn", "bits": 4, "group": 64}],
    "int3": [{"step": "rtn", "bits": 3}],
    "prune10": [{"step": "magnitude", "sparsity": 0.1}],
    "prune30": [{"step": "magnitude", "sparsity": 0.3}],
    "prune50": [{"step": "magnitude", "sparsity": 0.5}],
}
"""Recipes that have a name."""

EXAMPLE = "[{step: rtn, bits: 4}]"


def read_recipe(source: str | os.PathLike[str]) -> Recipe:
    """Return the recipe in a YAML or JSON file, in such text itself, or of a name in `NAMED`.

    Args:
        source: a path, a name, or text that starts with `[`, `{` or `-`.

    Raises:
        ValueError: there is no such file or name, it is too large or no list of steps, or a step does not exist or
            does not take what it is given (with the nearest match).
    """
    text = str(source).strip() if isinstance(source, str) else None
    if text is not None and text[:1] in ("[", "{", "-"):
        if len(text) > LIMIT:
            raise ValueError(f"A recipe has at most {LIMIT:,} characters, got {len(text):,}.")
        return parse_recipe(_yaml(text, "the recipe"), "the recipe")
    if text in NAMED:
        return parse_recipe(NAMED[text], text)
    path = Path(source).expanduser()
    if not _exists(path):
        asked = unknown("recipe", str(source), NAMED)
        raise ValueError(f"{asked} There is no such file either. A recipe can also stand here itself: {EXAMPLE!r}.")
    return parse_recipe(_yaml(_content(path), str(path)), str(path))


def _exists(path: Path) -> bool:
    """Return whether there is something at `path`, which may be any text."""
    try:
        return bool(path.name) and path.exists()
    except (OSError, ValueError):  # too long for a name, a NUL in it
        return False


def _content(path: Path) -> str:
    """Return the text of the file `path`."""
    if not path.is_file():
        raise ValueError(f"{path} is no file; a recipe is a small YAML or JSON file with a list of steps: {EXAMPLE}")
    size = path.stat().st_size
    if size > LIMIT:
        raise ValueError(f"{path} has {size:,} bytes; a recipe has at most {LIMIT:,}. Is it another file?")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text (byte {error.start} is no UTF-8); a recipe is YAML or JSON.") from error


class _Loader(yaml.SafeLoader):
    """Plain data only, and a key that stands twice is an error: the first value would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            counts = Counter(str(key.value) for key, _ in node.value)
            name = shorten(counts.most_common(1)[0][0])
            raise yaml.YAMLError(f"the key {name} stands twice in line {node.start_mark.line + 1}")
        return found


def _yaml(text: str, where: str) -> Any:
    """Return what the YAML `text` says; JSON is YAML."""
    depth = accumulate((sign in "[{") - (sign in "]}") for sign in text)
    if max(depth, default=0) > DEPTH:
        raise ValueError(f"{where} has more than {DEPTH} brackets inside one another; a recipe looks like {EXAMPLE}")
    try:
        aliases = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
        found = None if aliases else _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is no YAML: {' '.join(str(error).split())[:300]}") from error
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply; a recipe looks like {EXAMPLE}") from None
    except ValueError as error:  # Python's own, of what YAML takes for a date or a number: 2001-99-99
        raise ValueError(
            f"{where} holds a value that cannot be read: {error}. A recipe looks like {EXAMPLE}"
        ) from error
    if aliases:
        raise ValueError(f"{where} uses YAML aliases (*name), which recipes do not have; write the step out.")
    return found


def parse_recipe(data: Any, where: str = "the recipe") -> Recipe:
    """Return the recipe that `data`, a list of mappings, describes; `where` is what messages call it.

    Raises:
        ValueError: as `read_recipe`.
    """
    if data is None or (isinstance(data, list | tuple) and not data):
        raise ValueError(f"{where} is empty; a recipe is a list of steps: {EXAMPLE}")
    if not isinstance(data, list | tuple):
        raise ValueError(f"{where} must be a list of steps, such as {EXAMPLE}, got {shorten(data)}.")
    if len(data) > MOST_STEPS:
        raise ValueError(f"{where} has {len(data):,} steps; a recipe has at most {MOST_STEPS:,}.")
    return tuple(_step(entry, f"step {number} of {where}") for number, entry in enumerate(data, 1))


def _step(entry: Any, where: str) -> Any:
    """Return the step that one mapping describes."""
    if not isinstance(entry, Mapping) or "step" not in entry:
        raise ValueError(
            f"{where} must be a mapping with the key 'step', such as {EXAMPLE[1:-1]}, got {shorten(entry)}."
        )
    name = entry["step"]
    if not isinstance(name, str) or name not in STEPS:
        raise ValueError(unknown(f"step in {where}:", name, STEPS))
    hints = get_type_hints(STEPS[name])
    fields = {key: _lenient(hints.get(key), value) for key, value in entry.items() if key != "step"}
    return from_json(STEPS[name], fields, f"{where} ({name})")


def _lenient(hint: Any, value: Any) -> Any:
    """Return a single value as a list where a list is wanted (`layers: 3`), and 1e-3, text in YAML, as a number."""
    if getattr(hint, "__origin__", None) is tuple and isinstance(value, str | int):
        return [value]
    if isinstance(value, str) and float in (hint, *get_args(hint)):
        with suppress(ValueError):
            return float(value)
    return value


def recipe_json(recipe: Recipe) -> list[dict[str, Any]]:
    """Return `recipe` as JSON: for each step a dictionary of its name, as `step`, and every argument."""
    return [to_json(step) for step in recipe]


def read_spec(data: Any, where: str = "the model") -> ModelSpec:
    """Return the `ModelSpec` that `to_json` wrote as `data`, its recipe included.

    Raises:
        ValueError: an unknown key, step or argument (with the nearest match), or a value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be an object with keys, got {shorten(data)}.")
    bare = from_json(ModelSpec, {key: value for key, value in data.items() if key != "recipe"}, where)
    steps = data.get("recipe") or []
    recipe = parse_recipe(steps, f"the recipe of {where}") if steps else ()
    return ModelSpec(bare.name, bare.revision, bare.dtype, recipe)
