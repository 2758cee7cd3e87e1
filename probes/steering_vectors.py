"""Difference-in-means steering, swaps of an erased concept, and random directions to compare them with.

    v = mean(target) - mean(rest),      x' = x + strength v                       ("activation addition", CAA)
    x' = x + P (mean(target) - x),      P the projection that LEACE takes away    (swap)

Turner et al. 2023 (arXiv 2308.10248), Rimsky et al. 2023 (arXiv 2312.06681); P is that of Belrose et al. 2023
(arXiv 2306.03819). With contrast pairs v is the mean of the pairs' differences. Strength is in units of the difference
between the means: at 1 a row of the rest has gone as far as the classes lie apart. A random direction of the same norm
tells how much of an effect is due to pushing at all.

The swap sets what a linear probe can see of the concept to the target's mean, and leaves all else; steering moves every
row by the same vector, those that are of the target class included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from interp.hooks import Positions
from interp.sites import Site
from probes.capturing import LAST, capture_texts
from probes.editing import Edited, change_rows
from probes.leace import Leace
from probes.rows import array, check_rows
from probes.source import Source

if TYPE_CHECKING:
    from interp.models import ModelHandle


@dataclass(frozen=True, eq=False)
class MeanDifference:
    """The difference between the means of a class and of the rest."""

    vector: Float[np.ndarray, " d_in"]
    """mean(target) - mean(rest), raw units."""
    source: Source | None
    """What the rows were."""
    counts: tuple[int, int]
    """Rows of the target and of the rest."""
    spread: float
    """Root mean square distance of a row from the mean of its side."""

    @property
    def norm(self) -> float:
        """Length of the vector."""
        return float(np.linalg.norm(self.vector))

    def at(self, strength: float) -> Shift:
        """Return the change that adds `strength` times the vector."""
        return Shift(strength * self.vector)


@dataclass(frozen=True, eq=False)
class Shift:
    """Adds a vector to rows."""

    vector: Float[np.ndarray, " d_in"]
    """What is added, raw units."""

    def __call__(self, x: Float[np.ndarray, "row d_in"]) -> Float[np.ndarray, "row d_in"]:
        """Return the rows moved."""
        return x + self.vector


@dataclass(frozen=True, eq=False)
class Swap:
    """Sets what LEACE would erase to the mean of a class: x' = x + strength P (mean - x)."""

    left: Float[np.ndarray, "d_in rank"]
    """`Leace.left_`."""
    right: Float[np.ndarray, "rank d_in"]
    """`Leace.right_`; P = left right."""
    mean: Float[np.ndarray, " d_in"]
    """Mean of the class."""
    strength: float = 1.0
    """1 replaces the concept, 0 leaves the rows as they are; beyond 1 they go past the mean."""

    def __call__(self, x: Float[np.ndarray, "row d_in"]) -> Float[np.ndarray, "row d_in"]:
        """Return the rows with the concept swapped."""
        return x + self.strength * (self.mean - x) @ self.right.T @ self.left.T


def mean_difference(X: Any, y: Any, target: Any, source: Source | None = None) -> MeanDifference:
    """Return the difference between the mean of the rows labelled `target` and that of all others.

    Args:
        X: activations [row, d_in].
        y: a label for each row.
        target: one of the labels.
        source: what the rows are.

    Raises:
        ValueError: no row on one of the sides, or rows that are not finite.
    """
    x = check_rows(X, "X")
    chosen = is_target(y, target, len(x))
    sides = x[chosen], x[~chosen]
    means = [side.mean(0) for side in sides]
    away = sum(float(((side - mean) ** 2).sum()) for side, mean in zip(sides, means, strict=True))
    return MeanDifference(means[0] - means[1], source, (len(sides[0]), len(sides[1])), float(np.sqrt(away / len(x))))


def leace_swap(X: Any, y: Any, target: Any, *, strength: float = 1.0, shrinkage: float = 0.1) -> Swap:
    """Return the change that gives rows the concept of the class `target`, and leaves what is uncorrelated with it.

    Args:
        X: activations [row, d_in].
        y: a label for each row.
        target: one of the labels.
        strength: as in `Swap`.
        shrinkage: as in `Leace`; some is needed where rows are few.

    Raises:
        ValueError: no row on one of the sides, rows that are not finite, or an erasure that fails.
    """
    x = check_rows(X, "X")
    chosen = is_target(y, target, len(x))
    eraser = Leace(shrinkage=shrinkage).fit(x, chosen)
    return Swap(eraser.left_, eraser.right_, x[chosen].mean(0), strength)


def is_target(y: Any, target: Any, n: int) -> Bool[np.ndarray, " row"]:
    """Return which of `n` labels are `target`, or its text.

    Raises:
        ValueError: another number of labels, or no row on one of the sides.
    """
    found = array(y, "y")
    if found.shape != (n,):
        raise ValueError(f"y must hold one label for each of the {n} rows, got shape {list(found.shape)}.")
    chosen = np.array([str(one) == str(target) for one in found.tolist()], bool)
    if chosen.all() or not chosen.any():
        side = "no" if not chosen.any() else "only"
        raise ValueError(f"A difference needs rows of {target!r} and others, got {side} such rows.")
    return chosen


def mean_differences(
    handle: ModelHandle,
    texts: Sequence[str],
    labels: Any,
    target: Any,
    sites: Sequence[str],
    position: str = LAST,
) -> dict[Site, MeanDifference]:
    """Return the difference in means at each site, between texts labelled `target` and all others.

    Args:
        handle: the model.
        texts: the texts.
        labels: a label for each.
        target: one of the labels.
        sites: kinds for all layers (`resid_post`), or sites.
        position: where in a text, as in `probes.capturing`.

    Raises:
        ValueError: no text on one of the sides, an unknown site, a text without this position.
    """
    taken = capture_texts(handle, texts, sites, [position])
    (place,) = taken.positions
    return {
        Site.parse(site): mean_difference(taken.rows(site, place), labels, target, taken.source(site, place))
        for site in taken.sites
    }


def pair_differences(
    handle: ModelHandle, pairs: Sequence[tuple[str, str]], sites: Sequence[str], position: str = LAST
) -> dict[Site, MeanDifference]:
    """Return the mean difference of contrast pairs (of the class, not of it) at each site.

    Raises:
        ValueError: no pairs, an unknown site, a text without this position.
    """
    texts = [text for pair in pairs for text in pair]
    if not texts:
        raise ValueError("Contrast pairs are needed, got none.")
    return mean_differences(handle, texts, [True, False] * len(pairs), True, sites, position)


@contextmanager
def steer_along(
    handle: ModelHandle,
    vectors: Mapping[Site, MeanDifference],
    strength: float = 1.0,
    *,
    positions: Positions | str = None,
    same_weights: bool = True,
    view: str = "hf",
) -> Iterator[Edited]:
    """Add `strength` times the difference in means at each site, in every forward inside the context.

    Args:
        handle: the model.
        vectors: a difference for each site.
        strength: in units of the differences; negative steers away from the class.
        positions: as in `probes.editing.change_rows`; None: all but BOS.
        same_weights: False to steer another model with this one's vectors.
        view: `hf` or `bridge`.

    Raises:
        ValueError: a vector of another site or model, or of another width.
    """
    with ExitStack() as stack:
        done = Edited()
        for site, one in vectors.items():
            if one.source is not None:
                one.source.check(Source.of(handle, site, one.source.positions), same_weights=same_weights)
            if len(one.vector) != handle.width(site):
                raise ValueError(f"The vector has {len(one.vector)} numbers, but {site} has {handle.width(site)}.")
            stack.enter_context(change_rows(handle, site, one.at(strength), positions, into=done, view=view))
        yield done


def random_like(vector: Float[np.ndarray, " d_in"], n: int, seed: int = 0) -> Float[np.ndarray, "draw d_in"]:
    """Return `n` vectors of the same length in random directions, uniform on the sphere."""
    drawn = np.random.default_rng(seed).normal(size=(n, len(vector)))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * np.linalg.norm(vector)
