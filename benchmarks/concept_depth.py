"""Concept Depth of small models on labelled sets, with noise and compressed copies: `mechscope probe --study depth`.

    MECHSCOPE_DATA=... python benchmarks/concept_depth.py [--texts 500] [--sets sst2 cities] [--models tiny] [--json]

Sets from $MECHSCOPE_DATA/probes: SST-2, IMDB (both by text), cities (grouped by city), common claim. Each model reads
each set as it is, with "aaa" or "bbb" before each text, and in 8 and 4 bits; logistic probes at the last token, their
penalty chosen by folds, 40 % of the texts measured on, one division for all layers and variants. Beside resid_post
stands mlp_in, the tensor of the published code. Tables in Markdown; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from interp.compression import read_recipe
from interp.data import Labelled, read_labelled
from interp.models import ModelHandle, ModelSpec, load_model
from probes.capturing import Captured, capture_texts, random_model
from probes.concept_depth import ORIGINAL, concept_depth, noisy
from probes.logistic import LogisticProbe
from probes.splits import LeakWarning, grouped_split
from probes.sweep import sweep

STATEMENT = "Judge the statement is True or False. {}"


@dataclass(frozen=True)
class Set:
    """Where a set lies, and how it is read."""

    file: str
    text: str
    label: str
    group: str | None = None
    names: tuple[str, ...] = ()
    template: str = "{}"


SETS = {
    "sst2": Set("probes/sst2/train.tsv", "text", "label", names=("text", "label")),
    "imdb": Set("probes/imdb/train.jsonl.gz", "text", "label"),
    "cities": Set("probes/geometry-of-truth/cities.csv", "statement", "label", "city", template=STATEMENT),
    "common_claim": Set(
        "probes/geometry-of-truth/common_claim_true_false.csv", "statement", "label", template=STATEMENT
    ),
}
RECIPES = ("int8", "int4")
GRID, FOLDS = (1e-4, 1e-3, 1e-2, 1e-1), 3
"""Penalties that are tried, and by how many folds: fewer than usual, for time."""


def read(name: str, root: Path, texts: int) -> tuple[Labelled, str]:
    """Return the texts of a set and its template."""
    one = SETS[name]
    whole = read_labelled(root / one.file, one.text, one.label, one.group, names=one.names or None)
    return sample(whole, texts), one.template


def sample(whole: Labelled, texts: int) -> Labelled:
    """Return about `texts` texts of whole groups, drawn by a fixed seed."""
    names, of = np.unique(np.array(whole.groups, dtype=str), return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    sizes = np.cumsum(np.bincount(of)[order])
    kept = np.isin(of, order[: int(np.searchsorted(sizes, texts)) + 1])
    parts = (whole.texts, whole.labels, whole.groups)
    return Labelled(*(tuple(value for value, here in zip(part, kept, strict=True) if here) for part in parts))


def measure(handle: ModelHandle, labelled: Labelled, template: str, resamples: int) -> list[dict[str, Any]]:
    """Return a row for each variant and kind of site: depths, and the numbers of each layer as lists."""
    y, groups = np.array(labelled.labels), np.array(labelled.groups)
    split = grouped_split(y, groups, test=0.4)
    probe = LogisticProbe(grid=GRID, folds=FOLDS)
    options = {"groups": groups, "split": split, "resamples": resamples, "probe": probe}

    def acts(model: ModelHandle, texts: list[str], sites: tuple[str, ...]) -> Captured:
        return capture_texts(model, [template.replace("{}", text) for text in texts], sites)

    plain, sites = list(labelled.texts), ("resid_post", "mlp_in")
    random = acts(random_model(handle), plain, sites)
    variants = {ORIGINAL: sweep(acts(handle, plain, sites), y, random=random, **options)}
    variants["noise"] = sweep(acts(handle, noisy(plain), sites[:1]), y, controls=False, **options)
    for name in RECIPES:
        copy = load_model(replace(handle.spec, recipe=read_recipe(name)))
        variants[name] = sweep(acts(copy, plain, sites[:1]), y, controls=False, **options)
    study = concept_depth(variants, resamples=resamples)
    layers = study.layers.to_pylist()
    rows = []
    for row in study.depths.to_pylist():
        own = [one for one in layers if (one["variant"], one["kind"]) == (row["variant"], row["kind"])]
        best = max(own, key=lambda one: one["auc"])
        baselines = variants[ORIGINAL].reports[variants[ORIGINAL].spots()[0]].baselines
        rows.append(row | {"layers_": own, "best": best, "baselines": baselines, "texts": len(labelled)})
    return rows


def line(model: str, name: str, row: dict) -> str:
    """Return a row of the table."""
    best, own = row["best"], row["layers_"]
    accuracy = " ".join(f"{one['accuracy']:.3f}" for one in own)
    auc = f"{best['auc']:.3f} [{best['auc_low']:.3f}, {best['auc_high']:.3f}] at {best['layer']}"
    at = lambda value: "none" if value is None else f"{value:.2f}"  # noqa: E731
    drops = [one for one in own if one["auc_drop"] is not None]
    worst = max(drops, key=lambda one: one["auc_drop"], default=None)
    drop = (
        ""
        if worst is None
        else f"{worst['auc_drop']:+.3f} [{worst['auc_drop_low']:+.3f}, {worst['auc_drop_high']:+.3f}]"
    )
    return (
        f"| {model} | {name} | {row['variant']} | {row['kind']} | {accuracy} | {auc} | {at(row['jump'])} "
        f"({row['jump_share']:.0%}) | {at(row['converging'])} ({row['converging_share']:.0%}) | "
        f"{at(row['converging_literal'])} | {drop} |"
    )


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--models", nargs="+", default=["tiny", "stories260K"])
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    root = Path(os.environ.get("MECHSCOPE_DATA") or "/nonexistent")
    if not root.is_dir():
        sys.exit("MECHSCOPE_DATA names no folder; it holds the labelled sets and stories260K.")
    warnings.simplefilter("ignore", LeakWarning)
    found, begun = {}, time.time()
    head = "| model | set | variant | site | accuracy by layer | best AUC | J | C | literal C | largest AUC drop |"
    if not args.json:
        print(head + "\n|" + "---|" * (head.count("|") - 1), flush=True)
    for model in args.models:
        handle = load_model(ModelSpec(model if model == "tiny" else str(root / "models" / model)), device="cpu")
        for name in args.sets:
            labelled, template = read(name, root, args.texts)
            rows = measure(handle, labelled, template, args.resamples)
            found[f"{model}.{name}"] = rows
            if not args.json:
                print("\n".join(line(model, name, row) for row in rows), flush=True)
                beside = ", ".join(f"{key} {value:.3f}" for key, value in rows[0]["baselines"].items())
                print(f"<!-- {model} {name}: {rows[0]['texts']} texts; {beside} -->", flush=True)
    print(json.dumps({"concept_depth": found, "seconds": round(time.time() - begun)}, default=float))


if __name__ == "__main__":
    main()
