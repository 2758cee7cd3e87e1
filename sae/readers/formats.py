"""The formats that are read, by name, and which one a folder holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from interp.names import unknown
from interp.runs.files import shown
from sae.readers import dictionary_learning, gemma_scope, sae_lens, sparsify
from sae.readers.foreign import Foreign


class Format(NamedTuple):
    """How to recognise and read one format."""

    matches: Callable[[Path], bool]
    """Whether a folder holds it."""
    read: Callable[[Path], Foreign]
    """Reads the folder."""
    files: tuple[str, ...]
    """Files that it is made of: what is fetched from the hub, and hashed."""


FORMATS: dict[str, Format] = {
    "sae-lens": Format(sae_lens.matches, sae_lens.read, (sae_lens.CONFIG, sae_lens.WEIGHTS)),
    "gemma-scope": Format(gemma_scope.matches, gemma_scope.read, (gemma_scope.WEIGHTS,)),
    "sparsify": Format(sparsify.matches, sparsify.read, (sparsify.CONFIG, sparsify.WEIGHTS)),
    "dictionary-learning": Format(
        dictionary_learning.matches,
        dictionary_learning.read,
        (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
    ),
}


def detect(folder: Path) -> str:
    """Return the name of the format that `folder` holds.

    Raises:
        ValueError: it holds none, or more than one.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {shown(folder)}; a dictionary is a folder with its weights.")
    found = [name for name, one in FORMATS.items() if one.matches(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{shown(folder)} holds dictionaries of {' and '.join(found)}; say which with --format.")
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    wanted = ", ".join(f"{' + '.join(one.files)} ({name})" for name, one in FORMATS.items())
    raise ValueError(f"{shown(folder)} holds no dictionary: {wanted} was expected, there is {there}.")


def read_dictionary(folder: Path, format: str = "auto") -> tuple[str, Foreign]:
    """Return (format, the dictionary in `folder`).

    Args:
        folder: with the files of one dictionary.
        format: a name in `FORMATS`; `auto` looks which one it is.

    Raises:
        ValueError: the files are missing, damaged, hostile, or say something that is not understood.
    """
    if format == "auto":
        format = detect(folder)
    elif format not in FORMATS:
        raise ValueError(unknown("format", format, [*FORMATS, "auto"]))
    return format, FORMATS[format].read(folder)
