"""The studies on labelled texts as a run of kind "labelled": texts are pooled once, each study has a table.

probing.parquet   label, columns, k (null: all), accuracy, majority, chosen
scr.parquet       n, accuracy, score
tpp.parquet       n, own, others, score          tpp_drops.parquet   n, ablated, probe, drop
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from app import console, sources
from app.studies.options import LabelledArgs, check
from app.studies.pooled import Pooled, pool
from app.studies.sparse_probing import sparse_probing
from app.studies.spurious_removal import spurious_removal
from app.studies.targeted_perturbation import check_labels, targeted_perturbation
from interp.config import to_json
from interp.data.labelled import Labelled, read_labelled
from interp.runs import Run, start_run
from interp.runs.files import sha256
from interp.types import Recipe
from sae.model import load_sae

Found = tuple[dict[str, pa.Table], dict[str, Any]]
"""Tables by file name, and what goes into the summary."""


def measure(
    studies: tuple[str, ...],
    asked: LabelledArgs,
    *,
    sae: str | None = None,
    recipe: Recipe = (),
    runs: Path | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Make the studies, or find them; return the run and its numbers.

    Args:
        studies: names in `STUDIES`.
        asked: the texts and the settings.
        sae: run of a dictionary; None takes the newest.
        recipe: steps that the model is given beyond those the dictionary was trained in.
        runs: folder of the runs.
        device: where to compute.

    Raises:
        ValueError: a file, field or label that does not fit, with what to do; no run is begun then.
    """
    check(studies, asked)
    started = time.time()
    labelled, spurious = _read(studies, asked)
    subject = sources.subject(sae, runs)
    handle = sources.open_subject_model(subject, device, recipe)
    config = {
        "model": to_json(handle.spec) if recipe else subject.run.config["model"],
        "site": subject.run.config["site"],
        "sae_run": subject.run.ref,
        "studies": sorted(set(studies)),
        "file": {"name": Path(str(asked.file)).name, "sha256": sha256(Path(str(asked.file)).expanduser())},
        "labelled": {name: value for name, value in to_json(asked).items() if name != "file"},
    }
    place: dict[str, Any] = {"slug": subject.run.slug, "parents": [subject.run.ref], "root": runs, "seed": asked.seed}
    about: dict[str, Any] = {"model": {**config["model"], "digest": handle.digest()}}
    dictionary = load_sae(subject.run, handle.device)
    with start_run("labelled", config, **place, **about) as record:
        if record.finished:
            console.note(f"{record.ref} is finished already")
        else:
            with console.progress(len(labelled), "texts", "pool") as bar:
                pooled = pool(
                    handle, subject.site, dictionary, labelled.texts, context=asked.context, on_progress=bar.to
                )
            _save(record, _study(studies, asked, pooled, labelled, spurious), pooled, started)
    _show(record)
    return {"run": str(record.path), "site": str(subject.site), **record.summary}


def _read(studies: Sequence[str], asked: LabelledArgs) -> tuple[Labelled, Labelled | None]:
    """Return the texts with their labels and, for scr, with the spurious ones; the same texts in both."""
    names = asked.names or None
    sets = [
        read_labelled(str(asked.file), asked.text, field, asked.group, names=names).sample(asked.texts, asked.seed)
        for field in (asked.label, asked.spurious)
        if field is not None
    ]
    if "tpp" in studies:
        check_labels(sets[0])
    if "scr" in studies:
        for one, field in zip(sets, (asked.label, asked.spurious), strict=True):
            if len(one.classes) != 2:
                raise ValueError(
                    f"scr needs two values in the field {field!r}, got {len(one.classes)}: {list(one.classes[:6])}."
                )
    return sets[0], sets[1] if len(sets) > 1 else None


def _study(
    studies: Sequence[str], asked: LabelledArgs, pooled: Pooled, labelled: Labelled, spurious: Labelled | None
) -> Found:
    """Return what the studies find."""
    tables: dict[str, pa.Table] = {}
    summary: dict[str, Any] = {"texts": len(labelled), "cut": pooled.cut}
    parts: list[Found] = []
    if "sparse_probing" in studies:
        parts.append(_probing(pooled, labelled, asked))
    if "scr" in studies and spurious is not None:
        parts.append(_scr(pooled, labelled, spurious, asked.seed))
    if "tpp" in studies:
        parts.append(_tpp(pooled, labelled, asked.seed))
    for found, figures in parts:
        tables |= found
        summary |= figures
    return tables, summary


def _probing(pooled: Pooled, labelled: Labelled, asked: LabelledArgs) -> Found:
    found = sparse_probing(pooled, labelled, asked.ks, seed=asked.seed)
    rows = [
        {
            "label": one.label,
            "columns": one.columns,
            "k": one.k,
            "accuracy": one.accuracy,
            "majority": found.majority[one.label],
            "chosen": list(one.chosen),
        }
        for one in found.scores
    ]
    summary = {f"probing_{kind}_{k}": found.mean(kind, k) for k in asked.ks for kind in ("latents", "neurons")}
    summary["probing_all_neurons"] = found.mean("neurons", None)
    summary["majority"] = sum(found.majority.values()) / len(found.majority)
    return {"probing.parquet": pa.Table.from_pylist(rows)}, summary


def _scr(pooled: Pooled, labelled: Labelled, spurious: Labelled, seed: int) -> Found:
    target, other = (_second(one) for one in (labelled, spurious))
    train = torch.from_numpy(labelled.split(seed=seed))
    found = spurious_removal(pooled, target, other, train, seed=seed)
    rows = [
        {"n": n, "accuracy": found.ablated[n], "score": score if math.isfinite(score) else None}
        for n, score in found.scores.items()
    ]
    summary = {"scr_base": found.base, "scr_clean": found.clean, "scr_exchanged": found.exchanged}
    summary |= {f"scr_{row['n']}": row["score"] for row in rows}
    table = pa.table(
        {
            "n": pa.array([row["n"] for row in rows], pa.int32()),
            "accuracy": pa.array([row["accuracy"] for row in rows], pa.float64()),
            "score": pa.array([row["score"] for row in rows], pa.float64()),
        }
    )
    return {"scr.parquet": table}, summary


def _second(labelled: Labelled) -> Tensor:
    """Return which texts have the second of two labels."""
    return torch.from_numpy(labelled.is_class(labelled.classes[1]))


def _tpp(pooled: Pooled, labelled: Labelled, seed: int) -> Found:
    found = targeted_perturbation(pooled, labelled, seed=seed)
    rows = [{"n": n, "own": found.own[n], "others": found.others[n], "score": found.scores[n]} for n in found.drops]
    drops = [
        {"n": n, "ablated": ablated, "probe": probe, "drop": found.drops[n][c][d]}
        for n in found.drops
        for c, ablated in enumerate(found.classes)
        for d, probe in enumerate(found.classes)
    ]
    tables = {"tpp.parquet": pa.Table.from_pylist(rows), "tpp_drops.parquet": pa.Table.from_pylist(drops)}
    summary = {"tpp_clean": sum(found.clean) / len(found.clean)} | {f"tpp_{row['n']}": row["score"] for row in rows}
    return tables, summary


def _save(record: Run, found: Found, pooled: Pooled, started: float) -> None:
    """Write the tables and finish the run."""
    tables, summary = found
    if pooled.cut:
        console.note(f"{pooled.cut:,} texts were cut off at the context")
    for name, table in tables.items():
        record.save_table(name, table)
    record.finish(summary | {"seconds": round(time.time() - started, 1)})


def _show(record: Run) -> None:
    """Print what the finished run holds."""
    for name in ("probing", "scr", "tpp"):
        if (record.path / f"{name}.parquet").is_file():
            rows = record.table(f"{name}.parquet").to_pylist()
            heads = [head for head in rows[0] if head != "chosen"]
            console.table(tuple(heads), [tuple(row[head] for head in heads) for row in rows])
            console.emit()
