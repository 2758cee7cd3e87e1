"""The families of measures by name. A new one is one file beside these and one line here, or any object for `profile`.

Nothing of a family is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.names import unknown

if TYPE_CHECKING:
    from interp.layers.family import Family

FAMILIES: dict[str, str] = {
    "stream": "interp.layers.families.stream:StreamFamily",
    "geometry": "interp.layers.families.geometry:GeometryFamily",
    "similarity": "interp.layers.families.similarity:SimilarityFamily",
    "depth": "interp.layers.families.depth:DepthFamily",
    "importance": "interp.layers.families.importance:ImportanceFamily",
    "lens": "interp.layers.families.lens:LensFamily",
    "attention": "interp.layers.families.attention:AttentionFamily",
    "spectra": "interp.layers.families.spectra:SpectraFamily",
    "coding": "interp.layers.families.coding:CodingFamily",
    "gradients": "interp.layers.families.gradients:GradientsFamily",
    "readout": "interp.layers.families.readout:ReadoutFamily",
    "selective": "interp.layers.families.selective:SelectiveFamily",
}
"""Name -> module and class, in the order of figures."""

OPTIONAL: tuple[str, ...] = ("selective",)
"""Families that a profile holds only when they are named."""

__all__ = ["FAMILIES", "OPTIONAL", "build_families", "default_families", "family"]


def default_families() -> list[str]:
    """Return the names of the families that a profile holds unless others are named."""
    return [name for name in FAMILIES if name not in OPTIONAL]


def family(name: str, arguments: Mapping[str, Any] | None = None) -> Family:
    """Return the family `name`, made with `arguments`.

    Raises:
        ValueError: an unknown name, or arguments that the family refuses.
    """
    if name not in FAMILIES:
        raise ValueError(unknown("family", name, FAMILIES))
    module, _, cls = FAMILIES[name].partition(":")
    try:
        return getattr(importlib.import_module(module), cls)(**(arguments or {}))
    except TypeError as error:
        raise ValueError(f"The family {name} does not take {dict(arguments or {})}: {error}.") from error


def build_families(families: Sequence[str | Family] | None = None) -> list[Family]:
    """Return families from names and objects; None takes the default ones.

    Raises:
        ValueError: an unknown name, a name twice, none at all, or an object that is no family.
    """
    from interp.layers.family import Family

    wanted = default_families() if families is None else families
    built = [family(one) if isinstance(one, str) else one for one in wanted]
    for one in built:
        if not isinstance(one, Family):
            raise ValueError(f"A family has name, measures, sites, begin, update and finish, got {type(one).__name__}.")
    names = [one.name for one in built]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Families must be at least one, each once, got {', '.join(names) or 'none'}.")
    return built
