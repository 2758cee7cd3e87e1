"""wandb only mirrors: the same numbers whether it is offline, disabled or absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from interp.runs import start_run
from sae.config import SaeConfig, TrainConfig
from sae.listeners import RunLog, Wandb
from sae.model import Sae
from sae.training import begin, train

class Batches:
    d_in = 8
    def batch(self, step):
        return torch.randn(32, 8, generator=torch.Generator().manual_seed(step))

mode, root = sys.argv[1], Path(sys.argv[2])
record = start_run("sae", {"mode": mode}, slug="t", root=root)
listeners = [RunLog(record, every=5)]
if mode == "absent":
    sys.modules["wandb"] = None
else:
    listeners.append(Wandb(record, mode=mode, every=5))
training = begin(Sae(SaeConfig(8, 24, "topk", {"k": 2})), Batches(), TrainConfig(tokens=640, batch=32, lr=1e-2))
sae = train(training, Batches(), listeners)
record.save_tensors("dictionary.safetensors", sae.state_dict())
record.finish({})
print(record.path)
"""


def run_with(mode: str, tmp_path: Path) -> Path:
    """Train in a process of its own whose every attempt to reach a network fails; return the run's folder."""
    home = tmp_path / f"home-{mode}"
    home.mkdir()
    dead = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    keys = ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR")
    places = {key: str(home / key) for key in keys} | {"HOME": str(home), "PYTHONPATH": str(Path.cwd())}
    env = os.environ | dead | places
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode, str(tmp_path / "runs")],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


def numbers(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("time", "rows_per_s")} for row in rows]


@pytest.mark.slow
def test_every_mode_gives_the_same_numbers_and_offline_writes_a_readable_mirror(tmp_path: Path) -> None:
    runs = {mode: run_with(mode, tmp_path) for mode in ("absent", "disabled", "offline")}
    assert numbers(runs["absent"]) == numbers(runs["disabled"]) == numbers(runs["offline"])
    weights = [(run / "dictionary.safetensors").read_bytes() for run in runs.values()]
    assert weights[0] == weights[1] == weights[2]
    files = list((runs["offline"] / ".wandb").rglob("*.wandb"))
    assert len(files) == 1
    shown = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(files[0])],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if shown.returncode != 0:
        pytest.fail(f"wandb's own inspection refused the file: {shown.stderr}")
    mirrored = json.loads(shown.stdout)
    last = numbers(runs["offline"])[-1]
    text = json.dumps(mirrored)
    assert repr(last["loss"])[:8] in text
    assert "train/fvu" in text
