from __future__ import annotations

from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from interp.activations import CaptureConfig, check_disk, estimate, estimates, write_store
from interp.runs import start_run

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

CONFIG = CaptureConfig(("resid_post.1", "mlp_act.0"), shard_rows=100)
Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_disk_is_what_the_store_then_takes(gpt2: ModelHandle, blocks: Blocks, tmp_path: Path, dtype: str) -> None:
    config = replace(CONFIG, dtype=dtype)
    cost = estimate(gpt2, blocks, config)
    with start_run("activations", config, slug="x", root=tmp_path) as run:
        info = write_store(run, gpt2, blocks, config)
    taken = sum(path.stat().st_size for path in run.path.glob("rows-*"))
    assert 0.95 * taken <= cost.disk_bytes <= 1.1 * taken + 4096 * len(info.shards)
    assert cost.rows == info.rows
    assert cost.tokens == blocks.tokens.numel()


def test_time_follows_the_clock_and_the_number_of_blocks(
    gpt2: ModelHandle, blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([10.0, 14.0])
    monkeypatch.setattr(estimates, "perf_counter", lambda: next(ticks))
    cost = estimate(gpt2, blocks, CONFIG)
    shards = -(-cost.rows // 100)
    assert cost.seconds == pytest.approx(4.0 / len(blocks) * (len(blocks) + shards)), "one pass held all blocks"


def test_memory_counts_weights_and_a_shard(gpt2: ModelHandle, blocks: Blocks) -> None:
    small, large = (estimate(gpt2, blocks, replace(CONFIG, shard_rows=rows)) for rows in (10, 10_000))
    assert small.memory_bytes > 4 * gpt2.n_parameters
    width = gpt2.d_model + gpt2.d_mlp
    assert large.memory_bytes - small.memory_bytes == (large.rows - 10) * width * 6


def test_describe_is_one_readable_line() -> None:
    text = estimates.Estimate(2_000_000, 1_990_000, 3723.0, 1_500_000_000, 512_000).describe()
    assert text == "2,000,000 tokens, 1,990,000 rows: about 62 min, 1.5 GB of disk, 512 kB of memory"


@pytest.mark.parametrize(("seconds", "text"), [(0.01, "1 s"), (89, "89 s"), (100, "2 min"), (9000, "2.5 h")])
def test_durations(seconds: float, text: str) -> None:
    assert estimates.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (123e6, "123 MB"), (2.5e13, "25.0 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert estimates.size(count) == text


def test_too_small_a_disk_is_refused_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda _: Usage(0, 0, 2_000_000))
    check_disk(2_000_000, tmp_path / "not" / "there" / "yet")
    with pytest.raises(OSError, match=r"needs 3\.0 GB of disk and .* has 2\.0 MB free\. Free some space.*--runs"):
        check_disk(3_000_000_000, tmp_path / "not" / "there" / "yet")
