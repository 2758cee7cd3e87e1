"""What a run holds: writing, reading, names that stay inside, disks that refuse."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from interp.runs import (
    RunError,
    open_run,
    start_run,
    verify_run,
)
from interp.runs import files as run_files

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)


def test_progress_is_live_and_throttled(tmp_path: Path) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path)
    run.progress(1, 10, "steps", rate=3.5)
    run.progress(2, 10, "steps")
    assert open_run(run.id, tmp_path).info["progress"] == {"done": 1, "total": 10, "unit": "steps", "rate": 3.5}
    run.close()
    assert open_run(run.id, tmp_path).info["progress"]["done"] == 2


def test_metrics_append_and_truncate(tmp_path: Path) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path)
    assert run.metrics() == []
    for step in range(5):
        run.log(step, loss=np.float32(0.5), bad=float("nan"), tensor=torch.tensor(step))
    run.truncate_metrics(2)
    run.log(3, loss=1.0, time=7.0)
    rows = run.metrics()
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[2] | {"time": 0} == {"step": 2, "loss": 0.5, "bad": None, "tensor": 2, "time": 0}
    assert rows[3]["time"] == 7.0


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_tensors_round_trip(tmp_path: Path, make: Callable[..., Any]) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path)
    values = {
        "matrix": make([[1.5, 2.0, 3.0], [4.0, 5.0, 6.0]]).T,
        "counts": make([1, 2, 3]),
        "mask": make([True, False]),
        "scalar": make(2.5),
        "empty": make([]),
    }
    run.save_tensors("a/b.safetensors", values, {"note": "é"})
    back = run.tensors("a/b.safetensors")
    assert back.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(back[name], np.asarray(value))
        assert back[name].shape == tuple(value.shape)
    shapes, metadata = run.tensor_info("a/b.safetensors")
    assert shapes["matrix"][1] == (3, 2)
    assert metadata == {"note": "é"}
    assert (run.path / "a/b.safetensors").stat().st_mode & 0o777 == (run.path / "run.json").stat().st_mode & 0o777


def test_bfloat16_comes_as_float32(tmp_path: Path) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path)
    value = torch.tensor([1.0, -2.5, 3e38, 0.0, float("inf")], dtype=torch.bfloat16)
    run.save_tensors("w.safetensors", {"w": value, "half": value[:2].half()})
    np.testing.assert_array_equal(run.tensors("w.safetensors")["w"], value.float().numpy())
    assert run.tensors("w.safetensors")["half"].dtype == np.float16
    np.testing.assert_array_equal(run.rows("w.safetensors", "w", slice(1, 3)), value[1:3].float().numpy())


def test_rows_read_a_part(tmp_path: Path) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path)
    whole = np.arange(24.0).reshape(6, 4)
    run.save_tensors("w.safetensors", {"other": np.ones(3), "w": whole})
    for index in (slice(1, 3), 2, [5, 0], (slice(None), 1), slice(4, 99)):
        np.testing.assert_array_equal(run.rows("w.safetensors", "w", index), whole[index])
    with pytest.raises(RunError, match=r"w in .*w\.safetensors has shape \[6, 4\]; index 6 is out of bounds"):
        run.rows("w.safetensors", "w", 6)
    with pytest.raises(RunError, match=r"Unknown tensor in .*: 'othre'; did you mean 'other'"):
        run.rows("w.safetensors", "othre", 0)


def test_tables_round_trip(tmp_path: Path) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path / "odd=name")
    table = pa.table({"latent": pa.array(range(100), pa.int32()), "text": ["\x00<script>"] * 100})
    run.save_table("t.parquet", table, row_group_size=10)
    assert run.table("t.parquet").equals(table)
    assert run.table("t.parquet", columns=["text"]).column_names == ["text"]
    assert run.table("t.parquet", filters=[("latent", "==", 42)])["latent"].to_pylist() == [42]
    with pytest.raises(RunError, match=r"Unknown column in .*: 'latnet'; did you mean 'latent'"):
        run.table("t.parquet", columns=["latnet"])


def test_json_round_trip(tmp_path: Path) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path)
    run.save_json(
        "m.json", {"a": np.int64(3), "b": [np.nan, float("inf")], "c": np.arange(2), "d": Path("x"), "e": "\ud800"}
    )
    assert run.json("m.json") == {"a": 3, "b": [None, None], "c": [0, 1], "d": "x", "e": "\ud800"}
    with pytest.raises(RunError, match="JSON holds numbers, text, lists and dicts, got object"):
        run.save_json("m.json", {"a": object()})
    assert run.json("m.json")["a"] == 3


def test_wrong_endings_and_missing_files(tmp_path: Path) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path)
    with pytest.raises(RunError, match=r"must end in \.safetensors, got 'w\.bin'"):
        run.save_tensors("w.bin", {})
    with pytest.raises(RunError, match=r"run\.json is written by the run itself"):
        run.save_json("run.json", {})
    with pytest.raises(RunError, match=r"has no file 'gone\.json'\. There are: run\.json\."):
        run.json("gone.json")


@pytest.mark.parametrize(
    "name", ["../x.json", "a/../../x.json", "/etc/x.json", "x\0.json", "", ".lock", "a//b.json", "a\\b", "C:x"]
)
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path)
    for use in (run.file, run.json, lambda name: run.save_json(name, {})):
        with pytest.raises(RunError, match=r"plain relative name|do not begin with a dot or a drive"):
            use(name)


def test_links_stay_inside(tmp_path: Path) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path / "runs")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text("{}")
    (run.path / "folder").symlink_to(outside)
    (run.path / "link.json").symlink_to(outside / "secret.json")
    (run.path / "round.json").symlink_to(run.path / "round.json")
    for name in ("folder/secret.json", "folder/new.json", "link.json", "round.json"):
        with pytest.raises(RunError, match="is a link that leaves the run; replace it by the file itself"):
            run.json(name)
        with pytest.raises(RunError, match="is a link that leaves the run"):
            run.save_json(name, {"a": 1})
    with pytest.raises(RunError, match="is a link that leaves the run"):
        run.finish({})
    assert sorted(path.name for path in outside.iterdir()) == ["secret.json"]
    run.save_json("inside.json", {"a": 1})
    (run.path / "alias.json").symlink_to("inside.json")
    assert run.json("alias.json") == {"a": 1}


def test_finished_runs_are_frozen(tmp_path: Path) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path)
    run.log(1, loss=2.0)
    run.save_tensors("w.safetensors", {"w": np.ones(2)})
    run.finish({"fvu": 0.5})
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest.keys() >= {"schema", "kind", "id", "created", "finished", "summary", "files"}
    assert manifest["files"].keys() == {"run.json", "metrics.jsonl", "w.safetensors"}
    assert run.status == json.loads((run.path / "run.json").read_text())["status"] == "finished"
    assert not (run.path / ".lock").exists()
    writes: list[Callable[[], Any]] = [
        lambda: run.log(2, loss=1.0),
        lambda: run.save_json("a.json", {}),
        lambda: run.truncate_metrics(0),
        lambda: run.progress(1, 2, "steps"),
        lambda: run.finish({}),
        lambda: run.fail("no"),
    ]
    for write in writes:
        with pytest.raises(RunError, match="is finished and frozen; start a new run with it as a parent"):
            write()
    assert verify_run(run) == []


def test_a_run_opened_for_reading_does_not_write(tmp_path: Path) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path)
    with pytest.raises(RunError, match="was opened for reading or has been closed"):
        open_run(run.id, tmp_path).log(1, loss=1.0)
    run.close()
    with pytest.raises(RunError, match="was opened for reading or has been closed"):
        run.log(1, loss=1.0)


# Disks that refuse


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path)
    table = pa.table({"a": [1]})
    run.save_tensors("w.safetensors", {"w": np.ones(2)})
    run.save_table("t.parquet", table)
    run.save_json("m.json", {"a": 1})
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        for name, write in {
            "w.safetensors": lambda: run.save_tensors("w.safetensors", {"w": np.zeros(2)}),
            "t.parquet": lambda: run.save_table("t.parquet", pa.table({"a": [2]})),
            "m.json": lambda: run.save_json("m.json", {"a": 2}),
            "run.json": lambda: run.finish({}),
        }.items():
            with pytest.raises(
                RunError, match=rf"The disk is full: .*x-{run.id}/{name} could not be written\. What was"
            ):
                write()
    assert not list(run.path.glob(".*.part"))
    np.testing.assert_array_equal(run.tensors("w.safetensors")["w"], np.ones(2))
    assert run.table("t.parquet").equals(table)
    assert run.json("m.json") == {"a": 1}
    run.finish({})
    assert verify_run(run) == []


LIMITED = """
import resource, sys
import numpy as np
from interp.runs import RunError, start_run
run = start_run("sae", {}, slug="x", root=sys.argv[1])
run.save_tensors("w.safetensors", {"w": np.ones(2)})
run.log(1, note="")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (
    lambda: run.save_tensors("w.safetensors", {"w": np.ones(10_000)}),
    lambda: run.save_json("m.json", list(range(10_000))),
    lambda: run.log(2, note="x" * 10_000),
):
    try:
        write()
    except RunError as error:
        print(error)
print(run.tensors("w.safetensors")["w"].tolist(), len(run.metrics()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX")
def test_a_write_that_the_system_stops_half_way(tmp_path: Path) -> None:
    out, _ = python(LIMITED, tmp_path).communicate()
    lines = out.splitlines()
    for name, line in zip(("w.safetensors", "m.json", "metrics.jsonl"), lines, strict=False):
        assert f"{name} could not be written: File too large" in line
    assert lines[3] == "[1.0, 1.0] 1"
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_appending_to_a_full_device_is_named() -> None:
    with pytest.raises(RunError, match="The disk is full: /dev/full could not be written"):
        run_files.append_line(Path("/dev/full"), "x")


def test_a_full_disk_does_not_hide_why_a_job_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_run("sae", {}, slug="x", root=tmp_path)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ZeroDivisionError), run:
        1 / 0  # noqa: B018
    assert not run.writable


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match=r"could not be written: Not a directory\. Make the folder writable or choose"):
        start_run("sae", {}, slug="x", root=tmp_path / "runs")
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(RunError, match=r"could not be written: Permission denied\."):
            start_run("sae", {}, slug="x", root=locked)


READER = """
import sys
import numpy as np
from interp.runs import find_runs, open_run
run = open_run(sys.argv[2], sys.argv[1])
run.tensors("w.safetensors"), run.rows("w.safetensors", "w", 0), run.table("t.parquet")
run.metrics(), find_runs(sys.argv[1])
print([name for name in ("torch", "datasets", "wandb", "transformer_lens") if name in sys.modules])
"""


def test_reading_a_run_needs_no_torch(tmp_path: Path) -> None:
    with start_run("sae", {}, slug="x", root=tmp_path) as run:
        run.save_tensors("w.safetensors", {"w": torch.ones(2, 2)})
        run.save_table("t.parquet", pa.table({"a": [1]}))
        run.finish({})
    assert python(READER, tmp_path, run.id).communicate()[0] == "[]\n"
