"""How far methods agree: the correlation of their scores over the cells that both have, kind by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from interp.attribution.result import PARTS, Attribution
from interp.attribution.statistics import correlation


def correlations(found: Mapping[str, Attribution]) -> list[tuple[str, str, str, float, int]]:
    """Return (kind, method, method, Pearson correlation, number of cells) for every kind and pair of methods.

    Where one method scores finer cells than the other (heads at each position, heads), its scores are added up to the
    coarser ones; a score by head and one by position are not compared. NaN stands where fewer than three cells are
    shared or one side is constant.
    """
    rows = []
    for (a, first), (b, second) in combinations(found.items(), 2):
        for kind in first.kinds:
            if kind in second.kinds:
                rows.append((kind, a, b, *pearson(first, second, kind)))
    return rows


def correlation_table(found: Mapping[str, Attribution], kind: str) -> np.ndarray:
    """Return the correlations of all methods that have `kind` with each other, [method method], NaN elsewhere."""
    names = list(found)
    table = np.full((len(names), len(names)), np.nan)
    held = [i for i, name in enumerate(names) if kind in found[name].kinds]
    for i in held:
        table[i, i] = 1.0
    for i, j in combinations(held, 2):
        table[i, j] = table[j, i] = pearson(found[names[i]], found[names[j]], kind)[0]
    return table


def pearson(first: Attribution, second: Attribution, kind: str) -> tuple[float, int]:
    """Return (correlation of two methods' scores over the shared cells of a kind, number of these)."""
    x, y, _ = paired(first, second, kind)
    found = correlation(x, y)
    return float("nan") if found is None else found, len(x)


def paired(first: Attribution, second: Attribution, kind: str) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """Return the scores of both methods on the cells that both have, and these cells as (layer, parts ...)."""
    parts = tuple(part for part in PARTS if part in first.parts(kind) and part in second.parts(kind))
    coarse = first.parts(kind) in (parts, ()) or second.parts(kind) in (parts, ())
    if not coarse:
        return np.empty(0), np.empty(0), []
    left, right = coarse_map(first, kind, parts), coarse_map(second, kind, parts)
    shape = tuple(slice(min(sizes)) for sizes in zip(left.shape, right.shape, strict=True))
    left, right = left[shape], right[shape]
    shared = np.isfinite(left) & np.isfinite(right)
    return left[shared], right[shared], [tuple(cell) for cell in np.argwhere(shared).tolist()]


def coarse_map(found: Attribution, kind: str, parts: Sequence[str], column: str = "score") -> np.ndarray:
    """Return a column of `kind` as an array [layer, *parts], added up over the parts that are not named.

    NaN stands where there is no finite number.
    """
    values = found.map(kind, column)
    over = tuple(1 + i for i, part in enumerate(found.parts(kind)) if part not in parts)
    known = np.isfinite(values)
    return np.where(known.any(axis=over), np.where(known, values, 0.0).sum(axis=over), np.nan)
