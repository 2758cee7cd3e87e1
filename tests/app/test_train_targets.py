"""`mechscope train` with other targets and with several dictionaries in one pass."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from app.command import main
from app.variants import Variant, variants
from interp.runs import Run, find_runs, open_run
from sae.config import TrainConfig
from sae.model import load_sae
from sae.targets import relative_norms


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"the cat {i} sat on the mat and the dog sat on log {i}.\n" for i in range(400)))
    return path


def asked(model: Path, text: Path, root: Path, *more: str) -> list[str]:
    source = ["train", "--model", str(model), "--text", str(text), "--context", "32", "--runs", str(root), "--json"]
    size = ["--d-sae", "48", "--rule-args", "k", "4", "--train.batch", "64", "--train.tokens", "1920"]
    return [*source, *size, "--train.lr", "0.003", *more]


def trained(arguments: list[str], root: Path, capsys: Any) -> tuple[Run, dict[str, Any]]:
    assert main(arguments) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    return open_run(Path(found["run"]).name, root), found


def weights(run: Run) -> str:
    return hashlib.sha256((run.path / "dictionary.safetensors").read_bytes()).hexdigest()


def test_a_transcoder_with_a_skip(model_folder: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--site", "resid_mid.1", "--target-site", "mlp_out.1", "--skip", "--normalise", "layer"]
    run, found = trained(asked(model_folder, text, tmp_path, *options), tmp_path, capsys)
    assert found["site"] == "resid_mid.1-to-mlp_out.1"
    assert (run.config["site"], run.config["target_site"]) == ("resid_mid.1", "mlp_out.1")
    sae = load_sae(run)
    assert (sae.d_in, sae.d_out, sae.config.target.kind) == (32, 32, "transcoder")
    assert float(sae.target.W_skip.detach().abs().max()) > 0  # type: ignore[union-attr]
    rows = run.metrics()
    assert rows[-1]["fvu"] < 0.9 * rows[0]["fvu"]


def test_a_crosscoder_of_layers_from_text_and_from_a_store(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    options = ["--sites", "resid_post.0", "resid_post.1", "resid_post.2"]
    run, _ = trained(asked(model_folder, text, tmp_path, *options), tmp_path, capsys)
    assert load_sae(run).config.target.blocks == (32, 32, 32)
    assert run.config["sites"] == ["resid_post.0", "resid_post.1", "resid_post.2"]
    capture = ["capture", "--model", str(model_folder), "--text", str(text), "--context", "32", "--runs", str(tmp_path)]
    assert main([*capture, "--site", "resid_post.0", "--site", "resid_post.1", "--json"]) == 0
    store = Path(json.loads(capsys.readouterr().out)["run"]).name
    size = ["--d-sae", "48", "--train.batch", "64", "--train.tokens", "640", "--runs", str(tmp_path), "--json"]
    other, _ = trained(["train", "--store", store, "--sites", "resid_post.1", "resid_post.0", *size], tmp_path, capsys)
    assert other.config["sites"] == ["resid_post.1", "resid_post.0"]
    assert load_sae(other).config.target.blocks == (32, 32)
    third, _ = trained(
        ["train", "--store", store, "--site", "resid_post.0", "--target-site", "resid_post.1", *size], tmp_path, capsys
    )
    assert load_sae(third).config.target.kind == "transcoder"


def test_a_crosscoder_of_two_models(
    model_folder: Path, neox_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    options = ["--site", "resid_post.1", "--with-model", str(neox_folder)]
    run, _ = trained(asked(model_folder, text, tmp_path, *options), tmp_path, capsys)
    sae = load_sae(run)
    assert (sae.config.target.blocks, sae.config.target.models) == ((32, 32), 2)
    assert relative_norms(sae).shape == (48,)
    assert run.config["with_model"]["weights"] != run.config["weights"]


def test_end_to_end(model_folder: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--site", "resid_post.1", "--e2e", "--downstream", "0.5", "--train.tokens", "1280"]
    run, found = trained(asked(model_folder, text, tmp_path, *options), tmp_path, capsys)
    assert found["site"] == "resid_post.1-e2e"
    rows = run.metrics()
    assert {"kl", "downstream", "fvu"} <= rows[-1].keys()
    assert rows[-1]["kl"] < rows[0]["kl"]


def test_a_rule_that_needs_the_gradient_gets_it_from_a_running_model(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    run, _ = trained(asked(model_folder, text, tmp_path, "--rule", "gradient"), tmp_path, capsys)
    assert load_sae(run).config.rule == "gradient"
    assert main(["train", "--store", "x", "--rule", "gradient", "--runs", str(tmp_path)]) != 0
    assert "a store does not hold; leave out --store" in " ".join(capsys.readouterr().err.split())


def test_several_dictionaries_of_one_pass_are_those_trained_alone(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    more = ["--also", "rule=batch_topk", "--also", "d_sae=32, rule_args.k=2 train.tokens=1280"]
    _, found = trained(asked(model_folder, text, together, *more), together, capsys)
    runs = [open_run(Path(path).name, together) for path in (found["run"], *found["also"])]
    for run, change in zip(runs, ([], ["--rule", "batch_topk"], None), strict=True):
        if change is None:
            change = ["--d-sae", "32", "--rule-args", "k", "2", "--train.tokens", "1280"]
        single, _ = trained(asked(model_folder, text, alone, *change), alone, capsys)
        assert single.id == run.id, "the same request is the same run"
        assert weights(single) == weights(run)
    assert [run.summary["steps"] for run in runs] == [30, 30, 20]
    _, again = trained(asked(model_folder, text, together, *more), together, capsys)
    assert again == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--e2e", "--target-site", "mlp_out.1"], "--target-site and --e2e ask for different targets"),
        (["--skip"], "--skip belongs to a transcoder"),
        (["--downstream", "1"], "--downstream belongs to --e2e"),
        (["--sites", "resid_post.1"], "--sites takes two or more different sites, got resid_post.1"),
        (["--site", "mlp_out.1", "--target-site", "resid_mid.1"], "computed after mlp_out.1, not resid_mid.1"),
        (["--also", "rulee=topk"], "'rulee'; did you mean 'rule'"),
        (["--also", "rule"], "takes NAME=VALUE"),
        (["--also", "train.batch=32"], "share its batches, so train.batch cannot differ"),
        (["--also", "rule=topk"], "asks for a dictionary that is trained already"),
        (["--also", "d_sae=3"], "k must lie in 1..d_sae=3, got 4"),
        (["--also", "rule=batch_topk", "--wandb", "offline"], "leave it out with --also"),
        (["--e2e", "--train.batch", "16"], "batch must be at least the context, 32, got 16"),
    ],
)
def test_what_does_not_go_together_is_refused(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any, options: list[str], message: str
) -> None:
    assert main(asked(model_folder, text, tmp_path, *options)) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert find_runs(tmp_path, "sae") == [], "refused before a run begins"


def test_a_variant_keeps_what_it_does_not_name_and_the_arguments_that_its_rule_takes() -> None:
    first = Variant("topk", {"k": 8}, 64, "scalar", "unit", TrainConfig(lr=0.1))
    (other,) = variants(["rule=relu,rule_args.l1=0.3,train.aux=0"], first)
    assert other == Variant("relu", {"l1": 0.3}, 64, "scalar", "unit", TrainConfig(lr=0.1, aux=0))
    (third,) = variants(["rule=batch_topk"], first)
    assert third.rule_args == {"k": 8}
