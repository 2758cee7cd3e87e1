"""Compress by the command, save and load again, and the commands that take a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.command import main
from interp.compression import read_recipe, read_spec
from interp.models import ModelSpec, load_model
from interp.runs import find_runs, open_run, verify_run

IDS = torch.arange(24).reshape(2, 12)


def out_json(capsys: Any) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_measures_and_finds_it_again(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = "[{step: magnitude, sparsity: 0.25}, {step: rtn, bits: 4, include: '*.mlp.*'}]"
    request = ["compress", str(model_folder), "--recipe", recipe, "--runs", str(tmp_path)]
    assert main([*request, "--json"]) == 0
    found = out_json(capsys)
    run = open_run(Path(found["run"]).name, tmp_path)
    assert (run.kind, run.finished, verify_run(run)) == ("compress", True, [])
    spec = read_spec(run.config["model"])
    assert spec.recipe == read_recipe(recipe)
    handle = load_model(spec, device="cpu")
    assert found["matrix_bits"] == handle.storage.matrix_bits
    assert found["coverage"] == handle.storage.coverage == 1
    assert run.config["weights"] == load_model(str(model_folder), device="cpu").digest()
    assert run.info["model"]["digest"] == handle.digest()
    rows = run.table("modules.parquet").to_pylist()
    assert len(rows) == 12
    base = load_model(str(model_folder), device="cpu").module
    for row in rows:  # the error over both steps, not of the last
        new, old = handle.module.get_submodule(row["module"]).weight, base.get_submodule(row["module"]).weight
        assert row["error"] == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-5)
        wide = 0.75 * 32 + 1 if ".attn." in row["module"] else 0.75 * 4 + 1 + 16 / old.shape[0]
        assert row["bits_per_parameter"] == pytest.approx(wide)
    assert [step["coverage"] for step in run.json("steps.json")] == [1.0, pytest.approx(2 / 3)]
    assert main(request) == 0
    out, err = capsys.readouterr()
    assert "is finished already" in err
    assert "transformer.h.1.mlp.c_proj" in out
    assert "magnitude-25%+rtn-4bit@*.mlp.*" in out
    assert out.splitlines()[-1] == str(run.path)
    assert len(find_runs(tmp_path, "compress")) == 1


@pytest.mark.parametrize("include", ["", ", include: ['*', lm_head]"])
@pytest.mark.parametrize("family", ["model", "neox", "llama"])
def test_a_saved_copy_is_an_ordinary_model(
    family: str, include: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: Any
) -> None:
    source = request.getfixturevalue(f"{family}_folder")
    target = tmp_path / "out" / "copy"
    recipe = f"[{{step: svd, share: 0.5}}, {{step: rtn, bits: 6{include}}}]"
    asked = ["compress", str(source), "--recipe", recipe, "--runs", str(tmp_path / "runs"), "--save", str(target)]
    assert main(asked) == 0
    capsys.readouterr()
    saved = load_model(str(target), device="cpu")
    handle = load_model(ModelSpec(str(source), recipe=read_recipe(recipe)), device="cpu")
    assert torch.equal(saved.logits(IDS), handle.logits(IDS))
    assert saved.tokens("the cat").tolist() == handle.tokens("the cat").tolist()
    names = {path.name for path in target.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.json"} <= names
    assert not any(name.endswith(".bin") for name in names)
    origin = json.loads((target / "recipe.json").read_text())
    assert read_recipe(json.dumps(origin["recipe"])) == handle.spec.recipe
    assert main(asked) == 2
    assert f"{target} is there already; --save writes a new folder." in capsys.readouterr().err


def test_what_acts_while_the_model_runs_is_not_saved(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    asked = ["compress", str(model_folder), "--runs", str(tmp_path / "runs")]
    asked += ["--recipe", "[{step: rtn, bits: 8}, {step: skip_layers, layers: 1}]"]
    assert main([*asked, "--save", str(tmp_path / "copy")]) == 2
    err = capsys.readouterr().err
    assert "skip_layers-1 acts while the model runs, and a folder of weights cannot hold it." in err
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "runs").exists()
    assert main([*asked, "--json"]) == 0
    found = out_json(capsys)
    rows = open_run(Path(found["run"]).name, tmp_path / "runs").table("modules.parquet").to_pylist()
    assert {row["module"].split(".")[2] for row in rows if row["bits"] == 0} == {"1"}


def test_a_save_that_fails_leaves_nothing(model_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from transformers import GPT2LMHeadModel

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GPT2LMHeadModel, "save_pretrained", full)
    asked = ["compress", str(model_folder), "--recipe", "int8", "--runs", str(tmp_path / "runs")]
    (tmp_path / "copy.part").mkdir()  # somebody's own
    assert main([*asked, "--save", str(tmp_path / "copy")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.part", "runs"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("[{step: rtn, bits: 11}]", "bits of rtn must lie in 2..8, got 11."),
        ("[{step: rtn, group: 48}]", "has 32, got group 48. Groups that fit all of them: 4, 8, 16, 32."),
        ("[{step: skip_layers, layers: 9}]", "the layers of"),
        ("[{step: rtn, include: '*.ffn.*'}]", "Unknown module or pattern (it matches nothing) '*.ffn.*'"),
        ("[{step: rtn, include: '*.mlp.*', least_coverage: 0.9}]", "and 33,178 (90.0%) were wanted"),
        ("int5", "Unknown recipe 'int5'; did you mean"),
    ],
)
def test_bad_requests_get_one_clear_line(
    recipe: str, message: str, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(["compress", str(model_folder), "--recipe", recipe, "--runs", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not find_runs(tmp_path)


def test_verify_compares_the_views_of_a_compressed_copy(llama_folder: Path, capsys: Any) -> None:
    for recipe in ("int4", "[{step: skip_layers, layers: 1}, {step: rtn, bits: 3}]", "[{step: activation_noise}]"):
        assert main(["models", "verify", str(llama_folder), "--recipe", recipe]) == 0
        assert "they agree" in capsys.readouterr().out


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"the cat {i} sat on the mat and the dog sat on log {i}.\n" for i in range(400)))
    return path


def training(model: Path, text: Path, root: Path, *more: str) -> list[str]:
    source = ["train", "--model", str(model), "--site", "resid_post.1", "--text", str(text), "--context", "32"]
    size = ["--d-sae", "64", "--rule-args", "k", "4", "--train.batch", "64", "--train.tokens", "1280"]
    return [*source, *size, "--runs", str(root), *more]


def test_a_dictionary_is_measured_in_a_compressed_copy(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(training(model_folder, text, tmp_path)) == 0
    capsys.readouterr()
    found = []
    for more in ([], ["--recipe", "[{step: rtn, bits: 3}]"], ["--recipe", "[{step: rtn, bits: null}]"]):
        assert main(["evaluate", "--runs", str(tmp_path), "--tokens", "1000", "--json", *more]) == 0
        found.append(out_json(capsys))
    plain, rough, nothing = found
    run = open_run(Path(rough["run"]).name, tmp_path)
    assert read_spec(run.config["model"]).recipe == read_recipe("[{step: rtn, bits: 3}]")
    assert run.info["model"]["recipe"] == run.config["model"]["recipe"]
    assert run.info["model"]["digest"] != open_run(Path(plain["run"]).name, tmp_path).info["model"]["digest"]
    assert "rtn-3bit" in run.slug
    assert len({one["run"] for one in found}) == 3
    assert rough["ce_clean"] != plain["ce_clean"] == nothing["ce_clean"]
    asked = ["features", "--runs", str(tmp_path), "--tokens", "1000", "--recipe", "[{step: skip_layers, layers: 0}]"]
    assert main([*asked, "--json"]) == 0
    described = open_run(Path(out_json(capsys)["run"]).name, tmp_path)
    assert described.config["model"]["recipe"] == [{"step": "skip_layers", "layers": [0]}]


def test_a_dictionary_of_a_compressed_model(model_folder: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = ["--recipe", "[{step: rtn, bits: 4}]"]
    assert main(training(model_folder, text, tmp_path, *recipe, "--json")) == 0
    run = open_run(Path(out_json(capsys)["run"]).name, tmp_path)
    spec = ModelSpec(str(model_folder), recipe=read_recipe(recipe[1]))
    assert read_spec(run.config["model"]) == spec
    assert run.config["weights"] == load_model(spec, device="cpu").digest()
    for more in ([], ["--recipe", "[{step: magnitude, sparsity: 0.5}]"]):
        assert main(["evaluate", "--runs", str(tmp_path), "--tokens", "500", "--json", *more]) == 0
        steps = open_run(Path(out_json(capsys)["run"]).name, tmp_path).config["model"]["recipe"]
        assert [step["step"] for step in steps] == (["rtn", "magnitude"] if more else ["rtn"])

    store = ["capture", "--model", str(model_folder), "--site", "resid_post.1", "--text", str(text), "--context", "32"]
    assert main([*store, "--tokens", "3000", "--runs", str(tmp_path), *recipe, "--json"]) == 0
    captured = open_run(Path(out_json(capsys)["run"]).name, tmp_path)
    assert captured.config["weights"] == run.config["weights"]
    assert "rtn-4bit" in captured.slug
    size = ["--d-sae", "64", "--rule-args", "k", "4", "--train.batch", "64", "--train.tokens", "1280"]
    assert main(["train", "--store", captured.ref, *size, "--runs", str(tmp_path), "--json"]) == 0
    again = open_run(Path(out_json(capsys)["run"]).name, tmp_path)
    assert again.config["model"] == run.config["model"]
    assert "rtn-4bit" in again.slug
    assert main(["train", "--store", captured.ref, "--runs", str(tmp_path), *recipe]) == 2
    assert "leave --recipe (and what goes with it) out" in capsys.readouterr().err


def test_the_weights_before_the_recipe_must_be_those_of_the_training(
    text: Path, tmp_path: Path, make_module: Any, tokenizer: Any, capsys: Any
) -> None:
    folder, root = tmp_path / "model", tmp_path / "runs"
    module = make_module("gpt2")
    module.save_pretrained(folder), tokenizer.save_pretrained(folder)
    assert main(training(folder, text, root)) == 0
    with torch.no_grad():
        module.transformer.h[0].mlp.c_fc.weight[0, 0] += 1
    module.save_pretrained(folder)
    assert main(["evaluate", "--runs", str(root), "--recipe", "int8"]) == 2
    assert "was made with other weights of" in capsys.readouterr().err


@pytest.mark.data
def test_stories260k_after_a_recipe(data_dir: Path, tmp_path: Path, capsys: Any) -> None:
    model = str(data_dir / "models" / "stories260K")
    target = str(tmp_path / "copy")
    assert main(["compress", model, "--recipe", "int4", "--runs", str(tmp_path / "runs"), "--save", target]) == 0
    assert main(["models", "verify", target]) == 0
    saved = load_model(target, device="cpu")
    handle = load_model(ModelSpec(model, recipe=read_recipe("int4")), device="cpu")
    assert torch.equal(saved.logits(IDS), handle.logits(IDS))
    assert saved.tokens("Once upon a time").tolist() == handle.tokens("Once upon a time").tolist()
    assert 4.1 < handle.storage.matrix_bits < 4.3
