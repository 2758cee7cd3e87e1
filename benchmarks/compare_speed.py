"""Speed of a comparison: all panels, with a dictionary, against two plain forward passes of the same tokens.

    python benchmarks/compare_speed.py [--model tiny] [--recipe int4] [--tokens 100000] [--threads 2] [--json]

The dictionary is fitted to the data in one step (`sae.initialise`), which costs as much to read through as a trained
one. `seconds` is time on the clock, `cpu_seconds` that of the process on all cores: on a machine that has other work to
do the second is the one that can be compared. Each panel's share is in `panels`. The peak of memory is what the kernel
says (`ru_maxrss`), torch itself included. The last line is one JSON object.
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
from interp.compression import read_recipe
from interp.compression.compare import compare
from interp.compression.panel import Pair, Panel, PanelResult
from interp.compression.panels import NEED_DICTIONARY, ON_REQUEST, PANELS, DictionaryFit, Survival
from interp.data import DataSpec, token_blocks
from interp.hooks import capture
from interp.models import ModelHandle, ModelSpec, load_model
from interp.sites import Site
from sae.config import SaeConfig
from sae.initialise import initialise
from sae.model import Sae


class Timed:
    """A panel that notes the CPU seconds it takes."""

    def __init__(self, panel: Panel) -> None:
        self.panel, self.name, self.seconds = panel, panel.name, 0.0

    def sites(self, a: ModelHandle) -> tuple[Site, ...]:
        """Return the panel's sites."""
        return self.panel.sites(a)

    def begin(self, a: ModelHandle, b: ModelHandle, blocks: Any) -> None:
        """Begin the panel."""
        self._timed(lambda: self.panel.begin(a, b, blocks))

    def update(self, pair: Pair) -> None:
        """Give the panel a batch."""
        self._timed(lambda: self.panel.update(pair))

    def finish(self) -> PanelResult:
        """Return what the panel found."""
        return self._timed(self.panel.finish)

    def _timed(self, job: Callable[[], Any]) -> Any:
        begun = time.process_time()
        try:
            return job()
        finally:
            self.seconds += time.process_time() - begun


def measured(job: Callable[[], Any]) -> tuple[float, float]:
    """Return (seconds on the clock, CPU seconds) of `job`."""
    clock, cpu = time.monotonic(), time.process_time()
    job()
    return time.monotonic() - clock, time.process_time() - cpu


def main() -> None:
    """Compare, and print how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--recipe", default="int4")
    parser.add_argument("--text", default="demo")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--d-sae", type=int, default=3072)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    restart_with_allocator(insist=True)
    torch.set_num_threads(args.threads)
    a = load_model(args.model, device="cpu")
    b = load_model(ModelSpec(args.model, recipe=read_recipe(args.recipe)), device="cpu")
    blocks = token_blocks(a, DataSpec(args.text, context=args.context, tokens=args.tokens))
    site = Site(round(a.n_layers * 2 / 3) - 1, "resid_post")
    sae = Sae(SaeConfig(a.width(site), args.d_sae, "topk", {"k": 32})).eval()
    with capture(a, site) as acts:
        a.logits(blocks.tokens[:64])
    initialise(sae, acts[site][:, 1:].flatten(0, 1).clone())
    given = {"survival": Survival(site, sae), "dictionary": DictionaryFit(site, sae)}
    names = [name for name in PANELS if name not in ON_REQUEST]
    panels = [Timed(given[name] if name in NEED_DICTIONARY else PANELS[name]()) for name in names]
    batches = blocks.tokens.split(16)
    plain = measured(lambda: [model.logits(batch).shape for batch in batches for model in (a, b)])  # keeps no logits
    whole = measured(lambda: compare(a, b, panels, blocks=blocks))
    unit = 1 if sys.platform == "darwin" else 1024
    result = {
        "benchmark": "compare_speed",
        "seconds": round(whole[0], 1),
        "cpu_seconds": round(whole[1], 1),
        "forward_cpu_seconds": round(plain[1], 1),
        "ratio": round(whole[1] / plain[1], 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2),
        "panels": {panel.name: round(panel.seconds, 1) for panel in panels},
        "settings": {key: value for key, value in vars(args).items() if key != "json"},
    }
    if not args.json:
        for panel in panels:
            print(f"{panel.name:10} {panel.seconds:6.1f} CPU seconds")
        print(f"{blocks.tokens.numel():,} tokens in {whole[0]:.0f} s; {result['ratio']} times two forward passes")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
