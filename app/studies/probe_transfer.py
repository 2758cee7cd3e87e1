"""Transfer between labelled sets on one site of a model: `probes.transfer` on what it holds of each text.

Pairs for `ccs` are found by their words: a statement and the same statement with `not`, of one group, with opposite
labels. Data sets that hold statements and denials in two files are joined with `joined` first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from interp.data.labelled import Labelled
from interp.models import ModelHandle
from interp.sites import Site
from probes.capturing import capture_texts
from probes.study import StudyResult
from probes.transfer import TransferSet, transfer

USUAL = ("mass_mean", "lda", "logistic")
"""Probes that are carried over, unless others are named."""
LEAST_PAIRS = 10
"""Fewer pairs of a statement and its denial are none."""


def probe_transfer(
    handle: ModelHandle,
    sets: Mapping[str, Labelled],
    site: Site | str,
    *,
    probes: Sequence[str] = USUAL,
    positions: str = "last",
    centring: str = "train",
    context: int = 128,
    test: float = 0.4,
    resamples: int = 1000,
    seed: int = 0,
    on_progress: Callable[[int], object] = lambda _: None,
) -> StudyResult:
    """Return how well a probe of each set does on each set, as `transfer` does.

    Args:
        handle: the model.
        sets: texts with two labels each, by name; the second label, sorted, is what probes look for (`true`, `1`).
        site: where activations are taken.
        probes: names in `probes.transfer.PROBES`.
        positions: `last`, `mean`, or a number, as in `capture_texts`.
        centring: `train`, or `each`, which uses the mean of the test rows.
        context: longest text in tokens.
        test: share of the rows that is measured on.
        resamples: draws of the bootstrap.
        seed: of the division and the bootstrap.
        on_progress: hears the number of texts done so far, of all sets.

    Raises:
        ValueError: a set that has not two labels, or what `capture_texts` and `transfer` refuse.
    """
    place = str(handle.check_site(site))
    for name, one in sets.items():
        if len(one.classes) != 2:
            raise ValueError(f"The set {name!r} must have two labels, got {len(one.classes)}: {list(one.classes[:6])}.")
    found, done = [], 0
    for name, one in sets.items():
        told = lambda n, before=done: on_progress(before + n)  # noqa: E731
        held = capture_texts(handle, one.texts, [place], [positions], context=context, on_progress=told)
        x = held.rows(place, held.positions[0])
        found.append(TransferSet(name, x, one.is_class(one.classes[1]), one.groups, denial_pairs(one)))
        done += len(one)
    return transfer(found, probes, centring=centring, test=test, resamples=resamples, seed=seed)


def denial_pairs(labelled: Labelled) -> Int[np.ndarray, "pair 2"] | None:
    """Return the rows of each statement and of its denial; None where there are fewer than 10."""
    place = {(text, group): row for row, (text, group) in enumerate(zip(labelled.texts, labelled.groups, strict=True))}
    pairs = []
    for row, (text, group) in enumerate(zip(labelled.texts, labelled.groups, strict=True)):
        plain = place.get((text.replace(" not ", " ", 1), group)) if " not " in text else None
        if plain is not None and labelled.labels[plain] != labelled.labels[row]:
            pairs.append((plain, row))
    return np.array(pairs) if len(pairs) >= LEAST_PAIRS else None


def joined(*sets: Labelled) -> Labelled:
    """Return the texts of several sets as one."""
    return Labelled(
        *(tuple(value for one in sets for value in getattr(one, part)) for part in ("texts", "labels", "groups"))
    )
