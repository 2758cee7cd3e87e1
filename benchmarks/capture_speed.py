"""Capture speed: `ActivationStore` against plain Hugging Face with the same hook and the same early stop.

    python benchmarks/capture_speed.py [--layers 6] [--d-model 256] [--threads 2] [--json]

A random model of GPT-2's shape reads random tokens. Both sides run the same blocks up to the same layer, taking turns
in one process; a pool of the store is captured, judged (NaN, norms), shuffled, and its first batch drawn, which plain
Hugging Face does not do. Times are the best of the rounds: what disturbs a machine only adds to them. A matmul of the
model's MLP shape, timed in the same run, says how fast the machine was. The last line is one JSON object; `ratio` is
tokens/s of the store over tokens/s of plain Hugging Face.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from interp.activations import ActivationStore
from interp.data import Blocks
from interp.models import ModelHandle, load_model
from interp.sites import Site

VOCABULARY = 4096
BATCH = 2048


class _Stop(Exception):
    pass


def build(layers: int, d_model: int, context: int) -> ModelHandle:
    """Return a random model of GPT-2's shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=context,
        n_layer=layers,
        n_embd=d_model,
        n_head=max(1, d_model // 64),
        bos_token_id=0,
        eos_token_id=0,
    )
    return load_model(GPT2LMHeadModel(config))


def random_blocks(count: int, context: int) -> Blocks:
    """Return blocks of random tokens that begin with BOS."""
    tokens = torch.randint(1, VOCABULARY, (count, context), dtype=torch.int32)
    tokens[:, 0] = 0
    return Blocks(tokens, torch.ones_like(tokens, dtype=torch.bool), count, True, 0)


def plain(model: ModelHandle, site: Site, tokens: Tensor, per_forward: int) -> list[Tensor]:
    """Return the activations at `site` as a few lines around Hugging Face would collect them."""
    found: list[Tensor] = []

    def hook(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _Stop

    registered = model.module.transformer.h[site.layer].register_forward_hook(hook)
    try:
        for part in tokens.long().split(per_forward):
            try:
                with torch.inference_mode():
                    model.module(input_ids=part.to(model.device), use_cache=False)
            except _Stop:
                continue
    finally:
        registered.remove()
    return found


def timed(job: Callable[[], object]) -> float:
    """Return the seconds that `job()` takes."""
    begun = perf_counter()
    job()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - begun


def measure(model: ModelHandle, site: Site, args: argparse.Namespace) -> dict[str, float]:
    """Return tokens per second of both sides and the reference matmul's GFLOP/s."""
    from interp.activations.rows import blocks_per_forward

    pools = args.rounds + 1
    blocks = random_blocks(args.blocks * pools + pools, args.context)
    store = ActivationStore(model, blocks, site, batch=BATCH, pool_blocks=args.blocks)
    rows = store.batches_per_pool * BATCH
    count = round(rows / (args.context - 1))  # blocks that give as many rows
    per_forward = blocks_per_forward(model, args.context)
    a, b = torch.randn(BATCH, args.d_model), torch.randn(args.d_model, 4 * args.d_model)
    out = torch.empty(BATCH, 4 * args.d_model)
    times: dict[str, list[float]] = {"store": [], "plain": [], "matmul": []}
    for turn in range(pools):
        part = blocks.tokens[turn * count : (turn + 1) * count]
        sides = {
            "store": lambda turn=turn: store.batch(turn * store.batches_per_pool),
            "plain": lambda part=part: plain(model, site, part, per_forward),
            "matmul": lambda: [torch.mm(a, b, out=out) for _ in range(20)],
        }
        for name in sorted(sides, reverse=turn % 2 == 1):
            seconds = timed(sides[name])
            if turn:  # the first turn warms up
                times[name].append(seconds)
    best = {name: min(values) for name, values in times.items()}
    pairs = [p / s for s, p in zip(times["store"], times["plain"], strict=True)]
    tokens = count * args.context
    return {
        "tokens_per_s": tokens / best["store"],
        "plain_tokens_per_s": tokens / best["plain"],
        "ratio": best["plain"] / best["store"],
        "ratio_median": statistics.median(pairs),
        "matmul_gflops": 20 * 2 * BATCH * args.d_model * 4 * args.d_model / best["matmul"] / 1e9,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=64, help="blocks of a pool")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build(args.layers, args.d_model, args.context)
    site = Site(args.layers // 2, "resid_post")
    result = measure(model, site, args)
    if not args.json:
        print(f"{args.layers} layers of {args.d_model}, {site}, blocks of {args.context}, {args.threads} threads")
        print(f"{'plain Hugging Face':<22}{result['plain_tokens_per_s']:>12,.0f} tokens/s")
        print(f"{'ActivationStore':<22}{result['tokens_per_s']:>12,.0f} tokens/s")
        print(f"{'ratio':<22}{result['ratio']:>12.3f} (median of pairs {result['ratio_median']:.3f})")
        print(f"{'reference matmul':<22}{result['matmul_gflops']:>12,.0f} GFLOP/s")
    settings = {key: getattr(args, key) for key in ("layers", "d_model", "context", "blocks", "rounds", "threads")}
    allocator = os.environ.get("MALLOC_MMAP_MAX_")
    print(json.dumps({"benchmark": "capture_speed", **settings, "malloc_mmap_max": allocator, **result}))


if __name__ == "__main__":
    main()
