"""The options of a command as a flat table, and values given as text, numbers or objects put in their places.

A sweep's parameter is named like the option: `train.lr`, `d_sae`, `rule_args.k`, `text` (- and _ are one). The same
function reads what a file says and what wandb's agent passes on a command line, where everything has become text.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import keyword
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from interp.config import from_json
from interp.names import shorten, unknown

_NO_PREFIX = typing.get_args(tyro.conf.OmitArgPrefixes[int])[1]
_WORDS = {"none": None, "null": None, "true": True, "false": False}


@dataclass(frozen=True)
class Option:
    """One option: where its value stands in the nested configuration, and of what type it is."""

    path: tuple[str, ...]
    """Fields from the outermost dataclass down."""
    hint: Any
    """Its type."""


def options(cls: type, skip: Sequence[str] = ()) -> dict[str, Option]:
    """Return {name: option} of the dataclass `cls`, named as on the command line, without those named in `skip`."""
    found: dict[str, Option] = {}
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, bare = hints[field.name], _bare(hints[field.name])
        if isinstance(bare, type) and dataclasses.is_dataclass(bare):
            prefix = "" if _NO_PREFIX in getattr(hint, "__metadata__", ()) else f"{field.name}."
            below = options(bare)
            found |= {f"{prefix}{name}": Option((field.name, *o.path), o.hint) for name, o in below.items()}
        else:
            found[field.name] = Option((field.name,), bare)
    return {name: option for name, option in found.items() if name not in skip}


def convert(values: Mapping[str, Any], table: Mapping[str, Option], where: str = "parameters") -> dict[str, Any]:
    """Return {full name: value} with every value of the type of its option.

    Raises:
        ValueError: an unknown option (with the nearest match), a value of the wrong type, an option given twice.
    """
    found: dict[str, Any] = {}
    for name, value in _flat(values):
        option = _find(name, table, where)
        full = name.replace("-", "_")
        if full in found:
            raise ValueError(f"{where}: {full!r} is given twice; leave one out.")
        found[full] = _typed(option.hint, value, f"{where}.{full}")
    return found


def nested(values: Mapping[str, Any], table: Mapping[str, Option]) -> dict[str, Any]:
    """Return what `convert` returned as nested objects, for `interp.config.from_json`."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *above, last = _find(name, table, "parameters").path
        place = tree
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
    return tree


def read_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Return {name: value} from words in any of the forms in which wandb's agent passes parameters.

    `--key=value` (${args}), `--key value` (args_no_equals), `key=value` (args_no_hyphens), `+key=value` and
    `++key=value` (hydra), `--key` for true (args_no_boolean_flags), one JSON object (args_json), or the path of a file
    with one (args_json_file).
    """
    found: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        key, equals, value = word.lstrip("-+").partition("=")
        if word.startswith("{"):
            more: dict[str, Any] = _object(word)
        elif equals:
            more = {key: value}
        elif word.startswith("--") and key:
            more = {key: words.pop(0) if words and not words[0].startswith("--") else True}
        elif word.endswith(".json"):
            more = _object(Path(word).read_text(encoding="utf-8"))
        else:
            raise ValueError(f"Parameters are given as --key=value or as one JSON object, got {shorten(word)}.")
        for name in more:
            if name in found:
                raise ValueError(f"The parameter {name!r} is given twice; leave one out.")
        found |= more
    return found


def _find(name: str, table: Mapping[str, Option], where: str) -> Option:
    """Return the option `name`, or the entry of an option that holds named values, such as rule_args.k."""
    full = name.replace("-", "_")
    if full in table:
        return table[full]
    head, dot, entry = full.partition(".")
    if dot and head in table and typing.get_origin(table[head].hint) is dict:
        return Option((*table[head].path, entry), typing.get_args(table[head].hint)[1])
    raise ValueError(unknown(f"option in {where}:", name, table))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted name, value) pairs; objects, also as text (as ${args} shows them), are taken apart."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        inner = _object(value) if isinstance(value, str) and value.startswith("{") and value.endswith("}") else value
        if isinstance(inner, Mapping):
            found += _flat(inner, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", inner))
    return found


def _typed(hint: Any, value: Any, name: str) -> Any:
    """Return `value` as the type `hint`; text is read as what it stands for first, as text last."""
    above, _, last = name.rpartition(".")
    key = last if last.isidentifier() and not keyword.iskeyword(last) else "value"
    holder = dataclasses.make_dataclass("Holder", [(key, hint)])
    first: ValueError | None = None
    for candidate in _readings(value):
        try:
            return getattr(from_json(holder, {key: candidate}, above), key)
        except ValueError as error:
            first = first or error
    raise first or ValueError(f"{name} cannot be {shorten(value)}.")


def _readings(value: Any) -> list[Any]:
    """Return what `value` may stand for, likeliest first: 4096.0 may be a whole number, and "1e-3" a number."""
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in _WORDS:
            return [_WORDS[text.lower()], value]
        for kind in (int, float):
            try:
                return [*_readings(kind(text))[:-1], value]
            except ValueError:
                continue
        return [*_list(text), value]
    whole = [int(value)] if isinstance(value, float) and value.is_integer() else []
    return [value, *whole, str(value)] if isinstance(value, int | float) and not isinstance(value, bool) else [value]


def _list(text: str) -> list[list[Any]]:
    """Return [the list that `text` shows, in JSON or as Python writes it], or nothing where it shows none."""
    if not (text.startswith("[") and text.endswith("]")):
        return []
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError):
            continue
        return [found] if isinstance(found, list) else []
    return []


def _object(text: str) -> dict[str, Any]:
    """Return the object that `text` shows, in JSON or as Python writes it."""
    try:
        found = json.loads(text)
    except ValueError:
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"Parameters in braces must be a JSON object, got {shorten(text)}.") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"Parameters in braces must be an object with names, got {shorten(text)}.")
    return found


def _bare(hint: Any) -> Any:
    """Return the type inside `Annotated`."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
