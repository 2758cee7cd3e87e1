"""Speed of a profile: every family on one model, with the share of each and the peak of memory.

    python benchmarks/profile_speed.py [--model tiny] [--prompts 64] [--context 256] [--threads 2] [--json]
    python benchmarks/profile_speed.py --model gpt2-shaped --prompts 8

`gpt2-shaped` is a random model of GPT-2 small's shape (12 layers, width 768, 50,257 tokens, no tokenizer) on random
tokens. `seconds` is time on the clock, `cpu_seconds` that of the process on all cores: on a machine that has other work
to do the second is the one that can be compared. The peak of memory is what the kernel says (`ru_maxrss`), torch itself
included. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from app.command import restart_with_allocator
from interp.data import Blocks, DataSpec, token_blocks
from interp.layers.families import build_families
from interp.layers.family import Batch, Family, FamilyResult
from interp.layers.profile import profile
from interp.models import ModelHandle, load_model
from interp.sites import Site

SHAPED = "gpt2-shaped"


class Timed:
    """A family that notes the CPU seconds it takes, in the pass and at its end."""

    def __init__(self, family: Family) -> None:
        self.family, self.name, self.measures = family, family.name, family.measures
        self.reading = self.finishing = 0.0

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:
        """Return the family's sites."""
        return self.family.sites(handle)

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:
        """Begin the family."""
        begun = time.process_time()
        self.family.begin(handle, blocks)
        self.reading += time.process_time() - begun

    def update(self, batch: Batch) -> None:
        """Give the family a batch."""
        begun = time.process_time()
        self.family.update(batch)
        self.reading += time.process_time() - begun

    def finish(self) -> FamilyResult:
        """Return what the family found."""
        begun = time.process_time()
        try:
            return self.family.finish()
        finally:
            self.finishing += time.process_time() - begun


def measured(job: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return (the result, seconds on the clock, CPU seconds) of `job`."""
    clock, cpu = time.monotonic(), time.process_time()
    found = job()
    return found, time.monotonic() - clock, time.process_time() - cpu


def subject(name: str, prompts: int, context: int) -> tuple[ModelHandle, Blocks]:
    """Return the model and what it reads."""
    if name != SHAPED:
        handle = load_model(name)
        return handle, token_blocks(handle, DataSpec(context=context, tokens=prompts * context, heldout=0.0))
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    handle = load_model(GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)))
    tokens = torch.randint(handle.d_vocab, (prompts, context), dtype=torch.int32)
    return handle, Blocks(tokens, torch.ones_like(tokens, dtype=torch.bool), 1, True, handle.bos_id)


def main() -> None:
    """Profile, and print how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--families", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    restart_with_allocator(insist=True)
    torch.set_num_threads(args.threads)
    handle, blocks = subject(args.model, args.prompts, args.context)
    families = [Timed(one) for one in build_families(args.families)]
    found, seconds, cpu = measured(lambda: profile(handle, families, blocks=blocks, lenient=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows = {one.name: [round(one.reading, 2), round(one.finishing, 2)] for one in families}
    own = sum(map(sum, rows.values()))
    if not args.json:
        print(f"{'family':12} {'in the pass':>12} {'at the end':>12} {'share':>7}   CPU seconds")
        for name, (reading, finishing) in sorted(rows.items(), key=lambda row: -sum(row[1])):
            print(f"{name:12} {reading:12.1f} {finishing:12.1f} {(reading + finishing) / cpu:7.0%}")
        print(f"{'the model':12} {cpu - own:12.1f} {'':12} {(cpu - own) / cpu:7.0%}")
    result = {
        "model": args.model, "tokens": blocks.n_tokens, "threads": args.threads, "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1), "peak_gib": round(peak, 2), "families": rows, "refused": found.refused,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
