from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.command import main
from interp.activations import DiskStore, estimates, read_info
from interp.runs import find_runs, open_run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"the cat {i} sat on the mat and the dog sat on log {i}.\n" for i in range(400)))
    return path


def request(model: Path, text: Path, root: Path, *more: str) -> list[str]:
    common = ["capture", "--model", str(model), "--text", str(text), "--context", "32", "--tokens", "4000"]
    return [*common, "--runs", str(root), "--shard-rows", "1000", *more]


def test_writes_a_store_and_reports_it(model_folder: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = request(
        model_folder, text, tmp_path / "runs", "--site", "resid_post.1", "--site", "head_out.*", "--json"
    )
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    run = open_run(Path(result["run"]).name, tmp_path / "runs")
    info = read_info(run)
    assert info.dtype == "float16"
    assert list(info.widths) == ["head_out.0", "head_out.1", "resid_post.1", "head_out.2"]
    assert result["rows"] == info.rows
    assert result["excluded"]["bos"] >= 118, "125 blocks, 5% of them held out"
    assert result["disk_bytes"] >= info.rows * (4 * 32 * 2 + 12)
    assert {"tokens", "seconds", "sites"} <= set(result)
    assert "attention crosses document boundaries" in err
    assert f"{info.rows:,} rows: about" in err, "the estimate comes first"
    assert err.index("rows: about") < err.index(f"capture: 0 of {info.rows:,} rows")
    assert DiskStore(run, "resid_post.1", 64).batch(0).shape == (64, 32)
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["run"] == result["run"]
    assert "is finished already" in err


def test_the_last_line_is_the_run(model_folder: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(request(model_folder, text, tmp_path / "runs", "--site", "resid_post.1", "--dtype", "float32")) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert (Path(last) / "store.json").is_file()


def test_another_text_of_the_same_name_is_another_run(model_folder: Path, text: Path, tmp_path: Path) -> None:
    arguments = request(model_folder, text, tmp_path / "runs", "--site", "resid_post.1")
    assert main(arguments) == 0
    text.write_text(text.read_text().replace("cat", "dog"))
    assert main(arguments) == 0
    assert len(find_runs(tmp_path / "runs", "activations", finished=True)) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "Name at least one --site, such as --site resid_post.1"),
        (["--site", "resid_pst.1"], "did you mean 'resid_post'"),
        (["--site", "resid_post.9"], "layers are 0..2"),
        (["--site", "*.9"], "No site of"),
        (["--site", "resid_post.1", "--context", "100"], "context must lie in 2..n_ctx=64 for this model, got 100"),
        (["--site", "resid_post.1", "--text", "missing.txt"], "no file or folder 'missing.txt'"),
        (["--site", "resid_post.1", "--outlier-norm", "0.5"], "must be above 1, got 0.5"),
    ],
)
def test_bad_requests_exit_with_one_line(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any, more: list[str], message: str
) -> None:
    assert main(request(model_folder, text, tmp_path / "runs", *more)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("mechscope: ")
    assert message in last
    assert not find_runs(tmp_path / "runs")


def test_a_disk_that_cannot_hold_it_is_refused(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    arguments = request(model_folder, text, tmp_path / "runs", "--site", "resid_post.1")
    assert main(arguments) == 2
    assert "of disk and" in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("rows-*"))
    monkeypatch.undo()
    assert main(arguments) == 0


def test_ctrl_c_and_again(model_folder: Path, text: Path, tmp_path: Path) -> None:
    text.write_text(text.read_text() * 50)
    arguments = request(model_folder, text, tmp_path / "runs", "--site", "resid_post.1", "--tokens", "200000")
    command = [sys.executable, "-m", "app", *arguments, "--json"]
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while job.poll() is None and len(list(tmp_path.rglob("rows-*.safetensors"))) < 3:
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate()
    assert job.returncode == 130, err
    assert "the same command resumes it" in err
    assert "Traceback" not in err
    (run,) = find_runs(tmp_path / "runs", "activations")
    assert run.status == "interrupted"
    before = {path: path.stat().st_mtime_ns for path in run.path.glob("rows-*.safetensors")}
    assert len(before) >= 3
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "going on with" in done.stderr
    assert json.loads(done.stdout)["run"] == str(run.path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert open_run(run.ref, tmp_path / "runs").finished


@pytest.mark.data
def test_stories_by_the_command(data_dir: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["capture", "--model", str(data_dir / "models" / "stories260K"), "--site", "resid_post.2", "--json"]
    text = ["--text", str(data_dir / "text" / "stories"), "--context", "64", "--tokens", "5000"]
    assert main([*arguments, *text, "--runs", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 5000 // 64 * 95 // 100 * 63
