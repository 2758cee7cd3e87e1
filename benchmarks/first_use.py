"""What a newcomer waits for: `mechscope --help`, the first line of progress, the demo job, and its memory.

    python benchmarks/first_use.py [--runs 3] [--json]

Whole processes, started as a shell would; the demo job runs once, in an empty folder. A 2048 x 512 x 4096 float32
product into a preallocated output, timed in the same run, says how fast the machine was. The last line is one JSON
object: seconds, `first_progress_s`, `demo_s`, `demo_peak_gib`, `demo_over_matmul` (the job's time in such products).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"help_s": 1.0, "first_progress_s": 5.0, "demo_s": 240.0, "demo_peak_gib": 3.0}
"""What the project promises on 2 quiet cores."""


def environment() -> dict[str, str]:
    """Return this process's environment with the checkout in front of the path."""
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def help_seconds(runs: int) -> float:
    """Return the median time of `mechscope --help`."""
    times = []
    for _ in range(runs):
        begun = perf_counter()
        subprocess.run(
            [sys.executable, "-m", "app", "--help"], env=environment(), check=True, stdout=subprocess.DEVNULL
        )
        times.append(perf_counter() - begun)
    return statistics.median(times)


def demo(folder: str) -> tuple[float, float, dict[str, float]]:
    """Return (seconds to the first progress, seconds in all, the demo's own result)."""
    command = [sys.executable, "-m", "app", "demo", "--no-explore", "--json"]
    begun, first = perf_counter(), 0.0
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            if not first and line.startswith("tokenise:"):
                first = perf_counter() - begun
            sys.stderr.write(line)
        out = process.stdout.read()
    if process.returncode != 0:
        sys.exit(f"the demo ended with {process.returncode}")
    return first, perf_counter() - begun, json.loads(out.strip().splitlines()[-1])


def matmul_seconds() -> float:
    """Return the best time of the reference product."""
    import torch

    a, b = torch.randn(2048, 512), torch.randn(512, 4096)
    out = torch.empty(2048, 4096)
    times = []
    for _ in range(20):
        begun = perf_counter()
        torch.mm(a, b, out=out)
        times.append(perf_counter() - begun)
    return min(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=5, help="runs of --help")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    args = parser.parse_args()
    found: dict[str, float] = {"help_s": help_seconds(args.runs)}
    with tempfile.TemporaryDirectory() as folder:
        found["first_progress_s"], found["demo_s"], result = demo(folder)
    # Kilobytes on Linux, bytes on macOS; of the largest process waited for.
    scale = 2**20 if sys.platform == "linux" else 2**30
    found["demo_peak_gib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / scale
    found["matmul_ms"] = 1e3 * matmul_seconds()
    found["demo_over_matmul"] = found["demo_s"] / found["matmul_ms"] * 1e3
    found |= {key: result[key] for key in ("fvu", "l0", "dead_share", "ce_recovered", "train_seconds")}
    if not args.json:
        for key, value in found.items():
            limit = f"   (promised: {LIMITS[key]:g})" if key in LIMITS else ""
            print(f"{key:>18}  {value:10.4g}{limit}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
