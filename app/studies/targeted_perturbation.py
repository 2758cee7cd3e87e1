"""TPP, targeted probe perturbation: do the latents of one class leave the probes of the others alone?

    a probe c for each class, on balanced texts: the class and as many others
    effect_c,i = relu(mean code of i in c - elsewhere) <w_c, atom_i>           the top n of class c are zeroed
    TPP(n) = mean over c of ( drop of accuracy of probe c - mean over c' != c of the drop of probe c' )

Karvonen et al. 2024, arXiv 2411.18895; settings of SAEBench. The relu drops what fires less in c, which is right for
codes >= 0 only: a latent that is negative in c and whose atom points away from w_c speaks for c. Each latent so counts
as two, its positive part with atom d and its negative part with -d, and its effect is the larger of the two; for
codes >= 0 this is the formula above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from app.studies.pooled import Pooled, Probe, balanced, fit_probe
from interp.data.labelled import Labelled

NS = (2, 5, 10, 20, 50, 100, 500)


@dataclass(frozen=True)
class TargetedPerturbation:
    """How far the ablated latents of each class reach."""

    classes: tuple[str, ...]
    """The labels."""
    clean: tuple[float, ...]
    """Accuracy of each class's probe before."""
    drops: dict[int, tuple[tuple[float, ...], ...]]
    """By n: drops[n][c][d] is what the probe of class d loses when the top n latents of class c are zeroed."""
    latents: dict[str, tuple[int, ...]]
    """By label: its latents, strongest first, as many as were ablated at most."""

    @property
    def own(self) -> dict[int, float]:
        """By n: mean drop of a class's own probe."""
        return {n: sum(drop[c][c] for c in range(len(drop))) / len(drop) for n, drop in self.drops.items()}

    @property
    def others(self) -> dict[int, float]:
        """By n: mean drop of the other classes' probes."""
        found = {}
        for n, drop in self.drops.items():
            rest = [drop[c][d] for c in range(len(drop)) for d in range(len(drop)) if c != d]
            found[n] = sum(rest) / len(rest)
        return found

    @property
    def scores(self) -> dict[int, float]:
        """TPP by n: own - others."""
        return {n: self.own[n] - self.others[n] for n in self.drops}


def class_effects(
    codes: Float[Tensor, "text d_sae"], y: Bool[Tensor, " text"], along: Float[Tensor, " d_sae"]
) -> Float[Tensor, " d_sae"]:
    """Return effect_c,i; `along` is <w_c, atom_i>."""
    parts = []
    for half, sign in ((codes.clamp_min(0), 1), ((-codes).clamp_min(0), -1)):
        parts.append((half[y].mean(0) - half[~y].mean(0)).clamp_min(0) * sign * along)
    return torch.maximum(*parts)


def check_labels(labelled: Labelled) -> None:
    """Refuse fewer than three labels."""
    if len(labelled.classes) < 3:
        raise ValueError(
            f"TPP needs three labels or more, got {list(labelled.classes)}: of two, what hurts one probe hurts the "
            "other. Take spurious_removal, or a set with more labels."
        )


def targeted_perturbation(
    pooled: Pooled, labelled: Labelled, ns: Sequence[int] = NS, *, test: float = 0.2, seed: int = 0
) -> TargetedPerturbation:
    """Return TPP of the dictionary that `pooled` holds.

    Args:
        pooled: the texts.
        labelled: their labels, three or more: of two, each probe is the other's reverse.
        ns: numbers of latents to ablate; where fewer have an effect above 0, all of these are.
        test: share of the texts that is only measured on.
        seed: of all draws.

    Raises:
        ValueError: an n below 1, fewer than three labels, or other texts than were pooled.
    """
    if min(ns) < 1:
        raise ValueError(f"n must be at least 1, got {min(ns)}.")
    check_labels(labelled)
    if len(pooled) != len(labelled):
        raise ValueError(f"There are {len(pooled)} rows for {len(labelled)} texts; pool the texts of this set.")
    train = torch.from_numpy(labelled.split(test, seed))
    probes: list[Probe] = []
    held: list[tuple[Tensor, Tensor]] = []
    ranked: list[Tensor] = []
    for name in labelled.classes:
        y = torch.from_numpy(labelled.is_class(name))
        rows = balanced(y.long(), train, seed)
        probes.append(fit_probe(pooled.raw[rows], y[rows], seed=seed))
        effect = class_effects(pooled.codes[rows], y[rows], pooled.atoms @ probes[-1].w)
        order = effect.argsort(descending=True, stable=True)
        ranked.append(order[effect[order] > 0])
        places = balanced(y.long(), ~train, seed)
        held.append((places, y[places]))
    clean = [probe.accuracy(pooled.raw[at], y) for probe, (at, y) in zip(probes, held, strict=True)]
    drops = {}
    for n in ns:
        changed = [pooled.without(order[:n]) for order in ranked]
        drops[n] = tuple(
            tuple(was - probe.accuracy(x[at], y) for was, probe, (at, y) in zip(clean, probes, held, strict=True))
            for x in changed
        )
    found = {name: tuple(order[: max(ns)].tolist()) for name, order in zip(labelled.classes, ranked, strict=True)}
    return TargetedPerturbation(labelled.classes, tuple(clean), drops, found)
