"""Sweeps: the same probe at every layer and position, on one division of the texts, each with all baselines.

    captured = capture_texts(handle, texts, ["resid_post"], ["last", "mean"])
    found = sweep(captured, labels, groups=city, random=capture_texts(randomised(handle), texts, ...))
    found.table(), found.best(), found.k_sparse

Numbers of two layers can be compared because nothing but the layer differs: rows, division, folds and penalties' grid
are the same, and each layer is standardised by its own training rows. Baselines that do not depend on the layer (bag of
tokens, position only: how long the text is) are fitted once, always by logistic regression. A control task is added
where the label can be one of types: the tokens at the position, if there are enough of them.

The best of many layers on the test part is a little too good; read it with its interval and its neighbours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from probes.base import BaseProbe
from probes.capturing import Captured
from probes.controls import bag_of_tokens, control_task, majority, position_only
from probes.intervals import RESAMPLES, bootstrap, weighted_mean
from probes.logistic import LogisticProbe
from probes.report import MAJORITY, ProbeReport, area, evaluate
from probes.rows import array, check_groups, check_labels
from probes.sparse import KSparse, k_sparse_curve
from probes.splits import Leak, LeakWarning, Split, grouped_split, warn_of_leaks

if TYPE_CHECKING:
    import pyarrow as pa

RANDOM, BAG, POSITION = "random weights", "bag of tokens", "position only"
TEST = 0.3
"""Share of the texts that is measured on."""
TYPES = 8
"""Types that a control task needs, at least."""


class Spot(NamedTuple):
    """A site and a position."""

    site: str
    position: str

    @property
    def layer(self) -> int:
        """The block."""
        return int(self.site.rpartition(".")[2])

    @property
    def kind(self) -> str:
        """The kind of site."""
        return self.site.rpartition(".")[0]


@dataclass(frozen=True, eq=False)
class Sweep:
    """A fitted probe and its report for each site and position."""

    reports: dict[Spot, ProbeReport]
    """What each probe found, in the order of the sites."""
    probes: dict[Spot, BaseProbe]
    """The probes."""
    scores: dict[Spot, NDArray]
    """Their scores on the test part, [test] or [test class]."""
    labels: NDArray
    """Label of each text."""
    groups: NDArray
    """Group of each text, as a number."""
    split: Split
    """The division."""
    sparse: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `k_sparse`."""
    leaks: tuple[Leak, ...] = ()
    """Texts that belong together and stand on both sides."""

    def spots(self, kind: str | None = None, position: str | None = None) -> list[Spot]:
        """Return the spots of one kind of site and position, by layer; None takes the first there is."""
        first = next(iter(self.reports))
        wanted = (kind or first.kind, position or first.position)
        return sorted((one for one in self.reports if (one.kind, one.position) == wanted), key=lambda one: one.layer)

    def best(self) -> Spot:
        """Return where the area under the ROC curve is largest, the first of equals; on the test part."""
        return max(self.reports, key=lambda one: np.nan_to_num(self.reports[one].auc.value, nan=-1.0))

    def table(self) -> pa.Table:
        """Return a row for each spot and measure: site, kind, layer, position, probe, measure, value, low, high, ..."""
        import pyarrow as pa

        rows = []
        for spot, report in self.reports.items():
            where = {"site": spot.site, "kind": spot.kind, "layer": spot.layer, "position": spot.position}
            rows += [row | where for row in report.table_rows()]
        texts = ("site", "kind", "position", "probe", "measure", "split")
        order = ("site", "kind", "layer", "position", "probe", "measure", "value", "low", "high", "n_train", "n_test",
                 "groups", "split")  # fmt: skip
        whole = ("layer", "n_train", "n_test", "groups")
        kinds = {n: pa.string() if n in texts else pa.int64() if n in whole else pa.float64() for n in order}
        return pa.Table.from_pylist(rows, pa.schema(kinds))

    def k_sparse(self) -> pa.Table | None:
        """Return a row for each spot and k: columns, accuracy and AUC with intervals, the same of random weights."""
        import pyarrow as pa

        return pa.Table.from_pylist(self.sparse) if self.sparse else None

    def predictions(self) -> pa.Table:
        """Return a row for each spot and test text.

        Columns: site, kind, layer, position, text (number of the text), label, predicted, score (for two classes:
        above 0 is the second one), confidence (probability of `predicted`) and label_probability; the last two are null
        for probes whose scores are no log-odds.
        """
        import pyarrow as pa

        tables = [_predictions(self, spot) for spot in self.reports]
        return pa.concat_tables([pa.table(columns) for columns in tables], promote_options="permissive")

    def summary(self) -> dict[str, Any]:
        """Return the headline numbers: the best spot, what it has to be read beside, and the size of everything."""
        spot = self.best()
        report = self.reports[spot]
        named = {name.replace(" ", "_"): value for name, value in report.baselines.items()}
        best = {"best_site": spot.site, "best_layer": spot.layer, "best_position": spot.position}
        measured = {"accuracy": report.accuracy, "balanced_accuracy": report.balanced, "auc": report.auc}
        for name, found in measured.items():
            best |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        counts = {"n_train": report.rows[0], "n_test": report.rows[1], "groups": report.groups}
        return {
            **best,
            **named,
            "selectivity": report.selectivity,
            "over_baselines": report.accuracy.value - max(report.baselines.values(), default=math.nan),
            "classes": list(report.classes),
            "spots": len(self.reports),
            "leaks": len(self.leaks),
            **counts,
        }


def sweep(
    captured: Captured,
    labels: Any,
    *,
    groups: Any = None,
    split: Split | None = None,
    probe: BaseProbe | None = None,
    random: Captured | None = None,
    texts: Sequence[str] | None = None,
    ks: Sequence[int] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    controls: bool = True,
    on_progress: Callable[[int, int], object] = lambda *_: None,
) -> Sweep:
    """Return what a probe finds at every site and position that was captured.

    Args:
        captured: the activations.
        labels: label of each text.
        groups: what each text belongs to; whole groups are divided, drawn and left out.
        split: the division; None draws one with a share of `TEST` for the test part.
        probe: kind and arguments; a copy is fitted at each spot. None takes `LogisticProbe()`.
        random: the same texts and places of a model with random weights; None leaves this baseline out.
        texts: the texts, for the search for leaks.
        ks: numbers of columns for a curve of k-sparse probes at every spot, of the same activations.
        resamples: draws of the bootstraps.
        seed: of division, bootstraps, shuffling and control task.
        controls: False where this stands beside a sweep of the same texts that has all baselines: those of another
            variant of the model.
        on_progress: hears (spots done, spots in all).

    Raises:
        ValueError: labels of one class, too few texts for the folds, texts that do not belong to these activations.

    Warns:
        LeakWarning: a text or a group stands on both sides of `split`; once for all spots.
    """
    y = array(labels, "labels")
    check_labels(y, len(captured))
    of = check_groups(groups, len(y))
    split = grouped_split(y, of, test=TEST, seed=seed) if split is None else split
    leaking = tuple(warn_of_leaks(split, groups, texts))
    start = LogisticProbe(seed=seed) if probe is None else probe
    fixed = text_baselines(captured, y, split, of, seed) if controls else {}
    found = Sweep({}, {}, {}, y, of, split, [], leaking)
    spots = [Spot(site, position) for site in captured.sites for position in captured.positions]
    for done, spot in enumerate(spots, 1):
        x = captured.rows(*spot)
        others = {} if random is None else {RANDOM: _same(random, captured).rows(*spot)}
        one = start.fresh().set_params(source=captured.source(*spot))
        types = usable_types(captured.token_at(spot.position), y, split, of, seed) if controls else None
        options: dict[str, Any] = {"types": types, "features": others, "resamples": resamples, "seed": seed}
        options["controls"] = controls
        with warnings.catch_warnings():  # said once, above
            warnings.simplefilter("ignore", LeakWarning)
            report = evaluate(one, x, y, split, groups=of, **options)
        found.reports[spot] = replace(report, baselines=report.baselines | fixed)
        found.probes[spot], found.scores[spot] = one, one.decision_function(x[split.test])
        if ks:
            found.sparse.extend(_curve(found, spot, x, others, ks, resamples))
        on_progress(done, len(spots))
    return found


def _same(random: Captured, captured: Captured) -> Captured:
    """Refuse rows of other texts as the baseline of random weights."""
    if len(random) != len(captured) or random.sites != captured.sites or random.positions != captured.positions:
        raise ValueError("The activations of random weights must be of the same texts, sites and positions.")
    return random


def text_baselines(captured: Captured, y: NDArray, split: Split, of: NDArray, seed: int = 0) -> dict[str, float]:
    """Return the accuracy of logistic regressions on the texts' tokens, and on their length, on the test part."""
    features = {
        BAG: bag_of_tokens(captured.tokens, split.train),
        POSITION: position_only(captured.lengths, split.train),
    }
    groups = [len(np.unique(of[split.train][y[split.train] == label])) for label in np.unique(y)]
    probe = LogisticProbe(None if min(groups) >= LogisticProbe().folds else 1.0, seed=seed)
    found = {}
    for name, x in features.items():
        if (x[split.train] == x[split.train][0]).all():  # nothing differs: what is left is the commonest class
            found[name] = majority(y, split)
            continue
        fitted = probe.fresh().fit(x[split.train], y[split.train], of[split.train])
        found[name] = float((fitted.predict(x[split.test]) == y[split.test]).mean())
    return found


def usable_types(types: NDArray | None, y: NDArray, split: Split, of: NDArray, seed: int = 0) -> NDArray | None:
    """Return `types` if a control task can be made of them, else None.

    It takes `TYPES` different ones on both sides, and in the training part as many groups of each drawn label as a
    choice of penalties has folds.
    """
    if types is None or len(np.intersect1d(types[split.train], types[split.test])) < TYPES:
        return None
    try:
        drawn = control_task(types, y, seed=seed)
    except ValueError:  # few types and a rare label: all of them drew the common one
        return None
    train = drawn[split.train]
    groups = [len(np.unique(of[split.train][train == label])) for label in np.unique(y)]
    return types if min(groups) >= LogisticProbe().folds else None


def _curve(
    found: Sweep, spot: Spot, x: NDArray, others: Mapping[str, NDArray], ks: Sequence[int], resamples: int
) -> list[dict[str, Any]]:
    """Return the rows of a spot in the table of k-sparse probes."""
    split, y, of = found.split, found.labels, found.groups[found.split.test]
    codes = np.unique(y, return_inverse=True)[1][split.test]
    start = KSparse(source=found.probes[spot].source)
    fitted = k_sparse_curve(x[split.train], y[split.train], ks, start)
    random = {}
    for rows in others.values():
        curve = k_sparse_curve(rows[split.train], y[split.train], ks)
        random = {one.k: one.score(rows[split.test], y[split.test]) for one in curve}
    rows = []
    for one in fitted:
        right = one.predict(x[split.test]) == y[split.test]
        accuracy = bootstrap(weighted_mean(right), of, resamples=resamples)
        auc = bootstrap(area(one.decision_function(x[split.test]), codes), of, resamples=resamples)
        rows.append(
            {
                "site": spot.site, "kind": spot.kind, "layer": spot.layer, "position": spot.position, "k": one.k,
                "accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high,
                "auc": auc.value, "auc_low": auc.low, "auc_high": auc.high,
                "random_weights": random.get(one.k), "majority": found.reports[spot].baselines.get(MAJORITY),
                "chosen": one.chosen_.tolist(),
            }
        )  # fmt: skip
    return rows


def _predictions(found: Sweep, spot: Spot) -> dict[str, Any]:
    """Return the columns of one spot in the table of predictions."""
    import pyarrow as pa

    probe, scores = found.probes[spot], found.scores[spot]
    test, n = found.split.test, len(found.split.test)
    codes = np.searchsorted(probe.classes_, found.labels[test])
    guess = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
    own = scores if scores.ndim == 1 else scores.max(1)
    p = probe.probabilities(scores) if probe.link_ != "identity" else None
    names = [str(one) for one in probe.classes_.tolist()]
    each = np.arange(n)
    return {
        "site": pa.array([spot.site] * n),
        "kind": pa.array([spot.kind] * n),
        "layer": pa.array([spot.layer] * n, pa.int64()),
        "position": pa.array([spot.position] * n),
        "text": pa.array(test, pa.int64()),
        "label": pa.array([names[code] for code in codes]),
        "predicted": pa.array([names[code] for code in guess]),
        "score": pa.array(own, pa.float64()),
        "confidence": pa.array([None] * n if p is None else p[each, guess], pa.float64()),
        "label_probability": pa.array([None] * n if p is None else p[each, codes], pa.float64()),
    }
