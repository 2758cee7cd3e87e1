"""The study `sweep` of `mechscope probe`: one probe at every layer and position, as a run of kind "probes".

sweep.parquet         site, kind, layer, position, probe, measure, value, low, high, n_train, n_test, groups, split
predictions.parquet   site, kind, layer, position, text, label, predicted, score, confidence, label_probability
texts.parquet         text, content, label, group, part, tokens
k_sparse.parquet      with --ks: site, kind, layer, position, k, accuracy, low, high, auc, ..., random_weights, chosen
probes/SITE@POSITION  the fitted probes, for `probes.load_probe(run, name)`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from app import console
from app.probing import Progress, Question, make_probe
from interp.models import ModelHandle
from interp.runs import Run
from probes.capturing import Captured, capture_texts, random_model
from probes.report import MAJORITY
from probes.saving import save_probe
from probes.splits import Split, grouped_split
from probes.sweep import BAG, POSITION, RANDOM, Sweep, sweep

if TYPE_CHECKING:
    from app.commands.probe import Args

BESIDE = {MAJORITY: "majority", "shuffled labels": "shuffled", RANDOM: "random", BAG: "bag", POSITION: "length"}
"""Baselines that are shown, by their heading."""


def sweep_study(question: Question, args: Args, record: Run, progress: Progress) -> dict[str, Any]:
    """Make the study, write its files into `record`, and return its summary."""
    found, captured = original(question, args, progress)
    save(record, question, captured, found)
    return summary(captured, found)


def original(question: Question, args: Args, progress: Progress) -> tuple[Sweep, Captured]:
    """Return the sweep of the model itself, with the baseline of random weights, and what it was made of."""
    # First, since it may be refused, and the passes take longest.
    split = grouped_split(question.labelled.labels, question.labelled.groups, test=question.test, seed=args.seed)
    captured = read(question.handle, question.prompts, question, args, progress, "texts")
    with_nothing = random_model(question.handle, args.seed)
    random = read(with_nothing, question.prompts, question, args, progress, "random texts")
    return swept(question, args, captured, split, progress, "places", random), captured


def read(
    handle: ModelHandle, prompts: Sequence[str], question: Question, args: Args, progress: Progress, unit: str
) -> Captured:
    """Return the activations of the prompts, saying how far it is in `unit`."""

    def tell(done: int) -> None:
        progress(done, len(prompts), unit)

    options: dict[str, Any] = {"context": args.context, "batch": args.batch}
    return capture_texts(handle, prompts, question.sites, question.positions, on_progress=tell, **options)


def swept(
    question: Question,
    args: Args,
    captured: Captured,
    split: Split,
    progress: Progress,
    unit: str,
    random: Captured | None = None,
) -> Sweep:
    """Return the sweep over what was captured; a variant, which has no `random`, has no baselines of its own."""
    labelled = question.labelled
    probe = make_probe(args.probe, args.C, args.seed)
    options: dict[str, Any] = {"ks": args.ks, "resamples": args.resamples, "seed": args.seed, "random": random}
    options["controls"] = random is not None
    return sweep(
        captured,
        np.array(labelled.labels),
        groups=np.array(labelled.groups),
        split=split,
        probe=probe,
        texts=labelled.texts,
        on_progress=lambda done, total: progress(done, total, unit),
        **options,
    )


def save(record: Run, question: Question, captured: Captured, found: Sweep) -> None:
    """Write the files of a sweep."""
    labelled = question.labelled
    part = np.full(len(labelled), "train", dtype=object)
    part[found.split.test] = "test"
    record.save_table("sweep.parquet", found.table())
    record.save_table("predictions.parquet", found.predictions())
    columns = {
        "text": pa.array(range(len(labelled)), pa.int64()),
        "content": pa.array(labelled.texts, pa.string()),
        "label": pa.array(labelled.labels, pa.string()),
        "group": pa.array(labelled.groups, pa.string()),
        "part": pa.array(part.tolist(), pa.string()),
        "tokens": pa.array(captured.lengths, pa.int64()),
    }
    record.save_table("texts.parquet", pa.table(columns))
    if (sparse := found.k_sparse()) is not None:
        record.save_table("k_sparse.parquet", sparse)
    for spot, probe in found.probes.items():
        save_probe(record, probe, name=probe_name(spot.site, spot.position))


def probe_name(site: str, position: str) -> str:
    """Return what the probe of a site and position is called in its run."""
    return f"probes/{site}@{position}"


def summary(captured: Captured, found: Sweep) -> dict[str, Any]:
    """Return the numbers of the run; say so where texts were cut off."""
    if captured.cut:
        console.note(f"{captured.cut:,} texts were longer than the context, and lost their end")
    return found.summary() | {"cut": captured.cut}


def show(record: Run) -> None:
    """Print a row for each place, and the k-sparse curves."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in record.table("sweep.parquet").to_pylist():
        rows.setdefault((row["site"], row["position"]), {})[row["measure"]] = row
    control = any("selectivity" in found for found in rows.values())
    heads = ("site", "position", "accuracy", "95 %", "auc", "95 %", *BESIDE.values(), *(("selectivity",) * control))
    lines = []
    for (site, position), found in rows.items():
        line: list[Any] = [site, position]
        for measure in ("accuracy", "auc"):
            line += [found[measure]["value"], _range(found[measure])]
        line += [found[name]["value"] if name in found else None for name in BESIDE]
        lines.append(line + ([found.get("selectivity", {}).get("value")] if control else []))
    console.table(heads, [[_short(value) for value in line] for line in lines])
    if "k_sparse.parquet" in record.files:
        _show_sparse(record.table("k_sparse.parquet").to_pylist())
    best = record.summary
    console.note(
        f"best AUC at {best['best_site']}, position {best['best_position']}: accuracy {best['accuracy']:.3f}, "
        f"{best['over_baselines']:+.3f} over the best baseline"
    )


def _show_sparse(rows: Sequence[dict[str, Any]]) -> None:
    console.emit()
    heads = ("site", "position", "k", "accuracy", "95 %", "auc", "random", "columns")
    lines = [
        (row["site"], row["position"], row["k"], _short(row["accuracy"]), _range(row), _short(row["auc"]),
         _short(row["random_weights"]), " ".join(map(str, row["chosen"][:6])))
        for row in rows
    ]  # fmt: skip
    console.table(heads, lines)


def _range(row: dict[str, Any]) -> str | None:
    ends = [row["low"], row["high"]]
    return None if any(one is None or np.isnan(one) for one in ends) else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
