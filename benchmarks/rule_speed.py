"""Training speed of every rule on a CPU, as a share of the one product that an encoder cannot do without.

    python benchmarks/rule_speed.py [--rules topk switch ...] [--rounds 5] [--steps 3] [--threads 2] [--cpu] [--json]

d_in 512, d_sae 4096, k 32 where a rule takes k, batch 2048, float32; Adam, clipping and projection on, AuxK off, in the
middle of a training (step 1000 of 2000), after some steps in which running thresholds settle. All sides run in turns in
one process; each number is the median over the rounds of the seconds of one product over those of one step. Rules
whose number of active latents is not set (`relu` and the like) start with about half of all and are slow until their
penalty has worked: `l0` says what was measured. `--cpu` counts processor time instead of the clock's, on one thread: on
a busy machine that is the steadier of the two. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import sys
from pathlib import Path
from time import perf_counter, process_time

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from app.command import ALLOCATOR, restart_with_allocator
from sae.batches import Batch
from sae.config import SaeConfig, Scalar, TrainConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.rules import RULES
from sae.training import Training

D_IN, D_SAE, K, BATCH, LR = 512, 4096, 32, 2048, 1e-3
HELD = 4
"""Batches held in memory and used in turn."""
STEP, STEPS, SETTLING = 1000, 2000, 4
TOP_K = ("topk", "batch_topk", "mutual_choice", "feature_choice", "abs_topk", "matryoshka", "switch", "group_max")


def rows(count: int) -> Tensor:
    """Return rows of a planted dictionary: 2,048 unit atoms, about 20 in a row, of exponential size."""
    generator = torch.Generator().manual_seed(20_240)  # never the seed of an initialisation
    atoms = torch.nn.functional.normalize(torch.randn(2048, D_IN, generator=generator), dim=1)
    on = torch.rand(count, 2048, generator=generator) < 20 / 2048
    return (on * torch.empty(count, 2048).exponential_(generator=generator)) @ atoms


class Side:
    """A training of one rule."""

    def __init__(self, rule: str, data: Tensor) -> None:
        """Start in the middle of a training, and let what runs settle."""
        args: dict[str, Scalar] = {"k": K} if "k" in inspect.signature(RULES[rule]).parameters else {}
        sae = Sae(SaeConfig(D_IN, D_SAE, rule, args, "none"))
        initialise(sae, data[:4096], seed=0)
        self.training = Training(sae.train(), TrainConfig(tokens=STEPS * BATCH, batch=BATCH, lr=LR, warmup=0, aux=0.0))
        self.training.step = STEP
        self.batches = [self.batch(x) for x in data.split(BATCH)]
        self.l0 = 0.0
        for _ in range(SETTLING):
            self.step()

    def batch(self, x: Tensor) -> Batch:
        """Return rows with what the rule needs beside them."""
        return Batch(x, gradient=torch.randn_like(x)) if "gradient" in self.training.needs else Batch(x)

    def step(self) -> None:
        """Take one step."""
        self.l0 = float(self.training.advance(self.batches[self.training.step % HELD])["l0"])


def measure(args: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return (seconds of a step of each side in each round, L0 of each rule)."""
    data = rows(HELD * BATCH)
    weight, out = torch.randn(D_SAE, D_IN), torch.empty(BATCH, D_SAE)
    sides = {rule: Side(rule, data) for rule in args.rules}
    times: dict[str, list[float]] = {name: [] for name in ("limit", *sides)}
    clock = process_time if args.cpu else perf_counter
    for turn in range(args.rounds):
        for name in sorted(times, reverse=turn % 2 == 1):
            begun = clock()
            for step in range(args.steps):
                if name == "limit":
                    torch.mm(data[step * BATCH % len(data) :][:BATCH], weight.t(), out=out)
                else:
                    sides[name].step()
            times[name].append((clock() - begun) / args.steps)
    return times, {rule: side.l0 for rule, side in sides.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps in a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="processor time of one thread")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    restart_with_allocator(insist=True)
    args.threads = 1 if args.cpu else args.threads
    torch.set_num_threads(args.threads)
    times, l0 = measure(args)
    found = {
        rule: {
            "of_limit": round(statistics.median(a / b for a, b in zip(times["limit"], times[rule], strict=True)), 3),
            "best": round(min(times["limit"]) / min(times[rule]), 3),
            "ms": round(1e3 * statistics.median(times[rule]), 1),
            "l0": round(l0[rule], 1),
        }
        for rule in args.rules
    }
    if not args.json:
        print(f"d_in {D_IN}, d_sae {D_SAE}, k {K}, batch {BATCH}, {args.threads} threads, allocator {ALLOCATOR}")
        print(f"{'':<20}{'ms/step':>9}{'of limit':>10}{'at best':>9}{'L0':>8}")
        print(f"{'one product':<20}{1e3 * statistics.median(times['limit']):>9.1f}{1:>10.3f}{1:>9.3f}")
        for rule, row in found.items():
            mark = "  below 0.33" if rule in TOP_K and row["of_limit"] < 0.33 else ""
            print(f"{rule:<20}{row['ms']:>9.1f}{row['of_limit']:>10.3f}{row['best']:>9.3f}{row['l0']:>8.1f}{mark}")
    settings = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "batch": BATCH, "threads": args.threads, "cpu": args.cpu}
    print(json.dumps({"benchmark": "rule_speed", "rules": found, "settings": settings, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
