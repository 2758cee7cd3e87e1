"""Train and evaluate by the command: found again, resumed after Ctrl-C and kill -9, refused clearly."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.command import main
from interp.runs import find_runs, open_run, verify_run
from sae.model import load_sae


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"the cat {i} sat on the mat and the dog sat on log {i}.\n" for i in range(400)))
    return path


def request(model: Path, text: Path, root: Path, *more: str, tokens: int = 6400) -> list[str]:
    source = ["train", "--model", str(model), "--site", "resid_post.1", "--text", str(text), "--context", "32"]
    size = ["--d-sae", "64", "--rule-args", "k", "4", "--train.batch", "64", "--train.tokens", str(tokens)]
    return [*source, *size, "--train.lr", "0.003", "--runs", str(root), *more]


def test_trains_evaluates_and_finds_both_again(model_folder: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "runs"
    assert main(request(model_folder, text, root, "--json")) == 0
    trained = json.loads(capsys.readouterr().out)
    run = open_run(Path(trained["run"]).name, root)
    rows = run.metrics()
    assert rows[0]["step"] == 1
    assert rows[-1]["step"] == trained["steps"] == 100
    assert rows[-1]["fvu"] < 0.8 * rows[0]["fvu"]
    assert trained["excluded"]["nonfinite"] == 0
    assert run.info["model"]["digest"] == run.config["weights"]
    assert run.info["data"]["digest"] == run.config["tokens"]
    assert load_sae(run).d_sae == 64
    assert verify_run(run) == []
    assert main(request(model_folder, text, root, "--json")) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == trained
    assert "is finished already" in err

    assert main(["evaluate", "--runs", str(root), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    evaluation = open_run(Path(measured["run"]).name, root)
    assert evaluation.parents == [run.ref] or evaluation.parents == (run.ref,)
    assert evaluation.json("metrics.json")["fvu"] == measured["fvu"]
    assert 0 < measured["fvu"] < 1
    assert measured["ce_zero"] > measured["ce_clean"]
    assert evaluation.table("density.parquet").num_rows == 64


def test_a_store_is_trained_from_without_its_model(model_folder: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "runs"
    sites = ["--site", "resid_post.1", "--site", "head_out.0", "--outlier-norm", "50"]
    arguments = ["capture", "--model", str(model_folder), "--text", str(text), "--context", "32", *sites]
    assert main([*arguments, "--runs", str(root), "--json"]) == 0
    store = Path(json.loads(capsys.readouterr().out)["run"]).name
    train = ["train", "--store", store, "--site", "head_out.0", "--d-sae", "48", "--train.batch", "64"]
    assert main([*train, "--train.tokens", "1280", "--runs", str(root), "--json"]) == 0
    run = open_run(Path(json.loads(capsys.readouterr().out)["run"]).name, root)
    assert list(run.parents) == [f"activations/{store}"]
    assert run.config["outlier_norm"] == 50
    assert main(["evaluate", "--sae", run.id, "--runs", str(root), "--json"]) == 0
    evaluation = open_run(Path(json.loads(capsys.readouterr().out)["run"]).name, root)
    assert evaluation.config["outlier_norm"] == 50

    shutil.rmtree(root / "sae")
    assert main([*train, "--rule-args", "k", "49", "--runs", str(root)]) == 2
    assert "k must lie in 1..d_sae=48, got 49." in capsys.readouterr().err


def spawn(arguments: list[str]) -> subprocess.Popen[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen([sys.executable, "-m", "app", *arguments], env=env, stderr=subprocess.PIPE, text=True)


def wait_for(root: Path, path: str, process: subprocess.Popen[str]) -> None:
    """Wait until the run in `root` has a file, or fail with what the process said."""
    for _ in range(1200):
        if list(root.glob(f"sae/*/{path}")):
            return
        if process.poll() is not None:
            pytest.fail(f"ended with {process.returncode}: {process.communicate()[1]}")
        time.sleep(0.05)
    pytest.fail(f"no {path} after a minute")


def weights(root: Path) -> str:
    (run,) = find_runs(root, "sae")
    return hashlib.sha256((run.path / "dictionary.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_training_killed_again_and_again_is_the_unbroken_one(model_folder: Path, text: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    arguments = [sys.executable, "-m", "app", *request(model_folder, text, whole, tokens=192_000)]
    subprocess.run(arguments, env=environment, check=True, capture_output=True)
    draw = random.Random(0)
    for _ in range(3):
        again = spawn(request(model_folder, text, broken, "--checkpoint-seconds", "0.05", tokens=192_000))
        wait_for(broken, "checkpoint.safetensors", again)
        time.sleep(draw.random())
        again.kill()
        again.communicate()
        (run,) = find_runs(broken, "sae")
        assert run.status == "interrupted"
    assert main(request(model_folder, text, broken, tokens=192_000)) == 0
    assert weights(whole) == weights(broken)
    (run,) = find_runs(broken, "sae")
    steps = [row["step"] for row in run.metrics()]
    assert steps == sorted(set(steps))
    assert verify_run(run) == []


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(model_folder: Path, text: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    process = spawn(request(model_folder, text, root, tokens=6_400_000))
    wait_for(root, "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes it" in err
    assert "Traceback" not in err
    (run,) = find_runs(root, "sae")
    assert run.status == "interrupted"
    assert (run.path / "checkpoint.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rule", "topkk"], "Unknown rule 'topkk'; did you mean 'topk'"),
        (["--rule-args", "kk", "3"], "Unknown argument of rule 'topk': 'kk'; did you mean 'k'"),
        (["--d-sae", "3"], r"k must lie in 1..d_sae=3, got 4."),
        (["--site", "resid_pots.1"], "Unknown site kind 'resid_pots'; did you mean 'resid_post'"),
        (["--site", "resid_post.9"], "resid_post.9"),
        (["--context", "999"], "context"),
        (["--model", "tinny"], "Unknown model 'tinny'; did you mean 'tiny'"),
        (["--text", "no/such/file.txt"], "no/such/file.txt"),
        (["--store", "nothing"], "--store brings its own model and text; leave --model"),
        (["--rule-args", "k", "abc"], "k of rule 'topk' must be int, got 'abc'."),
        (["--d-sae", "0"], "d_sae must be at least 1, got 0."),
        (["--train.clip", "0"], "clip must be above 0, got 0.0."),
        (["--train.seed", "-1"], "seed must be 0 or more, got -1."),
        (["--train.tokens", "5"], "tokens must be at least batch=64, got 5"),
    ],
)
def test_bad_requests_get_one_clear_line(
    options: list[str], message: str, model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main([*request(model_folder, text, tmp_path / "runs"), *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not find_runs(tmp_path / "runs", "sae", finished=True)


def test_what_the_width_makes_impossible_is_refused_before_the_text_is_read(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main([*request(model_folder, text, tmp_path), "--rule-args", "k", "65"]) == 2
    err = capsys.readouterr().err
    assert "k must lie in 1..d_sae=64, got 65." in err
    assert "loading" in err
    assert "tokenise" not in err


def test_wandb_online_without_a_key_says_what_to_do_before_anything_else(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")} | home
    command = [sys.executable, "-m", "app", "train", "--wandb", "online", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(
        command, env=env | {"PYTHONPATH": str(Path.cwd())}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "mechscope: wandb cannot mirror online: No API key configured." in done.stderr
    assert "WANDB_API_KEY gives one; or mirror offline (--wandb offline)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "loading" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_kernels_are_named_by_a_variable_and_recorded(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for name in ("auto", "dense"):
        monkeypatch.setenv("MECHSCOPE_KERNELS", name)
        assert main([*request(model_folder, text, tmp_path / name, tokens=640), "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["auto"]["kernels"] == "sparse"
    assert found["dense"]["kernels"] == "dense"
    assert found["dense"]["fvu"] == pytest.approx(found["auto"]["fvu"], rel=1e-4)
    monkeypatch.setenv("MECHSCOPE_KERNELS", "sparce")
    assert main(request(model_folder, text, tmp_path)) == 2
    assert "Unknown kernels in $MECHSCOPE_KERNELS: 'sparce'; did you mean 'sparse'?" in capsys.readouterr().err


def test_rows_that_are_left_out_are_said_to_count_again(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(request(model_folder, text, tmp_path, tokens=640)) == 0
    err = capsys.readouterr().err
    assert "bos (counted each time that the text was read, since this start)" in err


def test_evaluates_on_another_text_by_its_own_field(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main([*request(model_folder, text, tmp_path, tokens=640), "--json"]) == 0
    capsys.readouterr()
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"body": f"the queen went to the sea {i} times."}) + "\n" for i in range(99)))
    evaluate = ["evaluate", "--runs", str(tmp_path), "--json"]
    assert main([*evaluate, "--text", str(other), "--field", "body"]) == 0
    run = open_run(Path(json.loads(capsys.readouterr().out)["run"]).name, tmp_path)
    assert (run.config["data"]["field"], run.config["data"]["split"]) == ("body", "train")
    assert main([*evaluate, "--field", "body"]) == 2
    assert "--field says how to read another text; name one with --text, or leave it out." in capsys.readouterr().err
    assert main([*evaluate, "--text", str(other)]) == 2
    assert "text" in capsys.readouterr().err


def test_a_dictionary_of_other_weights_is_not_measured(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    from safetensors.torch import load_file, save_file

    folder, root = tmp_path / "model", tmp_path / "runs"
    shutil.copytree(model_folder, folder)
    assert main(request(folder, text, root, tokens=640)) == 0
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.bias"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    for command in ("evaluate", "features"):
        assert main([command, "--runs", str(root)]) == 2
        assert "was made with other weights of" in capsys.readouterr().err
    assert not find_runs(root, "evaluation")


def test_a_run_made_with_relative_paths_is_measured_from_any_folder(
    model_folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs"
    monkeypatch.chdir(model_folder.parent)
    relative = Path(os.path.relpath(text))
    assert main(request(Path(model_folder.name), relative, root, tokens=640)) == 0
    assert main(request(model_folder, text, root, tokens=640)) == 0
    assert len(find_runs(root, "sae")) == 1
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--runs", str(root)]) == 0


def test_an_unknown_store_is_named(tmp_path: Path, capsys: Any) -> None:
    assert main(["train", "--store", "nothing", "--runs", str(tmp_path / "runs")]) == 2
    assert "Unknown run" in capsys.readouterr().err


def test_evaluation_checks_its_options_first(tmp_path: Path, capsys: Any) -> None:
    assert main(["evaluate", "--tokens", "0", "--runs", str(tmp_path / "runs")]) == 2
    assert "tokens must be 1 or more, got 0." in capsys.readouterr().err
    assert main(["evaluate", "--outlier-norm", "0.5", "--runs", str(tmp_path / "runs")]) == 2
    assert "must be above 1, got 0.5" in capsys.readouterr().err


def test_text_that_has_changed_is_not_taken_for_the_held_out_part(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    own, root = tmp_path / "text.txt", tmp_path / "runs"
    own.write_text(text.read_text())
    assert main(request(model_folder, own, root, tokens=640)) == 0
    own.write_text(text.read_text() + "the queen went to the sea. " * 300)
    assert main(["evaluate", "--runs", str(root)]) == 2
    assert "is not the text any more that" in capsys.readouterr().err
    assert main(["evaluate", "--text", str(own), "--tokens", "500", "--runs", str(root)]) == 0


def test_a_full_disk_at_the_end_loses_no_training(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae.model import Sae

    def full(self: Sae, run: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    root = tmp_path / "runs"
    with monkeypatch.context() as patched:
        patched.setattr(Sae, "save", full)
        assert main(request(model_folder, text, root)) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert main(request(model_folder, text, root)) == 0
    assert "going on from step 100" in capsys.readouterr().err
    (run,) = find_runs(root, "sae")
    assert not (run.path / "checkpoint.safetensors").exists()


def test_evaluating_without_a_dictionary_says_what_to_do(tmp_path: Path, capsys: Any) -> None:
    assert main(["evaluate", "--runs", str(tmp_path / "runs")]) == 2
    assert "There is no finished dictionary; make one with `mechscope train`." in capsys.readouterr().err
