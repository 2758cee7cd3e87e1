"""`mechscope sweep` with real cells: trained, evaluated, recorded, found again, resumed, shown in wandb."""

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
import yaml

from app.command import main
from app.sweeps import local
from interp.runs import find_runs, open_run, verify_run

ROOT = Path(__file__).resolve().parents[2]
DEAD = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"the cat {i} sat on the mat and the dog sat on log {i}.\n" for i in range(200)))
    return path


def fixed(model: Path, text: Path) -> dict[str, Any]:
    values = {"model": str(model), "text": str(text), "context": 32, "site": "resid_post.1", "train.batch": 64,
              "train.tokens": 640, "train.lr": 0.003, "evaluate.tokens": 400}  # fmt: skip
    return {name: {"value": value} for name, value in values.items()}


def write(folder: Path, parameters: dict[str, Any], **more: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters, **more}, sort_keys=False))
    return path


def call(capsys: Any, *arguments: object, status: int = 0) -> tuple[dict[str, Any], str]:
    assert main(["sweep", *map(str, arguments), "--threads", "1", "--json"]) == status
    out, err = capsys.readouterr()
    return json.loads(out), err


def environment(home: Path, **more: str) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    folders = {name: str(home / name) for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR")}
    return kept | DEAD | folders | {"HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


@pytest.mark.slow
def test_cells_are_trained_evaluated_recorded_and_found_again(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = fixed(model_folder, text) | {"d_sae": {"values": [32, 64]}, "rule_args.k": {"values": [2, 40]}}
    file, root = write(tmp_path, parameters, metric={"name": "fvu"}), tmp_path / "runs"
    result, err = call(capsys, file, "--runs", root, status=1)
    assert {key: result[key] for key in ("ok", "cells", "finished", "failed")} == {
        "ok": False, "cells": 4, "finished": 3, "failed": 1}  # fmt: skip
    assert "d_sae=32 rule_args.k=40: failed: k must lie in 1..d_sae=32, got 40." in err
    run = open_run(Path(result["run"]).name, root)
    assert run.status == "failed"
    table = run.table("results.parquet")
    assert table.column("status").to_pylist() == ["finished", "failed", "finished", "finished"]
    assert table.column("parameters.rule_args.k").to_pylist() == [2, 40, 2, 40]
    assert "k must lie in" in table.column("error").to_pylist()[1]
    for row in table.to_pylist():
        assert (run.path / "logs" / f"{row['id']}.log").is_file()
        if row["status"] == "finished":
            sae, evaluation = (open_run(row[f"runs.{kind}"], root) for kind in ("sae", "evaluation"))
            assert evaluation.parents == [sae.ref]
            assert evaluation.summary["fvu"] == row["metrics.fvu"]
            assert sae.summary["fvu"] == row["metrics.train/fvu"]
            assert sae.config["sae"]["d_sae"] == row["parameters.d_sae"]
    assert any(table.column("front").to_pylist())

    # Again: what is finished is not touched, what failed is tried again.
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/*/manifest.json")}
    again, err = call(capsys, file, "--runs", root, status=1)
    assert "4 cells, 3 of them finished" in err
    assert again["run"] == result["run"]
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/*/manifest.json")} == before

    # The cells without the one that cannot be are another sweep, whose cells are all there.
    parameters |= {"rule_args.k": {"value": 2}}
    small = write(tmp_path, parameters)
    result, _ = call(capsys, small, "--runs", root)
    assert len(find_runs(root, "sae")) == 3
    done = open_run(Path(result["run"]).name, root)
    assert done.finished
    assert verify_run(done) == []
    assert done.json("sweep.json")["file"] == small.read_text()

    # A finished sweep starts no process.
    monkeypatch.setattr(local, "Pool", None)
    again, err = call(capsys, small, "--runs", root, "--pareto", "l0", "ce_recovered_mean", "kll")
    assert "is finished already" in err
    assert "no cell measured 'kll'; did you mean 'kl'?" in err
    assert again["pareto"] == ["l0", "ce_recovered_mean"]


def comparable(root: Path, name: str) -> list[dict[str, Any]]:
    rows = open_run(name, root).table("results.parquet").to_pylist()
    timed = ("seconds", "rows_per_s")
    return [{key: value for key, value in row.items() if not key.endswith(timed)} for row in rows]


@pytest.mark.slow
def test_two_at_a_time_find_what_one_at_a_time_finds(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    parameters = fixed(model_folder, text) | {
        "d_sae": {"values": [32, 48]},
        "evaluate.keep_bos": {"values": [True, False]},  # two cells that share a training, and may meet in it
    }
    file, found = write(tmp_path, parameters), []
    for jobs in (1, 2):
        root = tmp_path / f"runs-{jobs}"
        result, _ = call(capsys, file, "--runs", root, "--jobs", jobs)
        assert result["finished"] == 4
        assert len(find_runs(root, "sae", finished=True)) == 2
        found.append(comparable(root, Path(result["run"]).name))
    assert found[0] == found[1]


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "app", "sweep", *map(str, arguments), "--threads", "1", "--json"]
    return subprocess.Popen(
        command, cwd=folder, env=environment(folder / "home"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def running_training(root: Path, job: subprocess.Popen[str], rows: int) -> Any:
    """Return the training in progress once it has logged `rows` rows."""
    while job.poll() is None:
        for run in find_runs(root, "sae", finished=False):
            if run.status == "running" and len(run.metrics()) >= rows:
                return run
        time.sleep(0.02)
    pytest.fail(f"the sweep ended too early: {job.communicate()[1]}")


def long_sweep(model: Path, text: Path, folder: Path) -> Path:
    """A short cell and one of a thousand steps that saves its state after every one."""
    parameters = fixed(model, text) | {"checkpoint_seconds": {"value": 0.0}, "train.tokens": {"values": [64000, 640]}}
    return write(folder, parameters | {"d_sae": {"value": 32}})


@pytest.mark.slow
def test_a_killed_cell_is_recorded_and_resumed(model_folder: Path, text: Path, tmp_path: Path) -> None:
    file, root = long_sweep(model_folder, text, tmp_path), tmp_path / "runs"
    with start(tmp_path, file, "--runs", root) as job:
        training = running_training(root, job, 5)
        os.kill(training.info["pid"], signal.SIGKILL)
        out, err = job.communicate()
    assert job.returncode == 1, err
    assert "ended by SIGKILL" in err
    assert json.loads(out)["finished"] == 1, "the other cell was done by another worker"
    reached = len(open_run(training.ref, root).metrics())
    with start(tmp_path, file, "--runs", root) as job:
        out, err = job.communicate()
    assert job.returncode == 0, err
    result = json.loads(out)
    assert result["finished"] == 2
    log = "".join(path.read_text() for path in Path(result["run"]).glob("logs/*.log"))
    assert "going on from step" in log
    assert len(open_run(training.ref, root).metrics()) > reached


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_a_stopped_sweep_leaves_nobody_behind_and_resumes(
    model_folder: Path, text: Path, tmp_path: Path, how: signal.Signals
) -> None:
    file, root = long_sweep(model_folder, text, tmp_path), tmp_path / "runs"
    with start(tmp_path, file, "--runs", root) as job:
        training = running_training(root, job, 5)
        job.send_signal(how)
        _, err = job.communicate()
    if how == signal.SIGINT:
        assert job.returncode == 130, err
        assert "the same command resumes it" in err
        assert "Traceback" not in err
    while open_run(training.ref, root).status == "running":
        time.sleep(0.02)  # the worker saves its state when the sweep is gone
    (sweep,) = find_runs(root, "sweep")
    assert sweep.status == "interrupted"
    with start(tmp_path, file, "--runs", root) as job:
        out, err = job.communicate()
    assert job.returncode == 0, err
    assert json.loads(out)["finished"] == 2
    assert open_run(training.ref, root).finished


def inspected(file: Path) -> dict[str, Any]:
    """Return what wandb's own inspection says about one of its files."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(file)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)


def wandb_files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*.wandb") if path.is_file()]


@pytest.mark.slow
def test_every_cell_is_mirrored_offline_and_the_numbers_stay(model_folder: Path, text: Path, tmp_path: Path) -> None:
    parameters = fixed(model_folder, text) | {"d_sae": {"values": [32, 48]}, "rule_args.k": {"values": [2, 40]}}
    file, found = write(tmp_path, parameters, name="mirrored", project="p"), {}
    for mode in ("off", "offline"):
        with start(tmp_path, file, "--runs", tmp_path / mode, "--wandb", mode) as job:
            out, err = job.communicate()
        assert job.returncode == 1, err
        found[mode] = comparable(tmp_path / mode, Path(json.loads(out)["run"]).name)
    assert found["off"] == found["offline"]
    assert wandb_files(tmp_path / "off") == []
    shown = {entry["name"]: entry for entry in map(inspected, wandb_files(tmp_path / "offline"))}
    assert set(shown) == {f"mirrored-{row['id']}" for row in found["offline"]}
    for row in found["offline"]:
        entry = shown[f"mirrored-{row['id']}"]
        assert entry["project"] == "p"
        assert entry["config"]["rule_args.k"] == row["parameters.rule_args.k"]
        assert entry["exit_code"] == (0 if row["status"] == "finished" else 1)
        if row["status"] == "finished":
            assert entry["config"]["sae_run"] == row["runs.sae"]
            assert entry["summary"]["fvu"] == pytest.approx(row["metrics.fvu"])
            assert "train/loss" in entry["summary"]


@pytest.mark.slow
def test_an_agent_runs_the_cell_that_the_local_runner_runs(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    from wandb.sdk.launch.sweeps import utils as agent

    data = yaml.safe_load((ROOT / "sweeps" / "train.yaml").read_text())
    data["parameters"] = fixed(model_folder, text) | {"d_sae": {"value": 32}, "rule_args.k": {"values": [2]}}
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(data))
    root = tmp_path / "runs"
    sent = {name: {"value": one.get("value", 2)} for name, one in data["parameters"].items()}
    macros = agent.create_sweep_command_args({"args": sent}) | {"env": ["/usr/bin/env"], "program": [data["program"]]}
    words = [w for word in data["command"] for w in (macros[word[2:-1]] if word.startswith("${") else [word])]
    assert words[:2] == ["/usr/bin/env", "mechscope"]
    words[1:2] = [sys.executable, "-m", "app"]  # as installed, without an installation
    under = environment(tmp_path / "home", WANDB_SWEEP_ID="s1", WANDB_RUN_ID="r1", WANDB_MODE="offline")
    under |= {"MECHSCOPE_RUNS": str(root)}
    done = subprocess.run(words, cwd=tmp_path, env=under, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    evaluation = open_run(Path(done.stdout.splitlines()[-1]).name, root)
    (shown,) = map(inspected, wandb_files(root))
    assert shown["run_id"] == "r1"
    assert shown["summary"]["fvu"] == pytest.approx(evaluation.summary["fvu"])
    before = len(find_runs(root))
    result, _ = call(capsys, file, "--runs", root)
    (row,) = open_run(Path(result["run"]).name, root).table("results.parquet").to_pylist()
    assert row["runs.evaluation"] == evaluation.ref
    assert len(find_runs(root)) == before + 1, "only the sweep itself is new"


def test_a_dry_run_lists_the_cells_and_starts_nothing(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    parameters = fixed(model_folder, text) | {"d_sae": {"values": [32, 64]}}
    result, err = call(capsys, write(tmp_path, parameters), "--runs", tmp_path / "runs", "--dry-run")
    assert [cell["parameters"]["d_sae"] for cell in result["cells"]] == [32, 64]
    first, second = (cell["estimate"] for cell in result["cells"])
    assert first["rows"] == 640
    assert second["disk_bytes"] == 2 * first["disk_bytes"] == 2 * 64 * 32 * 4
    assert 0 < first["seconds"] < second["seconds"]
    assert result["seconds"] == pytest.approx(first["seconds"] + second["seconds"])
    assert "2 cells, 1 at a time with 1 threads each: about" in err
    assert not find_runs(tmp_path / "runs")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"method": "bayes"}, [], "method bayes needs wandb's server"),
        ({"program": "trian"}, [], "Unknown program of a sweep: 'trian'; did you mean 'train'?"),
        ({"parameters": {"train.lrr": {"value": 1}}}, [], "did you mean 'train.lr'?"),
        ({"parameters": {"train.lr": {"value": "x"}}}, [], "small.yaml: parameters.train.lr must be a number"),
        ({"method": "random"}, [], "give --count"),
        ({}, ["--jobs", "0"], "jobs, threads and count must be 1 or more, got 0"),
        ({}, ["--pareto", "l0"], "pareto takes two metrics or more"),
        ({}, ["--pareto", "l0:up", "fvu"], "NAME:min or NAME:max"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    change: dict[str, Any], options: list[str], message: str, tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({"method": "grid", "parameters": {"d_sae": {"values": [8, 16]}}} | change))
    assert main(["sweep", str(file), "--runs", str(tmp_path / "runs"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_cell_by_itself_is_checked_and_explained(capsys: Any) -> None:
    assert main(["sweep", "--cell", "train", "--help"]) == 0
    assert "evaluate.keep_bos" in capsys.readouterr().out
    for words, message in (
        ([], "Unknown program of a sweep: ''"),
        (["train", "--d_sea=8"], "did you mean 'd_sae'?"),
        (["train", "word"], "given as --key=value"),
    ):
        assert main(["sweep", "--cell", *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["sweep"]) == 2
    assert "Name the sweep's file" in capsys.readouterr().err
