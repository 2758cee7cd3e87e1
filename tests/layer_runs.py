"""Runs of kind layers for the tests of the explorer: profiles of invented models, with heads, pairs and intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from interp.layers.result import FamilyResult, Measure, Part, Profile, layer_table
from interp.runs import Run, start_run

LAYERS, HEADS = 3, 4
WORDS = ["<script>alert(1)</script>", " the", "</td>"]


def write_profile(
    root: Path,
    label: str = "tiny",
    *,
    layers: int = LAYERS,
    shift: float = 0.0,
    families: tuple[str, ...] = ("stream", "similarity", "attention", "readout"),
    model: str = "tiny",
    finish: bool = True,
    refused: dict[str, str] | None = None,
) -> Run:
    """Write a profile of `layers` blocks whose values are shifted by `shift`."""
    rng = np.random.default_rng(layers)
    made = {"stream": stream, "similarity": similarity, "attention": attention, "readout": readout}
    parts = {name: made[name](layers, shift, rng) for name in families}
    about = {"blocks": 4, "context": 16, "tokens": 64, "seconds": 0.1}
    found = Profile(label, layers, parts, refused or {}, about)
    config = {
        "model": {"name": model}, "weights": None, "tokens": "t", "families": list(families), "label": label,
        "data": {"text": "demo"}, "shift": shift,
    }  # fmt: skip
    with start_run("layers", config, slug=label.split()[0], root=root) as run:
        found.save(run)
        if finish:
            run.finish({"model_label": label, "n_layers": layers})
    return run


def stream(layers: int, shift: float, rng: Any) -> Part:
    rows: list[tuple[Any, ...]] = []
    for layer in range(layers):
        rows += [(layer, "norm", part, 10.0 * (layer + 1) + shift + i) for i, part in enumerate(("mean", "95%"))]
        value = float(rng.uniform(0.2, 0.6)) + shift
        rows += [(layer, "share", "attn", value, value - 0.1, value + 0.1)]
    measures = (
        Measure("norm", "norm of the stream", "length", 'Grows with <b>depth</b> & "more".'),
        Measure("share", "size of what is written", "× stream", "Mean over tokens."),
    )
    return Part(FamilyResult({"norm_last": 10.0 * layers + shift}, layer_table(rows)), measures, 0.5)


def similarity(layers: int, shift: float, rng: Any) -> Part:
    rows = [(layer, "cka", "", 0.5 + 0.1 * layer) for layer in range(layers)]
    pairs = [
        {"layer_a": a, "layer_b": b, "cka": 1.0 if a == b else 0.3, "procrustes": 0.1, "knn": None}
        for a in range(-1, layers)
        for b in range(-1, layers)
    ]
    tables = {"pairs": pa.Table.from_pylist(pairs)}
    return Part(FamilyResult({"cka_least": 0.5}, layer_table(rows), tables), (Measure("cka", "CKA"),), 0.1)


def attention(layers: int, shift: float, rng: Any) -> Part:
    rows, heads = [], []
    for layer in range(layers):
        scores = rng.uniform(0, 0.4, HEADS)
        scores[1] = 0.9 - shift if layer == layers - 1 else scores[1]  # the induction head: the last layer's second
        rows += [(layer, "induction", "max head", float(scores.max()))]
        for head in range(HEADS):
            earlier = layer > 0
            heads.append(
                {
                    "layer": layer, "head": head, "induction": float(scores[head]), "entropy": 0.5,
                    "k_composition": 0.2 + 0.01 * head if earlier else None,
                    "k_layer": layer - 1 if earlier else None, "k_head": 2 if earlier else None,
                }
            )  # fmt: skip
    measures = (Measure("induction", "induction score", "share"),)
    tables = {"heads": pa.Table.from_pylist(heads)}
    return Part(FamilyResult({"induction_best": 0.9}, layer_table(rows), tables), measures, 0.2)


def readout(layers: int, shift: float, rng: Any) -> Part:
    heads = [
        {"layer": layer, "head": head, "ov_rank": 7.0 + head, "reads": WORDS, "writes": [" a", " b"]}
        for layer in range(layers)
        for head in range(HEADS)
    ]
    rows = [(layer, "dla", part, 1.0) for layer in range(layers) for part in ("attn", "mlp")]
    tables = {"heads": pa.Table.from_pylist(heads)}
    return Part(FamilyResult({}, layer_table(rows), tables), (Measure("dla", "direct contribution", "logits"),), 0.2)
