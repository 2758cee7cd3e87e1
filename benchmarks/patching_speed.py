"""Speed of causal-cone patching against whole forwards, both batched over cells, on one whole (layer x position) map.

    python benchmarks/patching_speed.py [--models tiny gpt2-small] [--tokens 12] [--prompts 1] [--json]

The map is resid_pre + attn_out + mlp_out at every layer and position. `gpt2-small` is a random model of that shape; no
weights are needed. The prompts are random tokens that differ everywhere, so no cell is left out for being equal.

Counted work, in block-positions (one block on one token; attention's share in the length of the text left out):

    whole forwards   cells L S,  cells = 3 L S
    cone             sum over layers l and positions s of
                     T(l, s)                  resid_pre, with T = (L - l - 1)(S - s) + 1 + (S - s - 1) / 4
                     1 + T(l + 1, s)          attn_out, mlp_out, with T(L, s) = 0

T counts the last block whole at the last position, and at the others a quarter: q, k and v, which are 6 of the 24
d_model^2 operations of a GPT-2 block on a token (2 for each weight).

`flops_ratio` is their ratio, `ratio` that of the times (medians of CPU seconds). Both ways unembed the last position
only; `ratio_plain` compares with forwards that unembed all positions, as a plain call of the model does. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from interp.attribution.patching.maps import DEFAULT_SITES, patch_map
from interp.models import ModelHandle, load_model
from interp.tasks import Pairs


def model_of(name: str, layers: int) -> ModelHandle:
    """Return an embedded model, or a random one of GPT-2 small's width with so many layers."""
    if name != "gpt2-small":
        return load_model(name, device="cpu")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return load_model(GPT2LMHeadModel(GPT2Config(n_layer=layers)))


def random_pairs(handle: ModelHandle, prompts: int, tokens: int) -> Pairs:
    """Return pairs of random prompts that differ at every position."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(handle.d_vocab, (prompts, tokens), generator=generator)
    shift = torch.randint(1, handle.d_vocab, (prompts, tokens), generator=generator)
    answers = torch.randint(handle.d_vocab, (2, prompts, 1), generator=generator)
    return Pairs("random", clean, (clean + shift) % handle.d_vocab, answers[0], answers[1])


def counted(layers: int, positions: int) -> float:
    """Return block-positions of whole forwards per block-position of the cone."""

    def above(layer: int, place: int) -> float:
        after = positions - place
        return (layers - layer - 1) * after + 1 + (after - 1) / 4 if layer < layers else 0.0

    cells = [(layer, place) for layer in range(layers) for place in range(positions)]
    cone = sum(above(layer, place) + 2 * (1 + above(layer + 1, place)) for layer, place in cells)
    return 3 * len(cells) * layers * positions / cone


def seconds(job: Callable[[], object], repeats: int) -> float:
    """Return the median CPU time of `job`."""
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        job()
        found.append(time.process_time() - begun)
    return statistics.median(found)


def measure(handle: ModelHandle, args: argparse.Namespace) -> dict[str, float | int]:
    """Return times and ratios of one model, and the largest difference between the two maps."""
    pairs = random_pairs(handle, args.prompts, args.tokens)

    maps: dict[str, torch.Tensor] = {}

    def mapped(path: str) -> None:
        found = patch_map(handle, pairs, DEFAULT_SITES, exact_path=path, batch=args.batch)
        if found.about["exact_path"] != path:
            raise RuntimeError(f"{path} was asked for, {found.about['exact_path']} was run: {found.about['why_full']}")
        maps[path] = torch.tensor(found.nodes["score"].to_pylist(), dtype=torch.float64)

    patch_map(handle, pairs, "mlp_out", positions=[-1])  # warms up
    cone = seconds(lambda: mapped("cone"), args.repeats)
    full = seconds(lambda: mapped("full"), args.repeats)
    rows = 3 * handle.n_layers * args.tokens * args.prompts
    tokens = pairs.clean.repeat(-(-args.batch // args.prompts), 1)[: args.batch]
    plain = seconds(lambda: handle.logits(tokens).shape, args.repeats) * rows / args.batch
    return {
        "layers": handle.n_layers,
        "rows": rows,
        "cone_seconds": round(cone, 3),
        "full_seconds": round(full, 3),
        "ratio": round(full / cone, 2),
        "ratio_plain": round(plain / cone, 2),
        "flops_ratio": round(counted(handle.n_layers, args.tokens), 2),
        "largest_difference": float((maps["cone"] - maps["full"]).abs().max()),
    }


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "gpt2-small"])
    parser.add_argument("--layers", type=int, default=12, help="layers of the random gpt2-small")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {name: measure(model_of(name, args.layers), args) for name in args.models}
    if not args.json:
        for name, one in found.items():
            print(f"{name:12} {one['rows']} rows: {one['ratio']} times faster (counted {one['flops_ratio']})")
    settings = {key: value for key, value in vars(args).items() if key != "json"}
    print(json.dumps({"benchmark": "patching_speed", "models": found, "settings": settings}))


if __name__ == "__main__":
    main()
