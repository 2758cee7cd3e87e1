"""Memory of a training: the process's peak while a dictionary of 65,536 latents takes a few steps.

    python benchmarks/memory.py [--d-sae 65536] [--d-in 512] [--batch 2048] [--steps 3] [--json]

Weights, gradients and Adam's two moments are 4 times 2 · d_sae · d_in floats; the pre-activations of a batch are
batch · d_sae. One latent in eight is held dead in the last step, so that AuxK is part of the peak. The peak is what
the kernel says (`ru_maxrss`), torch itself included. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from app.command import restart_with_allocator
from sae.config import SaeConfig, TrainConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.training import Training


def peak() -> float:
    """Return the process's peak so far in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    """Train a few steps and print the peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=65_536)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rule", default="topk")
    parser.add_argument("--atoms", default=SaeConfig(1, 1).atoms, choices=["unit", "free"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    restart_with_allocator(insist=True)
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(20_240)
    data = torch.randn(args.steps, args.batch, args.d_in, generator=generator)
    empty = peak()
    rule_args = {} if args.rule == "relu" else {"k": args.k}
    sae = Sae(SaeConfig(args.d_in, args.d_sae, args.rule, rule_args, atoms=args.atoms))
    initialise(sae, data.flatten(0, 1)[:8192])
    started = peak()
    config = TrainConfig(tokens=10_000 * args.batch, batch=args.batch, dead_after=10**12)
    training = Training(sae.train(), config)
    for step, x in enumerate(data):
        if step == args.steps - 1:
            training.silent[::8] = 10**12
        fvu = float(training.advance(x)["fvu"])
    result = {
        "benchmark": "memory",
        "peak_gib": round(peak(), 2),
        "before_gib": round(empty, 2),
        "initialised_gib": round(started, 2),
        "weights_gib": round(2 * args.d_sae * args.d_in * 4 / 2**30, 2),
        "fvu": round(fvu, 3),
        "settings": {key: value for key, value in vars(args).items() if key != "json"},
    }
    if not args.json:
        print(f"d_in {args.d_in}, d_sae {args.d_sae:,}, batch {args.batch}: peak {result['peak_gib']} GiB")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
