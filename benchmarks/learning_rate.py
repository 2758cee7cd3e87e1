"""Which learning rate trains best in short runs: final FVU on held-out activations over a grid of rates and lengths.

    python benchmarks/learning_rate.py [--d-sae 1024] [--tokens 250_000 1_000_000] [--seeds 0 1]

The law 2e-4 / sqrt(d_sae / 2^14) was fitted on long runs; the columns are multiples of it. Prints a table and one JSON
line; `sae.config.default_lr` is the choice that was made from it.
"""

from __future__ import annotations

import argparse
import json
import math

import torch

from interp.activations import ActivationStore
from interp.data import DataSpec, token_blocks
from interp.metrics import Reconstruction
from interp.models import load_model
from sae.config import SaeConfig, TrainConfig, default_lr
from sae.model import Sae
from sae.training import begin, train

FACTORS = (1, 2, 5, 10, 20)


def fvu(sae: Sae, x: torch.Tensor) -> float:
    """Return the pooled FVU of `sae` on the rows `x`."""
    sums = Reconstruction()
    with torch.no_grad():
        sums.add(x, sae(x)[0], x.mean(0))
    return sums.fvu


def main() -> None:
    """Train the grid and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--text", default="demo")
    parser.add_argument("--site", default="resid_post.2")
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--tokens", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    model = load_model(args.model)
    blocks, heldout = token_blocks(model, DataSpec(args.text)).split(0.1)
    test = ActivationStore(model, heldout, args.site, batch=1024).sample(8192)
    law = default_lr(args.d_sae, steps=10**9)
    found: dict[str, list[float]] = {}
    print(f"FVU on held-out rows, d_sae {args.d_sae}: rows are training lengths, columns multiples of the law")
    print("tokens".rjust(12), *(f"{factor:>8}x" for factor in FACTORS))
    for tokens in args.tokens:
        row = []
        for factor in FACTORS:
            scores = []
            for seed in args.seeds:
                store = ActivationStore(model, blocks, args.site, seed=seed)
                config = TrainConfig(tokens=tokens, lr=factor * law, seed=seed)
                scores.append(fvu(train(begin(Sae(SaeConfig(store.d_in, args.d_sae)), store, config), store), test))
            row.append(sum(scores) / len(scores))
        found[str(tokens)] = row
        print(f"{tokens:>12,}", *(f"{score:>9.4f}" for score in row), flush=True)
    best = {tokens: FACTORS[min(range(len(row)), key=row.__getitem__)] for tokens, row in found.items()}
    chosen = {
        str(tokens): default_lr(args.d_sae, tokens // 2048) / default_lr(args.d_sae, 10**9) for tokens in args.tokens
    }
    assert all(math.isfinite(score) for row in found.values() for score in row)
    print(json.dumps({"factors": FACTORS, "fvu": found, "best_factor": best, "default_factor": chosen}))


if __name__ == "__main__":
    main()
