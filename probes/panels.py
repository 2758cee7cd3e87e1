"""The panel `probes` of a comparison: does what the first model knows lie in the same place in the second?

On labelled texts, at every layer, with one division for both models:

    a          AUC of a probe fitted on a, measured on a
    transfer   the same probe on b's activations: what a reader of a would see of b
    retrained  AUC of a probe fitted on b, measured on b: what b still knows

    a - transfer   what a reader loses        a - retrained   what is lost        both with paired intervals

Depth (jumping and converging point, layer of the best AUC) is that of `probes.concept_depth`, for a and for b. A copy
can keep all it knows (retrained = a) and yet be misread (transfer < a): then a direction has turned or moved. Beside
them stand the commonest class, the shuffled labels of a, and a probe of a with random weights.

    compare("tiny", spec, ["behaviour", Probes(labelled_set("tense"))], blocks=blocks)

It fulfils `interp.compression.panel.Panel`, reads its own texts and not those of the comparison.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interp.compression.panel import Pair, PanelResult
from interp.data import Labelled
from interp.sites import Site
from probes.base import BaseProbe
from probes.capturing import Captured, capture_texts, random_model
from probes.concept_depth import auc_drop, curve_of, depth
from probes.intervals import RESAMPLES, Interval, bootstrap
from probes.logistic import LogisticProbe
from probes.report import area
from probes.splits import grouped_split
from probes.sweep import Spot, Sweep, sweep

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

DEPTHS = ("jump", "converging", "converging_literal")


@dataclass(frozen=True)
class ProbesConfig:
    """How the probes of a comparison are fitted."""

    sites: tuple[str, ...] = ("resid_post",)
    """Kinds (all layers) or sites that both models have; the depth is that of the first kind."""
    position: str = "last"
    """`last`, `mean`, or a whole number, as in `probes.capturing`."""
    C: float | None = None
    """Inverse penalty of the logistic probes; None chooses it by folds that keep groups whole."""
    test: float = 0.4
    """Share of the texts that is measured on."""
    context: int = 128
    """Longest text in tokens."""
    resamples: int = RESAMPLES
    """Draws of the bootstrap."""
    seed: int = 0
    """Of division, bootstrap and controls."""


class Probes:
    """Probes of a on a and on b, and of b on b."""

    name = "probes"

    def __init__(self, labelled: Labelled, config: ProbesConfig | None = None) -> None:
        """Ask for the label of `labelled` in both models."""
        self.labelled, self.config = labelled, config or ProbesConfig()

    def sites(self, a: ModelHandle) -> tuple[Site, ...]:
        """Return nothing: the panel reads its own texts."""
        del a
        return ()

    def begin(self, a: ModelHandle, b: ModelHandle, blocks: Blocks) -> None:
        """Begin; both models must have as many layers."""
        del blocks
        if a.n_layers != b.n_layers:
            raise ValueError(
                f"The panel probes compares layer by layer, and {a.spec.name} has {a.n_layers} layers, {b.spec.name} "
                f"{b.n_layers}. Leave it out."
            )
        self._models = (a, b)

    def update(self, pair: Pair) -> None:
        """Do nothing: the panel reads its own texts."""

    def finish(self) -> PanelResult:
        """Return the means over the layers and the depths, and the table `layers`.

        Raises:
            ValueError: too few texts for the division or the folds, activations that are not finite.
        """
        import pyarrow as pa

        acts = [self._read(model) for model in self._models]
        first = self._swept(acts[0], self._read(random_model(self._models[0], self.config.seed)))
        second = first if self._models[1] is self._models[0] else self._swept(acts[1], None, first)
        rows = [self._row(spot, first, second, acts[1]) for spot in first.reports]
        return PanelResult(self._summary(rows, first, second), {"layers": pa.Table.from_pylist(rows)})

    def _read(self, model: ModelHandle) -> Captured:
        config = self.config
        return capture_texts(model, self.labelled.texts, config.sites, [config.position], context=config.context)

    def _swept(self, acts: Captured, random: Captured | None, first: Sweep | None = None) -> Sweep:
        labelled, config = self.labelled, self.config
        split = None if first is None else first.split
        if split is None:
            split = grouped_split(labelled.labels, labelled.groups, test=config.test, seed=config.seed)
        probe = LogisticProbe(config.C, seed=config.seed)
        options: dict[str, Any] = {"random": random, "resamples": config.resamples, "seed": config.seed}
        options["controls"] = first is None  # those of b would be measured and not shown
        groups = np.array(labelled.groups)
        return sweep(acts, np.array(labelled.labels), groups=groups, split=split, probe=probe, **options)

    def _row(self, spot: Spot, a: Sweep, b: Sweep, acts: Captured) -> dict[str, Any]:
        """Return one layer of the table."""
        settings: dict[str, Any] = {"resamples": self.config.resamples, "seed": self.config.seed}
        carried = transferred(a, spot, acts.rows(*spot))
        report = a.reports[spot]
        row = {"site": spot.site, "kind": spot.kind, "layer": spot.layer, "position": spot.position}
        row |= _spread("auc_a", report.auc) | _spread("auc_transfer", carried.auc(settings))
        row |= _spread("auc_retrained", b.reports[spot].auc)
        row |= _spread("transfer_drop", carried.drop(settings)) | _spread("drop", auc_drop(a, b, spot, **settings))
        row |= {"accuracy_a": report.accuracy.value, "accuracy_transfer": carried.accuracy}
        row |= {"accuracy_retrained": b.reports[spot].accuracy.value}
        baselines = {name.replace(" ", "_"): value for name, value in report.baselines.items()}
        return row | {"cosine": cosine(a.probes[spot], b.probes[spot])} | baselines

    def _summary(self, rows: list[dict[str, Any]], a: Sweep, b: Sweep) -> dict[str, int | float | str | None]:
        found: dict[str, int | float | str | None] = {
            "texts": len(self.labelled),
            "labels": ", ".join(self.labelled.classes),
            "position": self.config.position,
            "probe_transfer_drop": float(np.mean([row["transfer_drop"] for row in rows])),
            "probe_drop": float(np.mean([row["drop"] for row in rows])),
        }
        layers = []
        for name, one in (("a", a), ("b", b)):
            areas = [one.reports[spot].auc.value for spot in one.spots()]
            layers.append(one.spots()[int(np.argmax(areas))].layer)
            found |= {f"best_auc_{name}": max(areas), f"best_layer_{name}": layers[-1]}
            depths = asdict(depth(curve_of(one))) if len(areas) > 1 else dict.fromkeys(DEPTHS)
            found |= {f"{key}_{name}": depths[key] for key in DEPTHS}
        return found | {"probe_layer_shift": layers[1] - layers[0]}


@dataclass(frozen=True, eq=False)
class Carried:
    """A probe of one model on the test rows of another."""

    own: NDArray
    """Its scores on its own model."""
    other: NDArray
    """Its scores on the other."""
    codes: NDArray
    """Number of each row's class."""
    groups: NDArray
    """Group of each row."""
    accuracy: float
    """Share of rows of the other model told right."""

    def auc(self, settings: dict[str, Any]) -> Interval:
        """Return the area under the ROC curve on the other model."""
        return bootstrap(area(self.other, self.codes), self.groups, **settings)

    def drop(self, settings: dict[str, Any]) -> Interval:
        """Return the area on its own model less that on the other; each draw serves both."""
        own, other = area(self.own, self.codes), area(self.other, self.codes)
        return bootstrap(lambda weights: own(weights) - other(weights), self.groups, **settings)


def transferred(a: Sweep, spot: Spot, x: NDArray) -> Carried:
    """Return what the probe of `a` says of activations `x` [text d_in] of another model, on the test texts.

    Raises:
        ValueError: rows of another width.
    """
    probe, test = a.probes[spot], a.split.test
    codes = np.unique(a.labels, return_inverse=True)[1][test]
    right = float((probe.predict(x[test]) == a.labels[test]).mean())
    return Carried(a.scores[spot], probe.decision_function(x[test]), codes, a.groups[test], right)


def cosine(a: BaseProbe, b: BaseProbe) -> float:
    """Return the cosine of the directions of two linear probes, of several classes the mean."""
    u, v = (np.asarray(one.coef_, float) for one in (a, b))  # type: ignore[attr-defined]
    lengths = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    return float(np.mean(np.divide((u * v).sum(1), lengths, out=np.full(len(u), np.nan), where=lengths > 0)))


def _spread(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
