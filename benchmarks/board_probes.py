"""Speed of board probes: all squares at all layers on 100,000 positions, against the matrix products they cannot avoid.

    python benchmarks/board_probes.py [--positions 100000] [--epochs 4] [--method adamw] [--json]

The rows are random activations of othello6's shape (7 sites of 96 numbers), the labels boards of random games under
three labels: 108 tasks of three classes. What a step multiplies, for n rows, L layers, width d and K outputs:

    scores      n L d K        gradient of W    n L d K

so an epoch is 2 n L d K multiply-adds, and `limit` is the time of these products alone, of the same shapes and in the
same library. `ratio` is the probe's time over that; what is left is the cross-entropy of n L K numbers, its gradient,
and the standardisation. The data is made before the clock starts. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from app.studies.board.positions import all_labels, make_positions
from probes import BoardProbe

SIDE, LAYERS, WIDTH = 6, 7, 96


def rows_and_labels(n: int) -> tuple[torch.Tensor, object]:
    """Return random rows [n LAYERS WIDTH] and the labels of as many positions of random games."""
    positions, _ = make_positions(n // 29 + 20, SIDE, 0)
    labels = all_labels(positions)[:n]
    return torch.randn(len(labels), LAYERS, WIDTH, generator=torch.Generator().manual_seed(0)), labels


def timed(job: Callable[[], object]) -> tuple[float, float]:
    """Return (seconds by the clock, seconds of the processor)."""
    wall, own = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - own


def products(rows: torch.Tensor, outputs: int, epochs: int, batch: int) -> None:
    """Multiply what a training multiplies, and nothing else."""
    weight = torch.randn(LAYERS, WIDTH, outputs)
    gradient = torch.randn(LAYERS, batch, outputs)
    for _ in range(epochs):
        for piece in rows.split(batch):
            held = piece.transpose(0, 1)
            torch.bmm(held, weight)
            torch.bmm(held.transpose(1, 2), gradient[:, : len(piece)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--positions", type=int, default=100_000, help="rows")
    parser.add_argument("--epochs", type=int, default=4, help="passes of adamw")
    parser.add_argument("--method", default="adamw", help="adamw or ridge")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    rows, labels = rows_and_labels(args.positions)
    probe = BoardProbe(args.method, epochs=args.epochs)
    wall, own = timed(lambda: probe.fit(rows, labels))
    outputs = labels.shape[1] * 3  # type: ignore[attr-defined]
    _, limit = timed(lambda: products(rows, outputs, args.epochs, probe.batch))
    scored, _ = timed(lambda: probe.accuracy(rows[:20_000], labels[:20_000]))  # type: ignore[index]
    found = {
        "positions": len(rows),
        "layers": LAYERS,
        "tasks": labels.shape[1],  # type: ignore[attr-defined]
        "method": args.method,
        "threads": torch.get_num_threads(),
        "seconds": round(wall, 2),
        "cpu_seconds": round(own, 2),
        "limit_cpu_seconds": round(limit, 2),
        "ratio": round(own / limit, 2),
        "accuracy_of_20000_seconds": round(scored, 2),
    }
    if not args.json:
        for name, value in found.items():
            print(f"{name:28} {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
