"""Dividing rows: whole groups go to the training, validation or test part, once, for all layers and sites.

Two statements about one city, two positions of one text or one game, and equal texts belong together: with such rows on
both sides a probe is paid for knowing the group. `Split.digest` tells whether two results come from one division.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from interp.names import shorten
from probes.rows import array, check_groups

PARTS = ("train", "validation", "test")
DRAWS = 100
"""Draws of a division before it is given up that all parts have all classes."""
SHOWN = 3
"""Leaks that a warning names."""


class LeakWarning(UserWarning):
    """Rows that belong together stand in different parts."""


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows are in which part."""

    train: Int[np.ndarray, " train"]
    """Rows to fit on, ascending."""
    validation: Int[np.ndarray, " validation"]
    """Rows to choose by; may be none."""
    test: Int[np.ndarray, " test"]
    """Rows to measure on."""

    def __post_init__(self) -> None:
        """Refuse a row in two parts, and an empty training or test part."""
        rows = np.concatenate([self.train, self.validation, self.test])
        if len(np.unique(rows)) < len(rows):
            raise ValueError("A row may be in one part of a split only; make the parts disjoint.")
        if not len(self.train) or not len(self.test):
            raise ValueError(
                f"A split needs rows to fit and to measure on, got {len(self.train)} and {len(self.test)}."
            )

    @property
    def parts(self) -> dict[str, Int[np.ndarray, " _"]]:
        """The rows by name of the part."""
        return {name: getattr(self, name) for name in PARTS}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the rows of all parts: equal for equal divisions."""
        total = hashlib.sha256()
        for name, rows in self.parts.items():
            total.update(name.encode() + np.ascontiguousarray(rows, "<i8").tobytes())
        return total.hexdigest()


def groups_of_texts(texts: Sequence[str]) -> Int[np.ndarray, " text"]:
    """Return a group number for each text; texts that differ in case and spaces only are one group."""
    return np.unique([" ".join(text.lower().split()) for text in texts], return_inverse=True)[1]


def grouped_split(
    y: Any, groups: Any = None, *, validation: float = 0.0, test: float = 0.2, seed: int = 0, draws: int = DRAWS
) -> Split:
    """Return a division of whole groups in which every part has every class.

    Groups are drawn until the validation and test parts have their shares of the rows; the rest is for training.

    Args:
        y: label of each row.
        groups: what each row belongs to (None: each row by itself).
        validation: share of the rows to choose by; 0 for none.
        test: share of the rows to measure on.
        seed: of the draw.
        draws: draws to make before giving up.

    Raises:
        ValueError: shares out of range, or no draw gave all classes to all parts.
    """
    labels = array(y, "y")
    of = check_groups(groups, len(labels))
    if not (0 <= validation < 1 and 0 < test < 1 and validation + test < 1):
        raise ValueError(
            f"validation and test are shares of the rows, test above 0, both together below 1; got {validation} and "
            f"{test}."
        )
    classes, codes = np.unique(labels, return_inverse=True)
    rng = np.random.default_rng(seed)
    sizes, n = np.bincount(of), len(of)
    wanted = [test, validation] if validation else [test]
    for _ in range(draws):
        part = _assign(sizes, [round(share * n) for share in wanted], rng)[of]
        if all(len(np.unique(codes[part == number])) == len(classes) for number in range(len(wanted) + 1)):
            rows = [np.flatnonzero(part == number) for number in (0, 2, 1)]
            return Split(*rows)
    raise ValueError(
        f"None of {draws} draws gave each part every class: {len(sizes)} groups for {len(classes)} classes are too "
        "few, or a class lies in one group. Give more rows, or other shares."
    )


def _assign(sizes: NDArray, wanted: list[int], rng: np.random.Generator) -> NDArray:
    """Return the part of each group: 1, 2, ... for the `wanted` numbers of rows, 0 for the rest."""
    part = np.zeros(len(sizes), dtype=int)
    order = rng.permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]
    edges = np.cumsum([0, *wanted])
    for number, (low, high) in enumerate(pairwise(edges), 1):
        part[order[(before >= low) & (before < high)]] = number
    return part


@dataclass(frozen=True)
class Leak:
    """One group with rows in several parts."""

    group: str
    """What the rows belong to, or the text that they share."""
    rows: dict[str, int]
    """Number of its rows in each part where it has any."""


def leaks(split: Split, groups: Any = None, texts: Sequence[str] | None = None) -> list[Leak]:
    """Return what has rows in several parts: groups, and texts that differ in case and spaces only.

    Args:
        split: the division.
        groups: what each row belongs to.
        texts: the text of each row.
    """
    found = []
    for kind, owners in (("group", groups), ("text", texts)):
        if owners is None:
            continue
        names = array(owners, kind)
        of = groups_of_texts(list(owners)) if kind == "text" else check_groups(owners, len(names))
        counts = np.stack([np.bincount(of[rows], minlength=of.max() + 1) for rows in split.parts.values()])
        first = np.unique(of, return_index=True)[1]
        for number in np.flatnonzero((counts > 0).sum(0) > 1):
            there = {part: int(count) for part, count in zip(PARTS, counts[:, number], strict=True) if count}
            found.append(Leak(f"{kind} {shorten(names[first[number]].item(), 60)}", there))
    return found


def warn_of_leaks(split: Split, groups: Any = None, texts: Sequence[str] | None = None) -> list[Leak]:
    """Return `leaks(...)`, and warn of them by name where there are any."""
    found = leaks(split, groups, texts)
    if found:
        named = "; ".join(f"{leak.group} ({_counts(leak.rows)})" for leak in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        warnings.warn(
            f"Rows that belong together stand in different parts of the split: {named}{more}. Scores will be too "
            "good; divide by grouped_split(y, groups).",
            LeakWarning,
            stacklevel=2,
        )
    return found


def _counts(rows: dict[str, int]) -> str:
    return ", ".join(f"{count} in {part}" for part, count in rows.items())
