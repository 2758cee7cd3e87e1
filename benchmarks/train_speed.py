"""Training speed of a TopK dictionary on a CPU: our step, two plain autograd trainers, and the encoder's one product.

    python benchmarks/train_speed.py [--rounds 15] [--steps 4] [--threads 2] [--json] [--peer-python PATH ...]

d_in 512, d_sae 4096, k 32, batch 2048, float32; Adam (fused), clipping and projection on, AuxK off. The limit is the
one product that no TopK trainer can do without, x W_enc^T into an output allocated beforehand. All sides run in one
process in turns of a few steps; each ratio is the median of the ratios within a round, so that what else the machine
does falls on both sides (`at_best` has the ratios of each side's fastest turn instead: on a machine that is never
quiet, all that means something). The baselines do the same optimisation:

    dense   pre-activations, top k, scatter into a dense code, decode by a product; gradients by autograd
    bag     the same with `embedding_bag` as decoder

The process starts again under the allocator setting of the `mechscope` command, from which every side gains. With
`--peer-python` another environment's Python times the trainers that are installed there (sae_lens,
dictionary_learning, sparsify, overcomplete) on the same data. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from app.command import ALLOCATOR, restart_with_allocator
from sae.config import SaeConfig, TrainConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.training import Training

D_IN, D_SAE, K, BATCH, LR = 512, 4096, 32, 2048, 1e-3
HELD = 16
"""Batches held in memory and used in turn."""


def rows(count: int) -> Tensor:
    """Return rows of a planted dictionary: 2,048 unit atoms, about 20 in a row, of exponential size."""
    generator = torch.Generator().manual_seed(20_240)  # never the seed of an initialisation
    atoms = torch.nn.functional.normalize(torch.randn(2048, D_IN, generator=generator), dim=1)
    on = torch.rand(count, 2048, generator=generator) < 20 / 2048
    return (on * torch.empty(count, 2048).exponential_(generator=generator)) @ atoms


class Plain(nn.Module):
    """A TopK trainer as one writes it first."""

    def __init__(self, start: Sae, bag: bool) -> None:
        """Start where `start` is; decode by bags or by a product."""
        super().__init__()
        self.bag = bag
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (
            nn.Parameter(value.detach().clone()) for value in (start.W_enc, start.b_enc, start.W_dec, start.b_dec)
        )
        self.optimizer = torch.optim.Adam(self.parameters(), lr=LR, fused=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction."""
        pre = (x - self.b_dec) @ self.W_enc.t() + self.b_enc
        values, indices = pre.topk(K, dim=-1, sorted=False)
        values = values.relu()
        if self.bag:
            return embedding_bag(indices, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec
        return torch.zeros_like(pre).scatter(1, indices, values) @ self.W_dec + self.b_dec

    def advance(self, x: Tensor) -> None:
        """Take a step: project, clip, Adam, renormalise."""
        loss = (x - self(x)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            gradient = self.W_dec.grad
            assert gradient is not None
            gradient -= (gradient * self.W_dec).sum(1, keepdim=True) * self.W_dec
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            self.optimizer.step()
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)


def sides(data: Tensor, names: list[str]) -> dict[str, Callable[[int], object]]:
    """Return a step of each side as a function of its number."""
    batches = data.split(BATCH)
    start = Sae(SaeConfig(D_IN, D_SAE, "topk", {"k": K}, "none"))
    initialise(start, data[:8192], seed=0)
    found: dict[str, Callable[[int], object]] = {}
    weight, out = start.W_enc.detach().clone(), torch.empty(BATCH, D_SAE)
    found["limit"] = lambda step: torch.mm(batches[step % len(batches)], weight.t(), out=out)
    for name in names:
        if name in ("unit", "free"):
            sae = Sae(SaeConfig(D_IN, D_SAE, "topk", {"k": K}, "none", atoms=name))  # type: ignore[arg-type]
            initialise(sae, data[:8192], seed=0)
            trainer = Training(sae.train(), TrainConfig(tokens=10**9, batch=BATCH, lr=LR, warmup=0, aux=0.0))
        else:
            trainer = Plain(start, bag=name == "bag")
        found[name] = lambda step, trainer=trainer: trainer.advance(batches[step % len(batches)])
    return found


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Return for each side the seconds of a step in each round, sides in turns, the first round left out."""
    jobs = sides(rows(HELD * BATCH), args.sides)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(args.rounds + 1):
        for name in sorted(jobs, reverse=turn % 2 == 1):
            begun = perf_counter()
            for step in range(args.steps):
                jobs[name](turn * args.steps + step)
            if turn:
                times[name].append((perf_counter() - begun) / args.steps)
    return times


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    """Return the median over the rounds of one side's seconds over another's."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def peers(python: str, args: argparse.Namespace) -> dict[str, object]:
    """Return what `train_speed_peers.py` measured under another Python, on the same rows."""
    import numpy as np

    script = Path(__file__).with_name("train_speed_peers.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, rows(HELD * BATCH).numpy())
        command = [python, str(script), str(path), str(K), str(D_SAE), str(BATCH), str(LR), str(args.threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="steps in a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--sides", nargs="+", default=["unit", "free", "dense", "bag"], choices=["unit", "free", "dense", "bag"]
    )
    parser.add_argument("--peer-python", nargs="*", default=[], help="Pythons of environments with other trainers")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    restart_with_allocator(insist=True)
    torch.set_num_threads(args.threads)
    times = measure(args)
    ours = SaeConfig(1, 1).atoms  # the default parametrisation
    result: dict[str, object] = {
        "benchmark": "train_speed",
        "rows_per_s": round(BATCH / statistics.median(times[ours])),
        "fraction_of_limit": round(ratio(times, "limit", ours), 3),
        "vs_dense": round(ratio(times, "dense", ours), 2) if "dense" in times else None,
        "vs_bag": round(ratio(times, "bag", ours), 2) if "bag" in times else None,
        "at_best": {name: round(min(times[name]) / min(times[ours]), 3) for name in times if name != ours},
        "ms": {name: round(1e3 * statistics.median(values), 1) for name, values in times.items()},
        "best_ms": {name: round(1e3 * min(values), 1) for name, values in times.items()},
        "fractions": {name: round(ratio(times, "limit", name), 3) for name in times},
        "settings": {"d_in": D_IN, "d_sae": D_SAE, "k": K, "batch": BATCH, "threads": args.threads, "atoms": ours},
        "allocator": ALLOCATOR if sys.platform == "linux" else None,
        "torch": torch.__version__,
    }
    found = {python: peers(python, args) for python in args.peer_python}
    if found:
        result["peers_rows_per_s"] = {name: speed for each in found.values() for name, speed in each.items()}
    if not args.json:
        show(result, times)
    print(json.dumps(result))


def show(result: dict[str, object], times: dict[str, list[float]]) -> None:
    """Print a table."""
    print(f"d_in {D_IN}, d_sae {D_SAE}, k {K}, batch {BATCH}, {torch.get_num_threads()} threads, allocator {ALLOCATOR}")
    print(f"{'':<24}{'ms/step':>9}{'best':>9}{'rows/s':>10}{'of limit':>10}")
    labels = {
        "limit": "one product",
        "unit": "ours",
        "free": "ours, free atoms",
        "dense": "dense autograd",
        "bag": "bag autograd",
    }
    for name, values in times.items():
        middle = statistics.median(values)
        print(
            f"{labels[name]:<24}{1e3 * middle:>9.1f}{1e3 * min(values):>9.1f}{BATCH / middle:>10,.0f}"
            f"{ratio(times, 'limit', name):>10.3f}"
        )
    for name, speed in dict(result.get("peers_rows_per_s", {})).items():  # type: ignore[call-overload]
        print(f"{name:<42}{speed if isinstance(speed, str) else f'{speed:,.0f}':>10}")


if __name__ == "__main__":
    main()
