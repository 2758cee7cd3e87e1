"""Finished dictionaries of several rules, L0 and seeds with their evaluations, for the tests of the Dictionaries page.

FVU is an exact line in log L0, so that what is read off between two runs is known: BEST[rule] + SLOPE * log2(64 / L0),
plus 0.001 for each seed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from interp.runs import Run, start_run

BEST = {"abs_topk": 0.10, "batch_topk": 0.12, "topk": 0.13}
SLOPE = 0.05
LATENTS = 128


def fvu(rule: str, l0: float, seed: int = 0) -> float:
    """Return the FVU of a dictionary."""
    return BEST[rule] + SLOPE * math.log2(64 / l0) + 0.001 * seed


def dictionary(root: Path, rule: str, k: int, seed: int = 0, *, l0: float | None = None, **config: Any) -> Run:
    """Write one trained dictionary; without `l0` it has that of its k."""
    at = float(k) if l0 is None else l0
    place = {
        "model": {"name": "tiny"}, "site": "resid_post.2", "data": {"text": "demo", "tokens": 300_000},
        "sae": {"d_in": 192, "d_sae": LATENTS, "rule": rule, "rule_args": {"k": k}},
        "train": {"tokens": 300_000, "seed": seed},
    }  # fmt: skip
    run = start_run("sae", place | config, slug=f"tiny.resid_post.2.{rule}-{LATENTS}", root=root, seed=seed)
    run.log(0, tokens=0, fvu=1.0)
    run.log(1, tokens=2048, fvu=fvu(rule, at, seed))
    run.finish({"l0": at, "fvu": fvu(rule, at, seed) + 0.01, "dead_share": 0.05, "tokens": 300_000})
    return run


def evaluation(sae: Run, rule: str, l0: float, seed: int = 0, *, off: float = 0.0, **config: Any) -> Run:
    """Write the evaluation of a dictionary; `off` is added to its FVU."""
    place = {"sae_run": sae.ref, "site": "resid_post.2", "model": {"name": "tiny"}, "tokens": "a digest"}
    run = start_run("evaluation", place | config, slug=sae.slug, root=sae.root, parents=[sae.ref])
    value = fvu(rule, l0, seed) + off
    density = np.linspace(0, 0.2, LATENTS)
    run.save_table("density.parquet", pa.table({"latent": pa.array(range(LATENTS), pa.int32()), "density": density}))
    numbers = {"ce_delta": 2 * value, "ce_recovered_mean": 1 - value, "kl": value / 2, "dead_share": 1 / LATENTS}
    run.finish({"l0": l0, "fvu": value, **numbers})
    return run


def write_dictionaries(root: Path) -> Path:
    """Write three rules at three k and two seeds, evaluated; one topk that is not; one of another site. Return root."""
    for rule in BEST:
        for k in (16, 32, 64):
            for seed in (0, 1):
                evaluation(dictionary(root, rule, k, seed), rule, float(k), seed)
    dictionary(root, "topk", 8)
    other = dictionary(root, "topk", 16, site="mlp_out.1")
    evaluation(other, "topk", 16.0, site="mlp_out.1")
    return root
