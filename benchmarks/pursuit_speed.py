"""Speed of matching pursuit, in products like the encoder's, measured in the same process in turns.

    python benchmarks/pursuit_speed.py [--d-sae 4096 8192 16384] [--k 8 32] [--rounds 5] [--threads 2] [--json]

d_in 512, batch 2048, float32. `product` is x W^T into an output allocated beforehand; `steps` the k steps of a code
without a graph; `train` a whole training step of the rule (steps, decoder, exact gradient of the loop, Adam). Each
number is the median over the rounds of the ratio within a round, and `steps_per_k` is that of `steps` over k: at most
0.6 is wanted up to 8,192 latents, 1.2 above. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from app.command import restart_with_allocator
from sae.config import SaeConfig, TrainConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.pursuit import matching_pursuit
from sae.training import Training

D_IN, BATCH = 512, 2048


def rows(count: int) -> Tensor:
    """Return rows of a planted dictionary: 1,024 unit atoms, about 20 in a row, of exponential size."""
    generator = torch.Generator().manual_seed(20_240)  # never the seed of an initialisation
    atoms = torch.nn.functional.normalize(torch.randn(1024, D_IN, generator=generator), dim=1)
    on = torch.rand(count, 1024, generator=generator) < 20 / 1024
    return (on * torch.empty(count, 1024).exponential_(generator=generator)) @ atoms


def jobs(x: Tensor, d_sae: int, k: int) -> dict[str, Callable[[], object]]:
    """Return what is timed."""
    sae = Sae(SaeConfig(D_IN, d_sae, "matching_pursuit", {"k": k}))
    initialise(sae, x, seed=0)
    training = Training(sae.train(), TrainConfig(tokens=10**9, batch=BATCH, lr=1e-5, warmup=0, aux=0.0))
    centred, _ = sae.normaliser.into(x)
    centred = centred - sae.b_dec.detach()
    out = torch.empty(len(x), d_sae)
    return {
        "product": lambda: torch.mm(centred, sae.W_dec.detach().t(), out=out),
        "steps": lambda: matching_pursuit(centred, sae.W_dec.detach(), k),
        "train": lambda: training.advance(x),
    }


def measure(x: Tensor, d_sae: int, k: int, rounds: int) -> dict[str, float]:
    """Return the ratios for one size."""
    found = jobs(x, d_sae, k)
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 1):
        for name, job in found.items():
            begun = perf_counter()
            job()
            if turn:
                times[name].append(perf_counter() - begun)
    ratio = {
        name: statistics.median(a / b for a, b in zip(times[name], times["product"], strict=True)) for name in found
    }
    return {
        "d_sae": d_sae,
        "k": k,
        "product_ms": round(1e3 * statistics.median(times["product"]), 1),
        "steps": round(ratio["steps"], 2),
        "steps_per_k": round(ratio["steps"] / k, 3),
        "train": round(ratio["train"], 2),
        "train_rows_per_s": round(len(x) / statistics.median(times["train"])),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-sae", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    restart_with_allocator(insist=True)
    torch.set_num_threads(args.threads)
    x, table = rows(BATCH), []
    for d_sae in args.d_sae:
        for k in args.k:
            table.append(measure(x, d_sae, k, args.rounds))
            if not args.json:
                print("  ".join(f"{name} {value}" for name, value in table[-1].items()))
    worst = {
        "up to 8192": max((row["steps_per_k"] for row in table if row["d_sae"] <= 8192), default=None),
        "above": max((row["steps_per_k"] for row in table if row["d_sae"] > 8192), default=None),
    }
    settings = {"d_in": D_IN, "batch": BATCH, "threads": args.threads}
    print(json.dumps({"benchmark": "pursuit_speed", "worst_steps_per_k": worst, "sizes": table, "settings": settings}))


if __name__ == "__main__":
    main()
