"""What the papers on sparse dictionaries claim, measured: on known truth and on two small models, over seeds.

    python benchmarks/sae_claims.py [--claims choice absorption] [--seeds 3] [--cache FILE] [--json FILE]

Every claim is measured per source and seed; a seed draws the truth, the initialisation and the order of the rows, and
what is compared shares it. The unit of every interval is the seed (`benchmarks/claims/verdicts.py` has the rule of the
verdicts). A measurement is appended to the cache as soon as it is made, so that a stopped run goes on where it was;
rows of the models are captured once into `--store`. stories260K is read from the folder that MECHSCOPE_DATA names and
left out where it is not set.

Prints a table, in the form of the documents, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.claims import at_equal_l0, with_truth
from benchmarks.claims.bench import Bench
from benchmarks.claims.sources import WHERES
from benchmarks.claims.verdicts import Contrast, Finding, judge

REAL = ("tiny", "stories")
Measured = dict[str, float]


@dataclass(frozen=True)
class Claim:
    """What is claimed, where it is measured, and how."""

    says: str
    wheres: tuple[str, ...]
    measure: Callable[[Bench], Measured]
    contrasts: Sequence[Contrast]


CLAIMS = {
    "choice": Claim(
        "mutual and feature choice: fewer dead latents and better reconstruction than topk at equal L0 (2411.02124)",
        ("planted", *REAL),
        at_equal_l0.choice,
        at_equal_l0.CHOICE,
    ),
    "batch_topk": Claim(
        "batch_topk reconstructs better than topk at equal L0 (2412.06410)",
        ("planted", *REAL),
        at_equal_l0.batch_topk,
        at_equal_l0.BATCH_TOPK,
    ),
    "axes": Claim(
        "abs_topk recovers two-sided axes with half the latents (2510.00404)",
        ("axes",),
        with_truth.axes,
        with_truth.AXES,
    ),
    "hierarchy": Claim(
        "matching pursuit recovers the hierarchy where linear encoders fail (2506.03093)",
        ("tree",),
        with_truth.hierarchy,
        with_truth.HIERARCHY,
    ),
    "steps": Claim(
        "only matching pursuit gains with every further step in evaluation (2506.03093)",
        ("planted", *REAL),
        with_truth.steps,
        with_truth.MONOTONE,
    ),
    "absorption": Claim(
        "matryoshka absorbs less (2503.17547)",
        ("families", "families, fixed"),
        with_truth.absorption,
        with_truth.ABSORPTION,
    ),
    "variational": Claim(
        "the variational kinds lose to topk, with more dead latents (2509.22994)",
        ("planted", *REAL),
        at_equal_l0.variational,
        at_equal_l0.VARIATIONAL,
    ),
    "gradient": Claim(
        "choosing by gradient costs less loss than topk at equal k, with fewer dead latents (2411.10397)",
        REAL,
        at_equal_l0.gradient,
        at_equal_l0.GRADIENT,
    ),
    "top_afa": Claim(
        "top_afa finds a good L0 by itself (2503.24277)",
        ("planted", *REAL),
        at_equal_l0.top_afa,
        at_equal_l0.TOP_AFA,
    ),
    "dark_matter": Claim(
        "half of the error and 90% of its squared norm are linear in x (2410.14670)",
        ("planted", *REAL),
        at_equal_l0.dark,
        at_equal_l0.DARK,
    ),
    "recovery": Claim("each rule finds the planted atoms", ("even",), with_truth.found_atoms, with_truth.FOUND),
}


class Cache:
    """Measurements in a file of JSON lines, keyed by claim, source (with its sizes) and seed."""

    def __init__(self, path: Path | None) -> None:
        """Read what is there; a line that a broken run left half written is passed over."""
        self.path, self.held = path, {}
        for line in path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else ():
            try:
                one = json.loads(line)
            except json.JSONDecodeError:
                continue
            self.held[one["claim"], json.dumps(one["where"], sort_keys=True), one["seed"]] = one["measured"]

    def get(self, claim: str, where: str, seed: int) -> Measured | None:
        """Return a measurement, or None."""
        return self.held.get((claim, self._sizes(where), seed))

    def put(self, claim: str, where: str, seed: int, measured: Measured) -> None:
        """Keep a measurement, in the file at once."""
        self.held[claim, self._sizes(where), seed] = measured
        if self.path is not None:
            line = {"claim": claim, "where": asdict(WHERES[where]), "seed": seed, "measured": measured}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    @staticmethod
    def _sizes(where: str) -> str:
        return json.dumps(asdict(WHERES[where]), sort_keys=True)


def measure(args: argparse.Namespace, cache: Cache) -> None:
    """Measure what the cache lacks, seed by seed and source by source: claims share a source's dictionaries."""
    begun = time.perf_counter()
    for seed in range(args.seeds):
        for where in args.where:
            due = [
                name for name in args.claims if where in CLAIMS[name].wheres and cache.get(name, where, seed) is None
            ]
            if not due:
                continue
            bench = Bench(WHERES[where], seed, args.store)
            for name in due:
                cache.put(name, where, seed, CLAIMS[name].measure(bench))
                print(
                    f"[{time.perf_counter() - begun:6.0f} s] {name}, {where}, seed {seed}", file=sys.stderr, flush=True
                )


def findings(args: argparse.Namespace, cache: Cache) -> list[Finding]:
    """Return every contrast over the seeds that are there."""
    found = []
    for name in args.claims:
        for where in (one for one in CLAIMS[name].wheres if one in args.where):
            seeds = [one for seed in range(args.seeds) if (one := cache.get(name, where, seed)) is not None]
            found += [judge(name, where, contrast, seeds) for contrast in CLAIMS[name].contrasts if seeds]
    return found


def number(value: float) -> str:
    """Return a number as the table shows it."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def row(one: Finding) -> str:
    """Return a finding as a line of the table."""
    interval = f"[{number(one.low)}, {number(one.high)}]"
    if one.b is None:
        said = f"{number(one.a)} {interval}"
    else:
        said = f"{number(one.a)} / {number(one.b)}: {one.mean:+.4f} {interval}"
    return f"| {one.label} | {one.where} | {said} | {one.n} | {one.verdict} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", nargs="+", choices=list(CLAIMS), default=list(CLAIMS), metavar="NAME")
    there = [name for name in WHERES if name != "stories" or "MECHSCOPE_DATA" in os.environ]
    parser.add_argument("--where", nargs="+", choices=list(WHERES), default=there, metavar="SOURCE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="JSONL file that measurements are appended to")
    parser.add_argument("--json", type=Path, help="file for findings and measurements")
    parser.add_argument("--store", type=Path, default=Path("runs/sae_claims"), help="folder of the models' rows")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cache = Cache(args.cache)
    measure(args, cache)
    found = findings(args, cache)
    for name in args.claims:
        print(f"\n{name}: {CLAIMS[name].says}\n")
        print("| contrast | where | measured, 95% interval | n | verdict |\n|---|---|---|---|---|")
        print("\n".join(row(one) for one in found if one.claim == name))
    result = {"benchmark": "sae_claims", "seeds": args.seeds, "findings": [asdict(one) for one in found]}
    print(json.dumps(result))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
