"""Unit or free atoms, short and long: FVU on held-out rows over the learning rate, on a planted dictionary and a model.

    python benchmarks/initialisation.py [--data planted tiny] [--steps 200 3000] [--factors 1 2 5 10 20]

`unit` starts at atoms of length 1 and keeps them there; `free` starts at 0.1, leaves the length to Adam and counts
values in units of it (sae-lens' choice). Adam moves every coordinate by about its rate, which turns an atom of length
0.1 ten times as far as one of length 1: so each parametrisation is run at several rates, multiples of the law
2e-4 / sqrt(d_sae / 2^14), and compared at its best. On the planted dictionary the share of true atoms that were found
is given too (an atom with |cosine| above 0.9). Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from interp.metrics import Reconstruction
from sae.config import SaeConfig, TrainConfig, default_lr
from sae.model import Sae
from sae.training import begin

POOL = 200
"""Batches that are held and used in turn."""
HELDOUT = 8192


class Held:
    """Batches held in memory, one per step, in turn."""

    def __init__(self, batches: list[Tensor], test: Tensor, atoms: Tensor | None = None) -> None:
        """Take the batches, rows to test on, and the true atoms if they are known."""
        self.batches, self.test, self.atoms, self.d_in = batches, test, atoms, test.shape[1]

    def batch(self, step: int) -> Tensor:
        """Return the batch of `step`."""
        return self.batches[step % len(self.batches)]


def planted(batch: int, d_in: int = 64, features: int = 256, active: float = 8.0) -> Held:
    """Return rows made of few of many unit atoms, with frequencies that fall like 1 / rank."""
    generator = torch.Generator().manual_seed(20_240)  # never the seed of an initialisation
    atoms = torch.nn.functional.normalize(torch.randn(features, d_in, generator=generator), dim=1)
    rate = 1 / torch.arange(5, features + 5)
    rate = (rate * active / rate.sum()).clamp_max(0.5)

    def rows(n: int) -> Tensor:
        on = torch.rand(n, features, generator=generator) < rate
        size = torch.empty(n, features).exponential_(generator=generator) + 0.5
        return (on * size) @ atoms + 0.01 * torch.randn(n, d_in, generator=generator)

    return Held([rows(batch) for _ in range(POOL)], rows(HELDOUT), atoms)


def captured(name: str, site: str, batch: int) -> Held:
    """Return activations of a model on the demo text."""
    from interp.activations import ActivationStore
    from interp.data import DataSpec, token_blocks
    from interp.models import load_model

    model = load_model(name)
    blocks, heldout = token_blocks(model, DataSpec("demo")).split(0.1)
    test = ActivationStore(model, heldout, site, batch=1024).sample(HELDOUT)
    store = ActivationStore(model, blocks, site, batch=batch)
    return Held([store.batch(step) for step in range(POOL)], test)


def score(sae: Sae, data: Held) -> dict[str, float]:
    """Return FVU, share of latents that never fire on the test rows, and the share of true atoms found."""
    sae.eval()
    sums = Reconstruction()
    with torch.no_grad():
        recon, code = sae(data.test)
        sums.add(data.test, recon, data.test.mean(0))
        found = {"fvu": sums.fvu, "silent": float((~code.fired()).double().mean())}
        if data.atoms is not None:
            cosines = data.atoms @ sae.unit()[2].t()
            found["found"] = float((cosines.abs().amax(1) > 0.9).double().mean())
    return found


def cells(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Train and score every cell of the grid."""
    for name in args.data:
        data = planted(args.batch) if name == "planted" else captured(name, args.site, args.batch)
        d_sae = args.expansion * data.d_in
        law = default_lr(d_sae, steps=10**9)
        for steps in args.steps:
            for factor in args.factors:
                for atoms in ("unit", "free"):
                    sae = Sae(SaeConfig(data.d_in, d_sae, "topk", {"k": args.k}, atoms=atoms))
                    config = TrainConfig(tokens=steps * args.batch, batch=args.batch, lr=factor * law, seed=args.seed)
                    training = begin(sae, data, config)
                    sae.train()
                    while training.step < steps:
                        training.advance(data.batch(training.step))
                    yield {"data": name, "steps": steps, "atoms": atoms, "factor": factor, **score(sae, data)}


def main() -> None:
    """Train the grid and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["planted", "tiny"], help="planted, or a model")
    parser.add_argument("--site", default="resid_post.2")
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 3000])
    parser.add_argument("--factors", type=float, nargs="+", default=[1, 2, 5, 10, 20], help="multiples of the law")
    parser.add_argument("--expansion", type=int, default=8)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, object]] = []
    print(f"{'data':<10}{'steps':>6}{'rate':>6}  {'atoms':<6}{'fvu':>9}{'silent':>9}{'found':>8}")
    for row in cells(args):
        rows.append(row)
        found = f"{row['found']:>8.3f}" if "found" in row else ""
        print(
            f"{row['data']:<10}{row['steps']:>6}{row['factor']:>5g}x  {row['atoms']:<6}"
            f"{row['fvu']:>9.4f}{row['silent']:>9.3f}{found}",
            flush=True,
        )
    best = {
        f"{name}.{steps}.{atoms}": min(
            (row for row in rows if (row["data"], row["steps"], row["atoms"]) == (name, steps, atoms)),
            key=lambda row: row["fvu"],  # type: ignore[arg-type,return-value]
        )
        for name in args.data
        for steps in args.steps
        for atoms in ("unit", "free")
    }
    print(json.dumps({"benchmark": "initialisation", "k": args.k, "batch": args.batch, "best": best, "cells": rows}))


if __name__ == "__main__":
    main()
