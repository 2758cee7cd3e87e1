"""Finished runs of kind attribution over invented numbers, for the tests of the explorer: three layers, two heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from interp.attribution.result import Attribution
from interp.attribution.saving import summary, write_attribution
from interp.runs import Run, start_run
from tests.explorer_runs import HOSTILE

LAYERS, HEADS, PROMPTS, POSITIONS = 3, 2, 6, 4
CLEAN, CORRUPT = 3.0, -1.0
STRONGEST = ("mlp_out", 1, 3)
"""Kind, layer and position of the cell that has the largest effect outside of the stream."""
INT = pa.int32()


def truth(kind: str, seed: int = 0) -> np.ndarray:
    """Return the effects of a kind: [layer position prompt], of `head_out` [layer head prompt]."""
    rng = np.random.default_rng([seed, *map(ord, kind)])
    found = rng.normal(0.2, 0.3, (LAYERS, HEADS if kind == "head_out" else POSITIONS, PROMPTS))
    if kind == STRONGEST[0]:
        found[STRONGEST[1:]] = 2.5 + 0.1 * np.arange(PROMPTS)
    return found.astype(np.float32)


def nodes(kind: str, values: np.ndarray, parts: tuple[str, ...], checked: int = 0) -> pa.Table:
    """Return rows of `nodes` of values [layer part ... prompt]; the first `checked` cells were really patched."""
    at = np.indices(values.shape[:-1]).reshape(values.ndim - 1, -1)
    flat = values.reshape(-1, values.shape[-1]).astype(np.float32)
    n = len(flat)
    columns: dict[str, Any] = {"kind": [kind] * n, "layer": pa.array(at[0], INT)}
    for part in ("pos", "head", "neuron", "latent"):
        columns[part] = pa.array(at[1 + parts.index(part)], INT) if part in parts else pa.nulls(n, INT)
    score = flat.astype(float).mean(1)
    measured = [float(x) * 1.1 if i < checked else None for i, x in enumerate(score)]
    lists = pa.array(list(flat), pa.list_(pa.float32()))
    columns |= {
        "score": score, "stderr": flat.std(1) / np.sqrt(PROMPTS), "per_prompt": lists,
        "measured": pa.array(measured, pa.float64()), "measured_stderr": pa.nulls(n, pa.float64()),
    }  # fmt: skip
    return pa.table(columns)


def prompts(words: list[str]) -> pa.Table:
    """Return pairs whose clean prompts end in `words`."""
    ends = [words[i % len(words)] for i in range(PROMPTS)]
    clean = [["<|endoftext|>", f" the{i}", " old", end] for i, end in enumerate(ends)]
    corrupt = [[*row[:3], " others"] for row in clean]
    return pa.table(
        {
            "prompt": list(range(PROMPTS)), "clean": [[0, 10 + i, 20, 30 + i] for i in range(PROMPTS)],
            "corrupt": [[0, 10 + i, 20, 40] for i in range(PROMPTS)], "clean_tokens": clean, "corrupt_tokens": corrupt,
            "correct": [[1]] * PROMPTS, "correct_tokens": [[" is"]] * PROMPTS, "wrong": [[2]] * PROMPTS,
            "wrong_tokens": [[" are"]] * PROMPTS, "clean_value": [CLEAN] * PROMPTS,
            "corrupt_value": [CORRUPT] * PROMPTS,
        }
    )  # fmt: skip


def write_attribution_run(
    root: Path,
    method: str = "patching",
    *,
    task: str = "agreement",
    direction: str = "denoising",
    kinds: tuple[str, ...] = ("resid_pre", "attn_out", "mlp_out", "head_out"),
    head_positions: bool = False,
    words: list[str] | None = None,
    model: str = "tiny",
) -> Run:
    """Write one finished run; estimates are the truth with noise, relevance has heads at every position."""
    lrp = method.endswith("lrp")
    config: dict[str, Any] = {
        "model": {"name": model, "revision": None, "dtype": "float32", "recipe": []}, "weights": None, "task": task,
        "pairs": "0123456789abcdef", "metric": "logit_diff", "method": method, "kinds": list(kinds), "sae_run": None,
    }  # fmt: skip
    if not lrp:
        config |= {"direction": direction, "baseline": "corrupt", "head_positions": head_positions}
    rng = np.random.default_rng(len(method))
    tables, sums = [], []
    for kind in kinds:
        values = truth(kind, seed=direction == "noising")
        values = values if method == "patching" else values + rng.normal(0, 0.1, values.shape).astype(np.float32)
        parts: tuple[str, ...] = ("head",) if kind == "head_out" else ("pos",)
        if kind == "head_out" and (lrp or head_positions):
            values = np.stack([values / POSITIONS] * POSITIONS, axis=1)
            parts = ("pos", "head")
        tables.append(nodes(kind, values, parts, checked=3 if method in ("atp", "relp") else 0))
        if kind == "resid_pre":
            sums += [(kind, layer, float(values[layer].sum(0).mean())) for layer in range(LAYERS)]
    total = CLEAN if lrp else CLEAN - CORRUPT
    completeness = pa.table(
        {
            "kind": [kind for kind, _, _ in sums], "layer": pa.array([layer for _, layer, _ in sums], INT),
            "part": ["pos" if method == "patching" else "all"] * len(sums), "explained": [x for _, _, x in sums],
            "total": [total] * len(sums), "gap": [total - x for _, _, x in sums],
        }
    )  # fmt: skip
    numbers = {"clean": CLEAN, "corrupt": CORRUPT, "prompts": float(PROMPTS)}
    found = Attribution(
        method, "logit_diff", "none" if lrp else "corrupt", "relevance" if lrp else direction, pa.concat_tables(tables),
        completeness, ("bos", "", " old", (words or ["subject"])[0]), numbers,
    )  # fmt: skip
    run = start_run("attribution", config, slug=f"{model}.{task}.{method}", root=root)
    write_attribution(run, found, prompts(words or [" man", " cat"]))
    run.finish(summary(found) | {"accuracy": 1.0})
    return run


def write_attributions(root: Path) -> Path:
    """Write two questions into the folder `root`: patching both ways, an estimate, relevance; and patching alone."""
    write_attribution_run(root, task="other", kinds=("mlp_out",), words=HOSTILE)
    write_attribution_run(root, "cp_lrp")
    write_attribution_run(root, "atp")
    write_attribution_run(root, direction="noising", kinds=("mlp_out", "head_out"))
    write_attribution_run(root, kinds=("head_out",), head_positions=True)
    write_attribution_run(root)
    return root
