"""What a probe found, with what it has to be read beside: intervals over groups, baselines, selectivity.

    found = evaluate(probe, x, y, split, groups=city, types=token, features={"position only": position_only(pos)})

A baseline is the accuracy of the same kind of probe on the same rows, from features or with labels that hold nothing of
what the model knows. An accuracy without them says little: of a model with random weights it can be high as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interp.sites import Site
from probes.base import BaseProbe
from probes.controls import majority, selectivity, shuffled_labels
from probes.intervals import RESAMPLES, Interval, Weights, bootstrap, weighted_auroc, weighted_balanced, weighted_mean
from probes.rows import array, check_finite, check_groups
from probes.source import Source
from probes.splits import Split, warn_of_leaks

if TYPE_CHECKING:
    import pyarrow as pa

MAJORITY, SHUFFLED, CONTROL = "majority", "shuffled labels", "control task"
SHUFFLES = 20
"""Orders that are tried until all classes are in the training part."""


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found on the test part."""

    probe: str
    """Kind of probe."""
    source: Source | None
    """What the rows are."""
    accuracy: Interval
    """Share of rows told right."""
    balanced: Interval
    """Mean over the classes of that share."""
    auc: Interval
    """Area under the ROC curve; with several classes the mean over each against the rest."""
    baselines: dict[str, float]
    """Accuracy of what it has to beat, by name."""
    rows: tuple[int, int]
    """Rows fitted on, and measured on."""
    groups: int
    """Groups measured on: what the intervals are over."""
    classes: tuple[str, ...]
    """The classes."""
    split: str
    """Digest of the division; reports can be compared where it is equal."""

    @property
    def selectivity(self) -> float | None:
        """Accuracy less that on the control task; None without one."""
        return self.accuracy.value - self.baselines[CONTROL] if CONTROL in self.baselines else None

    def table_rows(self) -> list[dict[str, Any]]:
        """Return a row for each number: measure, value, low, high, and what the probe is."""
        site = None if self.source is None else Site.parse(self.source.site)
        about = {
            "model": self.source.model if self.source else None,
            "site": str(site) if site else None,
            "layer": site.layer if site else None,
            "probe": self.probe,
        }
        measured = {"accuracy": self.accuracy, "balanced accuracy": self.balanced, "auc": self.auc}
        rows = [{"measure": name, "value": x.value, "low": x.low, "high": x.high} for name, x in measured.items()]
        plain = self.baselines | ({} if self.selectivity is None else {"selectivity": self.selectivity})
        rows += [{"measure": name, "value": value, "low": None, "high": None} for name, value in plain.items()]
        counts = {"n_train": self.rows[0], "n_test": self.rows[1], "groups": self.groups, "split": self.split}
        return [about | row | counts for row in rows]

    def _repr_html_(self) -> str:
        where = f" at {escape(self.source.site)} of {escape(self.source.model)}" if self.source else ""
        head = (
            f"<b>{escape(self.probe)}</b>{where} · {escape(', '.join(self.classes))} · fitted on {self.rows[0]} rows, "
            f"measured on {self.rows[1]} rows of {self.groups} groups"
        )
        body = "".join(
            f"<tr><td>{escape(row['measure'])}</td><td>{_shown(row['value'])}</td><td>{_range(row)}</td>"
            f"<td>{_bar(row['value'])}</td></tr>"
            for row in self.table_rows()
        )
        return f"{head}<table><tr><th>measure</th><th>value</th><th>95 %</th><th></th></tr>{body}</table>"


def _shown(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.3f}"


def _range(row: Mapping[str, Any]) -> str:
    low, high = _shown(row["low"]), _shown(row["high"])
    return f"{low} to {high}" if low and high else ""


def _bar(value: float) -> str:
    width = 0 if np.isnan(value) else round(100 * min(max(value, 0), 1))
    return f'<div style="width:{width}px;height:8px;background:#0072B2"></div>'


def reports_table(reports: Iterable[ProbeReport]) -> pa.Table:
    """Return the rows of several reports: model, site, layer, probe, measure, value, low, high, n_train, ..."""
    import pyarrow as pa

    texts = dict.fromkeys(("model", "site", "probe", "measure", "split"), pa.string())
    numbers = dict.fromkeys(("value", "low", "high"), pa.float64())
    counts = dict.fromkeys(("layer", "n_train", "n_test", "groups"), pa.int64())
    rows = [row for report in reports for row in report.table_rows()]
    order = (
        "model",
        "site",
        "layer",
        "probe",
        "measure",
        "value",
        "low",
        "high",
        "n_train",
        "n_test",
        "groups",
        "split",
    )
    kinds = texts | numbers | counts
    return pa.Table.from_pylist(rows, pa.schema([(name, kinds[name]) for name in order]))


def evaluate(
    probe: BaseProbe,
    X: Any,
    y: Any,
    split: Split,
    *,
    groups: Any = None,
    texts: Sequence[str] | None = None,
    types: Any = None,
    features: Mapping[str, Any] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    controls: bool = True,
) -> ProbeReport:
    """Fit `probe` on the training part, and return what it does on the test part, beside the baselines.

    Args:
        probe: the estimator; it is left fitted.
        X: activations [row, d_in].
        y: label of each row.
        split: the division; take one for all layers.
        groups: what each row belongs to: of folds, intervals, and the search for leaks.
        texts: the text of each row; equal ones in two parts are leaks.
        types: what each row is of, for the control task; None leaves it out.
        features: rows of other features by name of the baseline: `random weights`, `bag of tokens`, ...
        resamples: draws of the bootstrap.
        seed: of the bootstrap, the shuffling and the control task.
        controls: False only where the report stands beside one of the same rows and labels that has the baselines.

    Returns:
        The report; majority and shuffled labels are always among its baselines, unless `controls` are left out.

    Raises:
        ValueError: what `fit` refuses, a class that the test part lacks, or rows of other lengths.

    Warns:
        LeakWarning: a group or a text has rows in several parts.
    """
    x, labels = array(X, "X"), array(y, "y")
    check_finite(x, "X")
    of = check_groups(groups, len(labels))
    warn_of_leaks(split, groups, texts)
    probe.fit(x[split.train], labels[split.train], of[split.train])
    missing = sorted(set(labels[split.test].tolist()) ^ set(probe.classes_.tolist()))
    if missing:
        raise ValueError(f"The class {missing[0]!r} is not in both the training and the test part; divide again.")
    codes = np.searchsorted(probe.classes_, labels[split.test])
    scores = probe.decision_function(x[split.test])
    right = probe.predict(x[split.test]) == labels[split.test]
    drawn = {"groups": of[split.test], "resamples": resamples, "seed": seed}
    return ProbeReport(
        type(probe).__name__,
        probe.source,
        bootstrap(weighted_mean(right), **drawn),
        bootstrap(weighted_balanced(right, codes), **drawn),
        bootstrap(area(scores, codes), **drawn),
        _baselines(probe, x, labels, split, groups, types, features or {}, seed) if controls else {},
        (len(split.train), len(split.test)),
        len(np.unique(of[split.test])),
        tuple(str(one) for one in probe.classes_.tolist()),
        split.digest,
    )


def area(scores: NDArray, codes: NDArray) -> Callable[[Weights], float]:
    """Return the area under the ROC curve as a statistic of how often each row is drawn.

    Args:
        scores: what `decision_function` gives: [row], or [row class], each class against the rest and then the mean.
        codes: number of each row's class.
    """
    if scores.ndim == 1:
        return weighted_auroc(scores, codes == 1)
    each = [weighted_auroc(scores[:, code], codes == code) for code in range(scores.shape[1])]
    return lambda weights: float(np.mean([one(weights) for one in each]))


def _baselines(
    probe: BaseProbe,
    x: np.ndarray,
    y: np.ndarray,
    split: Split,
    groups: Any,
    types: Any,
    features: Mapping[str, Any],
    seed: int,
) -> dict[str, float]:
    of = check_groups(groups, len(y))

    def accuracy(rows: np.ndarray, labels: np.ndarray) -> float:
        fitted = probe.fresh().fit(rows[split.train], labels[split.train], of[split.train])
        return float((fitted.predict(rows[split.test]) == labels[split.test]).mean())

    found = {MAJORITY: majority(y, split), SHUFFLED: accuracy(x, _shuffled(y, split, groups, seed))}
    if types is not None:
        found[CONTROL] = selectivity(probe, x, y, types, split, groups=groups, seed=seed)[1]
    for name, rows in features.items():
        other = array(rows, name)
        if len(other) != len(y):
            raise ValueError(f"The baseline {name!r} needs a row for each of the {len(y)} labels, got {len(other)}.")
        found[name] = accuracy(other, y)
    return found


def _shuffled(y: np.ndarray, split: Split, groups: Any, seed: int) -> np.ndarray:
    """Return labels exchanged at random, in an order that leaves the training part all classes."""
    for attempt in range(SHUFFLES):
        found = shuffled_labels(y, groups=groups, seed=seed + attempt)
        if len(np.unique(found[split.train])) == len(np.unique(y)):
            return found
    raise ValueError("Shuffled labels leave the training part without a class every time; give more groups.")
