"""Training speed of a TopK dictionary: our step, two plain autograd trainers, and the encoder's one product.

    python benchmarks/train_speed.py [--rounds 15] [--steps 4] [--threads 2] [--json] [--peer-python PATH ...]
    python benchmarks/train_speed.py --device cuda [--kernels sparse triton dense compiled]
    python benchmarks/train_speed.py --sides unit --rules [topk switch ...] [--cpu]

d_in 512, d_sae 4096, k 32, batch 2048, float32; Adam (fused), clipping and projection on, AuxK off. The limit is the
one product that no TopK trainer can do without, x W_enc^T into an output allocated beforehand. All sides run in one
process in turns of a few steps; each ratio is the median of the ratios within a round, so that what else the machine
does falls on both sides (`at_best` has the ratios of each side's fastest turn instead: on a machine that is never
quiet, all that means something). The baselines do the same optimisation:

    dense   pre-activations, top k, scatter into a dense code, decode by a product; gradients by autograd
    bag     the same with `embedding_bag` as decoder

With `--kernels` our step is timed under each of these kernels as well (`sae.backends`; on a GPU all of them unless
given), beside the one that chooses for itself, and the choice is reported. A turn ends when the device has finished.

With `--rules` there is one row for each of these rules too (all of them unless named), with the L0 that was measured
(`train_speed_rules.py`). `--cpu` counts processor time in place of the clock's, on one thread: on a busy machine that
is the steadier of the two.

The process starts again under the allocator setting of the `mechscope` command, from which every side gains. With
`--peer-python` another environment's Python times the trainers that are installed there (sae_lens,
dictionary_learning, sparsify, overcomplete) on the same data. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag
from train_speed_rules import TOP_K, WANTED, Side

from app.command import ALLOCATOR, restart_with_allocator
from sae.backends import NAMES, Choices, using
from sae.config import SaeConfig, TrainConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.rules import RULES
from sae.training import Training

D_IN, D_SAE, K, BATCH, LR = 512, 4096, 32, 2048, 1e-3
HELD = 16
"""Batches held in memory and used in turn."""
DEFAULT = SaeConfig(1, 1).atoms
"""The default parametrisation."""


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


def ours(data: Tensor, atoms: str, choices: Choices) -> Callable[[int], object]:
    """Return our step as a function of its number, with atoms of this kind and these kernels."""
    sae = Sae(SaeConfig(D_IN, D_SAE, "topk", {"k": K}, "none", atoms=atoms))  # type: ignore[arg-type]
    initialise(sae, data[:8192].cpu(), seed=0)
    trainer = Training(sae.to(data.device).train(), TrainConfig(tokens=10**9, batch=BATCH, lr=LR, warmup=0, aux=0.0))
    batches = data.split(BATCH)

    def step(number: int) -> None:
        with using(choices):
            trainer.advance(batches[number % len(batches)])

    return step


def sides(data: Tensor, names: list[str], kernels: list[str]) -> tuple[dict[str, Callable[[int], object]], Choices]:
    """Return a step of each side as a function of its number, and the choices of the sides that choose."""
    batches = data.split(BATCH)
    start = Sae(SaeConfig(D_IN, D_SAE, "topk", {"k": K}, "none"))
    initialise(start, data[:8192].cpu(), seed=0)
    start.to(data.device)
    found: dict[str, Callable[[int], object]] = {}
    weight, out = start.W_enc.detach().clone(), data.new_empty(BATCH, D_SAE)
    found["limit"] = lambda step: torch.mm(batches[step % len(batches)], weight.t(), out=out)
    free = Choices("auto")
    for name in names:
        if name in ("unit", "free"):
            found[name] = ours(data, name, free)
        else:
            trainer = Plain(start, bag=name == "bag")
            found[name] = lambda step, trainer=trainer: trainer.advance(batches[step % len(batches)])
    for name in kernels:
        found[f"{DEFAULT}[{name}]"] = ours(data, DEFAULT, Choices(name))
    return found, free


def measure(args: argparse.Namespace) -> tuple[dict[str, list[float]], Choices, dict[str, float]]:
    """Return for each side the seconds of a step in each round, sides in turns, the first round left out.

    Beside them: the choices of kernels, and the L0 of each rule.
    """
    data = rows(HELD * BATCH).to(args.device)
    jobs, choices = sides(data, args.sides, args.kernels)
    rules = {rule: Side(rule, data, D_SAE, K, BATCH, LR) for rule in args.rules or ()}
    jobs |= {f"rule {rule}": lambda _, side=side: side.step() for rule, side in rules.items()}
    clock = process_time if args.cpu else perf_counter
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(args.rounds + 1):
        for name in sorted(jobs, reverse=turn % 2 == 1):
            begun = clock()
            for step in range(args.steps):
                jobs[name](turn * args.steps + step)
            if args.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append((clock() - begun) / args.steps)
    return times, choices, {rule: round(side.l0, 1) for rule, side in rules.items()}


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    """Return the median over the rounds of one side's seconds over another's."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def peers(args: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Return by trainer what `train_speed_peers.py` measured under the other Pythons, on the same rows.

    `rows_per_s` is the median over the turns, `vs_ours` the median of how many times as long a step of theirs took as
    one of ours, timed before and after theirs in the same turn. What does not run says why.
    """
    import numpy as np

    data = rows(HELD * BATCH)
    step = ours(data, DEFAULT, Choices("auto"))

    def mine() -> float:
        times = []
        for number in range(8):
            begun = perf_counter()
            step(number)
            times.append(perf_counter() - begun)
        return statistics.median(times[2:])

    found: dict[str, list[tuple[float | str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, data.numpy())
        for _ in range(args.peer_turns):
            for python in args.peer_python:
                before = mine()
                speeds = _peers(python, path, args)
                middle = (before + mine()) / 2
                for name, speed in speeds.items():
                    found.setdefault(name, []).append((speed, middle))
    result: dict[str, dict[str, object]] = {}
    for name, turns in found.items():
        done = [(speed, middle) for speed, middle in turns if not isinstance(speed, str)]
        result[name] = {
            "rows_per_s": round(statistics.median(speed for speed, _ in done)) if done else turns[0][0],
            "vs_ours": round(statistics.median(BATCH / speed / middle for speed, middle in done), 2) if done else None,
        }
    return result


def _peers(python: str, path: Path, args: argparse.Namespace) -> dict[str, float | str]:
    """Return rows per second, or what went wrong, of each trainer that this Python has."""
    script = Path(__file__).with_name("train_speed_peers.py")
    command = [python, str(script), str(path), str(K), str(D_SAE), str(BATCH), str(LR), str(args.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=None, help="steps in a turn (4 on a CPU, 50 on a GPU)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--kernels", nargs="*", default=None, choices=NAMES, help="time each of these kernels too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--sides", nargs="+", default=["unit", "free", "dense", "bag"], choices=["unit", "free", "dense", "bag"]
    )
    parser.add_argument(
        "--rules", nargs="*", default=None, choices=list(RULES), help="a row for each of these rules (all unless named)"
    )
    parser.add_argument("--cpu", action="store_true", help="processor time of one thread in place of the clock's")
    parser.add_argument("--peer-python", nargs="*", default=[], help="Pythons of environments with other trainers")
    parser.add_argument("--peer-turns", type=int, default=3, help="how often each of them is timed, in turn with ours")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu is the default")
    if args.steps is None:
        args.steps = 50 if args.device.type == "cuda" else 4
    if args.kernels is None:
        args.kernels = list(NAMES) if args.device.type == "cuda" else []
    if args.rules == []:
        args.rules = list(RULES)
    restart_with_allocator(insist=True)
    args.threads = 1 if args.cpu else args.threads
    torch.set_num_threads(args.threads)
    if DEFAULT not in args.sides:
        args.sides = [DEFAULT, *args.sides]
    times, choices, l0 = measure(args)
    result: dict[str, object] = {
        "benchmark": "train_speed",
        "rows_per_s": round(BATCH / statistics.median(times[DEFAULT])),
        "fraction_of_limit": round(ratio(times, "limit", DEFAULT), 3),
        "vs_dense": round(ratio(times, "dense", DEFAULT), 2) if "dense" in times else None,
        "vs_bag": round(ratio(times, "bag", DEFAULT), 2) if "bag" in times else None,
        "at_best": {name: round(min(times[name]) / min(times[DEFAULT]), 3) for name in times if name != DEFAULT},
        "ms": {name: round(1e3 * statistics.median(values), 3) for name, values in times.items()},
        "best_ms": {name: round(1e3 * min(values), 3) for name, values in times.items()},
        "fractions": {name: round(ratio(times, "limit", name), 3) for name in times},
        "settings": {"d_in": D_IN, "d_sae": D_SAE, "k": K, "batch": BATCH, "threads": args.threads, "atoms": DEFAULT},
        "rules_l0": l0,
        "clock": "processor time" if args.cpu else "wall",
        "device": torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type,
        "kernels": choices.names,
        "load": [round(load, 1) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "allocator": ALLOCATOR if sys.platform == "linux" else None,
        "torch": torch.__version__,
    }
    if args.peer_python:
        result["peers"] = peers(args)
    if not args.json:
        show(result, times)
    print(json.dumps(result))


def show(result: dict[str, object], times: dict[str, list[float]]) -> None:
    """Print a table."""
    print(f"d_in {D_IN}, d_sae {D_SAE}, k {K}, batch {BATCH}, {torch.get_num_threads()} threads, allocator {ALLOCATOR}")
    print(f"device {result['device']}, kernels taken {result['kernels']}, load of the machine {result['load']}")
    print(f"{'':<24}{'ms/step':>9}{'best':>9}{'rows/s':>10}{'of limit':>10}")
    labels = {
        "limit": "one product",
        "unit": "ours",
        "free": "ours, free atoms",
        "dense": "dense autograd",
        "bag": "bag autograd",
    }
    l0 = dict(result["rules_l0"])  # type: ignore[call-overload]
    for name, values in times.items():
        middle, share, rule = statistics.median(values), ratio(times, "limit", name), name.removeprefix("rule ")
        more = f"  L0 {l0[rule]}" if name.startswith("rule ") else ""
        if more and rule in TOP_K and share < WANTED:
            more += f", below {WANTED}"
        print(
            f"{labels.get(name, name):<24}{1e3 * middle:>9.2f}{1e3 * min(values):>9.2f}{BATCH / middle:>10,.0f}"
            f"{share:>10.3f}{more}"
        )
    for name, found in dict(result.get("peers", {})).items():  # type: ignore[call-overload]
        times_ours = f"{found['vs_ours']:>9.2f} times our step" if found["vs_ours"] else ""
        print(f"{name:<42}{found['rows_per_s']:>10}{times_ours}")


if __name__ == "__main__":
    main()
