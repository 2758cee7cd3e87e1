"""SCR, spurious correlation removal: can a probe that learnt the wrong thing be repaired by ablating latents?

    biased probe    trained where target and spurious label agree      base = its accuracy on balanced texts
    clean probe     trained on balanced texts                          clean = its accuracy there
    latents         ranked by |(mean code, spurious positive - negative) <w_spurious, atom>|, w_spurious a probe of the
                    spurious label on balanced texts; the top n are zeroed, the dictionary's error stays
    SCR(n) = (ablated - base) / (clean - base)

Karvonen et al. 2024, arXiv 2411.18895, after the SHIFT task of Marks et al. 2024; settings of SAEBench. The biased
probe was trained on both labels at once, so either may be the target: the one on which it does worse is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from app.studies.pooled import Pooled, Probe, balanced, fit_probe

NS = (2, 5, 10, 20, 50, 100, 500)
LEAST = 1e-3
"""Difference of clean and base below which there is nothing to repair."""


@dataclass(frozen=True)
class SpuriousRemoval:
    """What ablation repairs."""

    exchanged: bool
    """Whether the label given as spurious was the target, because the biased probe was worse on it."""
    base: float
    """Accuracy of the biased probe on the target, on balanced test texts."""
    clean: float
    """Accuracy of the clean probe there."""
    ablated: dict[int, float]
    """By n: accuracy of the biased probe with the top n latents zeroed."""
    latents: tuple[int, ...]
    """The latents with any effect, strongest first, as many as were ablated at most."""
    train: int
    """Texts that the biased probe was trained on."""
    test: int
    """Balanced texts that it was measured on."""

    @property
    def scores(self) -> dict[int, float]:
        """SCR by n: 1 is as good as the clean probe, 0 is no repair, below 0 worse than before.

        NaN where clean exceeds base by less than `LEAST`: a 0 would say that the dictionary failed.
        """
        room = self.clean - self.base
        return {n: (one - self.base) / room if room >= LEAST else float("nan") for n, one in self.ablated.items()}


def spurious_removal(
    pooled: Pooled,
    target: Bool[Tensor, " text"],
    spurious: Bool[Tensor, " text"],
    train: Bool[Tensor, " text"],
    ns: Sequence[int] = NS,
    *,
    seed: int = 0,
) -> SpuriousRemoval:
    """Return SCR of the dictionary that `pooled` holds.

    Args:
        pooled: the texts.
        target: the label that the probe should tell.
        spurious: the one that it learns beside.
        train: which texts are for training (`interp.data.labelled.split`).
        ns: numbers of latents to ablate; where fewer have any effect, all of these are.
        seed: of all draws.

    Raises:
        ValueError: an n below 1, or a combination of the two labels that is missing on either side.
    """
    if min(ns) < 1:
        raise ValueError(f"n must be at least 1, got {min(ns)}.")
    cells = 2 * target.long() + spurious.long()
    even, test = balanced(cells, train, seed), balanced(cells, ~train, seed)
    agree = train & (target == spurious)
    same = balanced(target.long(), agree, seed)
    biased = fit_probe(pooled.raw[same], target[same], seed=seed)
    held = pooled.raw[test]
    # Asked on training texts, where those that decide (the labels disagree) are new to the probe: the test is not used.
    exchanged = biased.accuracy(pooled.raw[even], spurious[even]) < biased.accuracy(pooled.raw[even], target[even])
    if exchanged:
        target, spurious = spurious, target
    clean = fit_probe(pooled.raw[even], target[even], seed=seed)
    ranked = _ranked(pooled, even, spurious[even], fit_probe(pooled.raw[even], spurious[even], seed=seed))
    ablated = {n: biased.accuracy(pooled.without(ranked[:n])[test], target[test]) for n in ns}
    return SpuriousRemoval(
        exchanged,
        biased.accuracy(held, target[test]),
        clean.accuracy(held, target[test]),
        ablated,
        tuple(ranked[: max(ns)].tolist()),
        len(same),
        len(test),
    )


def _ranked(pooled: Pooled, rows: Tensor, y: Bool[Tensor, " chosen"], probe: Probe) -> Tensor:
    """Return the latents with an effect on the probe, largest |effect| first."""
    codes = pooled.codes[rows]
    effect = ((codes[y].mean(0) - codes[~y].mean(0)) * (pooled.atoms @ probe.w)).abs()
    order = effect.argsort(descending=True, stable=True)
    return order[effect[order] > 0]
