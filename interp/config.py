"""Configurations as JSON and back: frozen dataclasses in, plain dicts out, and the hash that identifies a run.

What cannot be named exactly is refused: an unknown key with the nearest match, a wrong type with the key it
stands at, NaN wherever a hash is taken. A class that dataclass fields cannot describe may define
`__to_json__(self)` and a classmethod `__from_json__(cls, data)`.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from interp.names import shorten, unknown

T = TypeVar("T")

EXACT_INTEGER = 2**53
"""Up to here a float64 holds every integer."""


def to_json(config: Any) -> Any:
    """Return `config` as dicts, lists, text, numbers, booleans and None; a dataclass becomes a dict of its fields."""
    if hasattr(config, "__to_json__"):
        return config.__to_json__()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, Mapping):
        for key in config:
            if not isinstance(key, str):
                raise ValueError(f"Keys of a configuration must be text, got {shorten(key)}; write it as text.")
        return {key: to_json(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_json(value) for value in config]
    if isinstance(config, enum.Enum):
        return to_json(config.value)
    if isinstance(config, Path):
        return str(config)
    if config is None or type(config) in (bool, int, float, str):
        return config
    raise ValueError(
        f"A configuration holds dataclasses, dicts, lists, text, numbers, booleans and None, "
        f"got {type(config).__name__}: {shorten(config)}; convert it first."
    )


def from_json(cls: type[T], data: Any, where: str = "configuration") -> T:
    """Return the dataclass `cls` built from `data`, the inverse of `to_json`.

    Args:
        cls: a dataclass; its fields may be numbers, text, booleans, None, `Literal`, `Path`, enums, unions,
            lists, tuples, dicts with text keys, and dataclasses again.
        data: what `to_json` returned, or the same read from a file.
        where: what messages call the place, such as "runs/sae/x/run.json".

    Raises:
        ValueError: an unknown or missing key, or a value of the wrong type; the message names the key.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be an object with keys, got {shorten(data)}.")
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls)) if f.init}
    for key in data:
        if key not in fields:
            raise ValueError(unknown(f"key in {where}:", key, fields))
    hints = typing.get_type_hints(cls)
    values = {key: _value(hints[key], data[key], f"{where}.{key}") for key in fields if key in data}
    for name, f in fields.items():
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where} lacks the key '{name}', which has no default; add it.")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def canonical(obj: Any) -> str:
    """Return `obj` as JSON that is equal exactly for equal values: sorted, compact, 1.0 written as 1.

    Raises:
        ValueError: a number is NaN or infinite, or something is no JSON.
    """
    return json.dumps(_canonical(to_json(obj), ""), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(obj: Any) -> str:
    """Return the SHA-256 of `canonical(obj)` as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(obj).encode("ascii")).hexdigest()


def _canonical(value: Any, where: str) -> Any:
    """Return `value` with integral floats as integers: a rate of 1 and of 1.0 is the same request."""
    if isinstance(value, dict):
        return {key: _canonical(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where.lstrip('.') or 'A value'} is {value}; a configuration holds finite numbers only.")
        return int(value) if value.is_integer() and abs(value) <= EXACT_INTEGER else value
    return value


def _value(hint: Any, data: Any, where: str) -> Any:
    """Return `data` as the type `hint` asks for."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _value(args[0], data, where)
    if origin in (Union, types.UnionType):
        return _union(args, data, where)
    if origin is Literal:
        return _literal(args, data, where)
    if isinstance(hint, type) and hasattr(hint, "__from_json__"):
        return cast(Any, hint).__from_json__(data)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_json(hint, data, where)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(_literal(tuple(member.value for member in hint), data, where))
    return _plain(origin or hint, args, data, where)


def _plain(kind: Any, args: tuple[Any, ...], data: Any, where: str) -> Any:
    """Return `data` as a container or a scalar of type `kind`."""
    if kind in (tuple, list, Sequence):
        return _sequence(kind, args, data, where)
    if kind in (dict, Mapping):
        if not isinstance(data, Mapping):
            raise _wrong(where, "an object with keys", data)
        hint = args[1] if args else Any
        return {key: _value(hint, item, f"{where}.{key}") for key, item in data.items()}
    if kind in (None, type(None)):
        if data is not None:
            raise _wrong(where, "null", data)
        return None
    if kind in _SCALARS:
        wanted, accepts, convert = _SCALARS[kind]
        if not accepts(data):
            raise _wrong(where, wanted, data)
        return convert(data)
    return data  # Any, object, protocols: nothing to check against


def _number(data: Any) -> bool:
    return isinstance(data, int | float) and not isinstance(data, bool)


_SCALARS: dict[Any, tuple[str, Callable[[Any], bool], Callable[[Any], Any]]] = {
    bool: ("true or false", lambda data: isinstance(data, bool), bool),
    int: ("an integer", lambda data: isinstance(data, int) and not isinstance(data, bool), int),
    float: ("a number", _number, float),
    str: ("text", lambda data: isinstance(data, str), str),
    Path: ("text (a path)", lambda data: isinstance(data, str), Path),
}


def _sequence(kind: Any, args: tuple[Any, ...], data: Any, where: str) -> Any:
    """Return `data` as a list, or as a tuple of fixed or free length."""
    if not isinstance(data, list | tuple):
        raise _wrong(where, "a list", data)
    if kind is tuple and args and args[-1] is not Ellipsis:
        length = 0 if args == ((),) else len(args)
        if len(data) != length:
            raise ValueError(f"{where} must have {length} entries, got {len(data)}.")
        hints: Sequence[Any] = args
    else:
        hints = [args[0] if args else Any] * len(data)
    items = [_value(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(hints, data, strict=False))]
    return items if kind is list else tuple(items)


def _union(args: tuple[Any, ...], data: Any, where: str) -> Any:
    """Return `data` as the member it fits: its own type first, so that 1 in `float | int` stays an integer."""
    if type(data) in args:
        return data
    problems = []
    for hint in args:
        try:
            return _value(hint, data, where)
        except ValueError as error:
            problems.append(error)
    if isinstance(data, Mapping):
        objects = [p for hint, p in zip(args, problems, strict=True) if dataclasses.is_dataclass(hint)]
        if objects:
            raise objects[0]
    names = " or ".join(dict.fromkeys(_name(hint) for hint in args))
    raise _wrong(where, names, data)


def _name(hint: Any) -> str:
    """Return what a person calls the type `hint`."""
    if hint in (None, type(None)):
        return "null"
    if hint in _SCALARS:
        return _SCALARS[hint][0]
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)


def _literal(choices: tuple[Any, ...], data: Any, where: str) -> Any:
    """Return the one of `choices` that equals `data`, in type too."""
    for choice in choices:
        if choice == data and type(choice) is type(data):
            return choice
    raise ValueError(unknown(f"value of {where}:", data, [str(choice) for choice in choices]))


def _wrong(where: str, wanted: str, data: Any) -> ValueError:
    return ValueError(f"{where} must be {wanted}, got {shorten(data)}.")
