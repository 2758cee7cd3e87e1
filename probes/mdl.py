"""Minimum description length by online coding: how many bits are the labels, for one who has the rows?

    L = n_1 log2 K + sum_i  -log2 p_{theta_i}(labels of portion i+1 | rows),   theta_i fitted on portions 1..i
    compression = n log2 K / L

Voita and Titov 2020, "Information-Theoretic Probing with Minimum Description Length", arXiv 2003.12298. Accuracy asks
whether labels can be told in the end; the code also asks how much data that takes. Uniform labels have a compression
of 1 at most, of a probe that knows it. Probabilities are mixed with 1 / (m + K) for each class, m the rows fitted on:
else a class that the first rows lack would cost infinitely many bits. A portion whose prefix has one class only is
coded uniformly. Each prefix is fitted from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int

from probes.base import BaseProbe
from probes.logistic import LogisticProbe
from probes.rows import check_groups, check_labels, check_rows

PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Ends of the portions, as shares of the rows; those of the paper."""


@dataclass(frozen=True)
class Mdl:
    """The length of a code."""

    bits: float
    """Of all labels, portion by portion."""
    uniform_bits: float
    """Of the same labels where every class is as likely."""
    portions: tuple[tuple[int, float], ...]
    """(end of the portion in rows, bits of its labels)."""

    @property
    def compression(self) -> float:
        """How many times shorter than the uniform code."""
        return self.uniform_bits / self.bits


def online_code(
    X: Any,
    y: Any,
    probe: BaseProbe | None = None,
    *,
    groups: Any = None,
    portions: Sequence[float] = PORTIONS,
    seed: int = 0,
) -> Mdl:
    """Return the online code of the labels.

    Args:
        X: activations [row, d_in].
        y: label of each row.
        probe: what is fitted to each prefix, with probabilities; a `LogisticProbe(C=1)` by default. One that chooses a
            penalty by folds cannot be fitted to the first few rows.
        groups: what each row belongs to; portions end where a group ends.
        portions: ends of the portions as shares of the rows, rising to 1.
        seed: of the order.

    Raises:
        ValueError: portions that do not rise to 1, a probe without probabilities, or what `fit` refuses.
    """
    x = check_rows(X, "X")
    classes, codes = check_labels(y, len(x))
    if list(portions) != sorted(set(portions)) or not portions or portions[0] <= 0 or portions[-1] != 1:
        raise ValueError(f"portions are shares that rise to 1, got {list(portions)}.")
    order, ends = _order(check_groups(groups, len(x)), portions, seed)
    x, codes = x[order], codes[order]
    estimator = LogisticProbe(C=1.0) if probe is None else probe
    each = np.log2(len(classes))
    found = [(ends[0], ends[0] * each)]
    for begin, end in pairwise(ends):
        seen = np.unique(codes[:begin])
        if len(seen) < 2:
            found.append((end, (end - begin) * each))
            continue
        fitted = estimator.fresh().fit(x[:begin], codes[:begin])
        chance = np.zeros((end - begin, len(classes)))
        chance[:, seen] = fitted.predict_proba(x[begin:end])
        mixed = (begin * chance + 1) / (begin + len(classes))
        found.append((end, float(-np.log2(mixed[np.arange(end - begin), codes[begin:end]]).sum())))
    return Mdl(float(sum(bits for _, bits in found)), float(len(x) * each), tuple(found))


def _order(
    of: Int[np.ndarray, " row"], portions: Sequence[float], seed: int
) -> tuple[Int[np.ndarray, " row"], list[int]]:
    """Return (rows in a random order of whole groups, ends of the portions)."""
    rank = np.random.default_rng(seed).permutation(int(of.max()) + 1)
    order = np.argsort(rank[of], kind="stable")
    closed = np.cumsum(np.bincount(rank[of]))
    wanted = [max(1, round(share * len(of))) for share in portions]
    ends = closed[np.searchsorted(closed, wanted)]
    return order, [int(end) for end in np.unique(ends)]
