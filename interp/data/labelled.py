"""Labelled texts from a file, and how they are divided: rows that belong together never stand on both sides."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interp.names import unknown

FORMATS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz")


@dataclass(frozen=True)
class Labelled:
    """Texts, each with a label."""

    texts: tuple[str, ...]
    """The texts."""
    labels: tuple[str, ...]
    """The label of each, as text."""
    groups: tuple[str, ...]
    """What each belongs to; texts of one group are not divided. Equal texts are one group."""

    def __post_init__(self) -> None:
        """Refuse lengths that differ, and fewer than two labels."""
        if not len(self.texts) == len(self.labels) == len(self.groups):
            raise ValueError(
                f"texts, labels and groups must be equally many, got {len(self.texts)}, {len(self.labels)} and "
                f"{len(self.groups)}."
            )
        if len(self.classes) < 2:
            raise ValueError(f"A labelled set needs two labels or more, got {list(self.classes)}; check the field.")

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.texts)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that occur, sorted."""
        return tuple(sorted(set(self.labels)))

    def is_class(self, name: str) -> NDArray[np.bool_]:
        """Return which texts have the label `name`."""
        if name not in self.classes:
            raise ValueError(unknown("label", name, self.classes))
        return np.array([label == name for label in self.labels])

    def sample(self, n: int, seed: int = 0) -> Labelled:
        """Return `n` of the texts (all, where there are fewer), drawn without replacement."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:n])
        return Labelled(*(tuple(np.array(part, object)[chosen]) for part in (self.texts, self.labels, self.groups)))

    def split(self, test: float = 0.2, seed: int = 0) -> NDArray[np.bool_]:
        """Return which texts are for training; whole groups, drawn until the others are `test` of all.

        Raises:
            ValueError: a share outside of 0..1, or a side on which a label is missing.
        """
        return split(self.labels, self.groups, test, seed)


DRAWS = 100
"""Divisions that are drawn, at most, until both sides have every label."""


def split(labels: Sequence[str], groups: Sequence[str], test: float = 0.2, seed: int = 0) -> NDArray[np.bool_]:
    """Return which rows are for training: see `Labelled.split`."""
    if not 0 < test < 1:
        raise ValueError(f"test is a share and must lie between 0 and 1, got {test}.")
    names, of = np.unique(np.array(groups, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    lacking = ""
    for _ in range(DRAWS):
        order = rng.permutation(len(names))
        sizes = np.bincount(of, minlength=len(names))[order]
        # A group goes to the test side while less than the share has gone before it.
        for_test = np.zeros(len(names), dtype=bool)
        for_test[order] = np.cumsum(sizes) - sizes < round(test * len(of))
        train = ~for_test[of]
        lacking = _lacking(labels, {"training": train, "test": ~train})
        if not lacking:
            return train
    raise ValueError(f"Of {len(names)} groups, {lacking}. Give more texts, or another share.")


def _lacking(labels: Sequence[str], sides: Mapping[str, NDArray[np.bool_]]) -> str:
    """Return which side has no row of which label, in words; "" where both have all."""
    for side, rows in sides.items():
        missing = sorted(set(labels) - {label for label, here in zip(labels, rows, strict=True) if here})
        if missing:
            return f"the {side} part has no {missing[0]!r} in any of {DRAWS} divisions"
    return ""


def read_labelled(
    path: Path | str,
    text: str = "text",
    label: str = "label",
    group: str | None = None,
    *,
    names: Sequence[str] | None = None,
) -> Labelled:
    """Return the texts of a .jsonl, .csv or .tsv file (also .gz), each with a label.

    Args:
        path: the file; csv and tsv have a first line of names, unless `names` are given.
        text: field that holds the text.
        label: field that holds the label: text, a number or a truth value.
        group: field whose equal values belong together (the city of a statement); None: only equal texts do.
        names: of the columns of a csv or tsv file without such a line.

    Raises:
        ValueError: another format or a damaged file, a field that is not there, a text or a label that is empty, fewer
            than two labels.
    """
    path = Path(path).expanduser()
    try:
        return labelled_rows(_rows(path, names), str(path), text, label, group)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as {'.'.join(path.name.split('.')[1:])}: {error}.") from error


def labelled_rows(
    given: Iterable[tuple[str, Mapping[str, Any]]], source: str, text: str, label: str, group: str | None = None
) -> Labelled:
    """Return labelled texts from (place, fields) of each row; `source` is what messages call the whole.

    Raises:
        ValueError: as of `read_labelled`.
    """
    rows: list[tuple[str, str, str]] = []
    for where, row in given:
        fields = [text, label] + ([group] if group else [])
        for name in fields:
            if name not in row:
                raise ValueError(f"{unknown('field', name, [str(key) for key in row])} ({where})")
        found = ["" if row[name] is None else str(row[name]) for name in fields]
        for name, value in zip(fields[:2], found, strict=False):
            if not value.strip():
                raise ValueError(f"{where} has an empty {name}; leave the row out, or name another field.")
        rows.append((found[0], found[1], found[2] if group else found[0]))
    if not rows:
        raise ValueError(f"{source} holds no texts.")
    return Labelled(*zip(*rows, strict=True))


def _rows(path: Path, names: Sequence[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, fields) of each row."""
    name = path.name.lower()
    if not name.endswith(FORMATS):
        raise ValueError(f"{path} is none of {', '.join(FORMATS)}; write it in one of these.")
    opened = gzip.open if name.endswith(".gz") else open
    with opened(path, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        if ".jsonl" in name:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"line {number} of {path}", _object(line, f"line {number} of {path}")
        else:
            delimiter = "\t" if ".tsv" in name else ","
            for number, row in enumerate(csv.DictReader(file, names, delimiter=delimiter), 1):
                if None in row or None in row.values():
                    raise ValueError(
                        f"row {number} of {path} has not as many columns as there are names; mend the file."
                    )
                yield f"row {number} of {path}", row


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} holds a {type(row).__name__}; wanted an object with a text and a label.")
    return row
