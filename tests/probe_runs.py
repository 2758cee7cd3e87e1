"""Studies of kind probes as `mechscope probe` leaves them, for the tests of the Probes page: numbers that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from interp.runs import Run, start_run

LAYERS, POSITIONS, TEXTS = 3, ("last", "-2"), 12
LABELS = ("closed", "open")


def truth(layer: int, position: str) -> float:
    """Return the accuracy of the probe at a place."""
    return 0.55 + 0.15 * layer - (0.1 if position != "last" else 0.0)


def sweep_rows() -> list[dict[str, Any]]:
    """Return the rows of sweep.parquet."""
    rows = []
    for layer in range(LAYERS):
        for position in POSITIONS:
            value = truth(layer, position)
            place = {"site": f"resid_post.{layer}", "kind": "resid_post", "layer": layer, "position": position}
            measured = {"accuracy": value, "balanced accuracy": value, "auc": value + 0.05}
            beside = {"majority": 0.5, "shuffled labels": 0.48, "random weights": 0.6, "bag of tokens": 0.52}
            for name, number in {**measured, **beside}.items():
                ends = (
                    {"low": number - 0.04, "high": number + 0.04} if name in measured else {"low": None, "high": None}
                )
                counts = {"n_train": 40, "n_test": TEXTS, "groups": 4, "split": "ab"}
                rows.append(place | {"probe": "LogisticProbe", "measure": name, "value": number} | ends | counts)
    return rows


def prediction_rows() -> list[dict[str, Any]]:
    """Return the rows of predictions.parquet: text 0 is wrong and sure at every place, the others are right."""
    rows = []
    for layer in range(LAYERS):
        for position in POSITIONS:
            for text in range(TEXTS):
                label = LABELS[text % 2]
                sure = 0.9 if text == 0 else 0.55 + 0.03 * text
                predicted = LABELS[1 - text % 2] if text == 0 else label
                rows.append(
                    {
                        "site": f"resid_post.{layer}", "kind": "resid_post", "layer": layer, "position": position,
                        "text": text, "label": label, "predicted": predicted, "score": sure - 0.5, "confidence": sure,
                        "label_probability": sure if predicted == label else 1 - sure,
                    }
                )  # fmt: skip
    return rows


def write_sweep(root: Path, *, texts: list[str] | None = None, model: Any = "tiny", **more: Any) -> Run:
    """Write a finished sweep; `texts` are shown as the test texts, `more` goes into its configuration."""
    contents = texts or [f"text number {i} of the set" for i in range(TEXTS)]
    config = {
        "study": "sweep", "model": {"name": model} if isinstance(model, str) else model, "weights": "0" * 64,
        "data": {"name": "quoted_speech", "digest": "d", "texts": 52}, "settings": {"probe": "logistic"},
    } | more  # fmt: skip
    with start_run("probes", config, slug="tiny.quoted_speech.sweep", root=root) as run:
        run.save_table("sweep.parquet", pa.Table.from_pylist(sweep_rows()))
        run.save_table("predictions.parquet", pa.Table.from_pylist(prediction_rows()))
        columns = {
            "text": list(range(TEXTS)), "content": contents, "label": [LABELS[i % 2] for i in range(TEXTS)],
            "group": [str(i // 3) for i in range(TEXTS)], "part": ["train" if i % 3 else "test" for i in range(TEXTS)],
            "tokens": [6] * TEXTS,
        }  # fmt: skip
        run.save_table("texts.parquet", pa.table(columns))
        best = truth(LAYERS - 1, "last")
        run.finish(
            {
                "study": "sweep", "best_site": f"resid_post.{LAYERS - 1}", "best_layer": LAYERS - 1,
                "best_position": "last", "accuracy": best, "accuracy_low": best - 0.04, "accuracy_high": best + 0.04,
                "auc": best + 0.05, "over_baselines": best - 0.6, "selectivity": None, "classes": list(LABELS),
                "n_train": 40, "n_test": TEXTS, "groups": 4, "leaks": 0, "seconds": 3.0,
            }
        )  # fmt: skip
    return run


def write_live_sweep(root: Path, folder: Path, layer: int = 1, **more: Any) -> Run:
    """Write a sweep of the model in `folder`, which can be loaded, with a fitted probe of one layer."""
    from interp.models import load_model
    from probes import LogisticProbe, Source, save_probe

    handle = load_model(str(folder))
    texts = [f"the {word} was {end}" for word in ("cat", "dog", "sun", "sea", "man", "boy") for end in ("red", "old")]
    plain = write_sweep(root / "plain", texts=texts, model=str(folder), weights=handle.digest(), **more)
    rng = np.random.default_rng(0)
    probe = LogisticProbe(source=Source.of(handle, f"resid_post.{layer}", "last"))
    probe.fit(rng.normal(size=(40, handle.width(f"resid_post.{layer}"))), np.array(LABELS)[rng.integers(0, 2, 40)])
    with start_run("probes", plain.config, slug="live.quoted_speech.sweep", root=root) as run:
        for name in ("sweep", "predictions", "texts"):
            run.save_table(f"{name}.parquet", plain.table(f"{name}.parquet"))
        save_probe(run, probe, name=f"probes/resid_post.{layer}@last")
        run.finish(plain.summary)
    return run


def write_transfer(root: Path) -> Run:
    """Write a finished transfer study of two sets."""
    names, values = ("cities", "neg_cities"), ((0.9, 0.3), (0.4, 0.8))
    rows = [
        {"probe": "mass_mean", "fitted_on": a, "measured_on": b, "accuracy": values[i][j], "auc": values[i][j]}
        for i, a in enumerate(names)
        for j, b in enumerate(names)
    ]
    config = {"study": "transfer", "model": {"name": "tiny"}, "data": {"name": "cities"}}
    with start_run("probes", config, slug="tiny.cities.transfer", root=root) as run:
        run.save_table("transfer.parquet", pa.Table.from_pylist(rows))
        run.finish({"mass_mean_own": 0.85, "mass_mean_transfer": 0.35})
    return run
