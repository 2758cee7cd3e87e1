"""`mechscope compare` from the command line: two models, a recipe, a dictionary, nulls, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.command import main
from app.commands.compare import Args
from app.sweeps.comparison import subject_of, table
from interp.compression import read_recipe, read_spec
from interp.compression.compare import load_results
from interp.config import to_json
from interp.data import DataSpec
from interp.models import ModelSpec, load_model
from interp.runs import find_runs, open_run, start_run, verify_run
from sae.config import SaeConfig
from sae.model import Sae

INT4 = "[{step: rtn, bits: 4}]"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"the cat {i} sat on the mat and the dog sat on log {i}.\n" for i in range(60)))
    return str(path)


@pytest.fixture(scope="module")
def tuned(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the same model after a little training, or what stands for it."""
    handle = load_model(str(model_folder), device="cpu")
    with torch.no_grad():
        for weight in handle.module.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * (weight.ndim > 1)
    folder = tmp_path_factory.mktemp("tuned") / "gpt2-tuned"
    handle.module.save_pretrained(folder)
    handle.tokenizer.save_pretrained(folder)
    return str(folder)


def write_dictionary(
    folder: Path, root: Path, site: str = "resid_post.1", d_in: int = 32, spec: ModelSpec | None = None
) -> str:
    sae = Sae(SaeConfig(d_in, 40, "topk", {"k": 4}))
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.W_dec):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    config = {
        "model": to_json(spec or ModelSpec(str(folder))),
        "site": site,
        "data": to_json(DataSpec("demo", context=32)),
        "sae": to_json(sae.config),
        "weights": load_model(str(folder), device="cpu").digest(),
    }
    with start_run("sae", config, slug=f"gpt2.{site}", root=root) as run:
        sae.save(run)
        run.finish({})
    return run.ref


def call(root: Path, capsys: Any, *arguments: str) -> tuple[dict[str, Any], str]:
    assert main(["compare", *arguments, "--context", "32", "--runs", str(root), "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_a_recipe_with_a_dictionary(model_folder: Path, text: str, tmp_path: Path, capsys: Any) -> None:
    sae = write_dictionary(model_folder, tmp_path)
    arguments = [str(model_folder), "--recipe", INT4, "--sae", sae, "--text", text, "--least", "3"]
    result, err = call(tmp_path, capsys, *arguments)
    run = open_run(Path(result["run"]).name, tmp_path)
    assert (run.kind, run.parents) == ("compare", [sae])
    assert verify_run(run) == []
    assert read_spec(run.config["b"]).recipe[0].name == "rtn"
    assert run.config["sae_run"] == sae
    assert run.config["panels"]["survival"]["least"] == 3
    results = load_results(run)
    assert list(results) == ["behaviour", "drift", "cka", "survival", "dictionary", "heads", "lens"]
    assert result["kl_mean"] == results["behaviour"].summary["kl_mean"] > 0
    assert result["bits_b"] < 32
    assert 0 <= result["kept_share"] <= 1
    assert results["survival"].tables["latents"].num_rows == 40
    assert len(run.table("vocab.parquet")) == 300
    assert "operations, about" in err
    assert "compare: 0 of" in err
    again, err = call(tmp_path, capsys, *arguments)
    assert again == result
    assert "is finished already" in err


def test_another_folder_and_some_panels(model_folder: Path, tuned: str, text: str, tmp_path: Path, capsys: Any) -> None:
    write_dictionary(model_folder, tmp_path)
    command = ["compare", str(model_folder), tuned, "--text", text, "--context", "32", "--runs", str(tmp_path)]
    assert main([*command, "--panels", "lens", "drift"]) == 0
    out, err = capsys.readouterr()
    assert "features are not compared; --sae sae/gpt2.resid_post.1" in err
    assert Path(out.splitlines()[-1]).is_dir()
    run = find_runs(tmp_path, "compare")[0]
    assert run.config["b"]["name"] == tuned
    assert list(run.config["panels"]) == ["drift", "lens"]
    assert run.slug == f"{model_folder.name}-vs-gpt2-tuned"
    assert "drift relative_error" in out
    assert "resid_post.2" in out


def test_nulls_have_runs_of_their_own(model_folder: Path, text: str, tmp_path: Path, capsys: Any) -> None:
    arguments = [
        str(model_folder),
        "--recipe",
        INT4,
        "--text",
        text,
        "--panels",
        "behaviour",
        "--nulls",
        "weight-noise",
    ]
    result, err = call(tmp_path, capsys, *arguments)
    null = open_run(Path(result["nulls"]["weight-noise"]).name, tmp_path)
    main_run = open_run(Path(result["run"]).name, tmp_path)
    assert null.config["null_of"] == main_run.ref
    assert null.parents == [main_run.ref]
    assert null.summary["kl_mean"] == pytest.approx(result["kl_mean"], rel=0.05)
    assert "nulls are matched to it there" in err
    again, err = call(tmp_path, capsys, *arguments)
    assert again == result
    assert "of strength" not in err


def test_a_model_with_itself_has_no_null(model_folder: Path, text: str, tmp_path: Path, capsys: Any) -> None:
    name = str(model_folder)
    result, _ = call(tmp_path, capsys, name, name, "--text", text, "--panels", "behaviour")
    assert result["loss_delta"] == result["kl_mean"] == 0
    assert result["top1_agreement"] == 1
    more = ["--text", text, "--panels", "behaviour", "--context", "32", "--nulls", "random-prune"]
    assert main(["compare", name, name, *more, "--runs", str(tmp_path)]) == 2
    assert "The two models are equal" in capsys.readouterr().err


def test_a_dictionary_of_other_activations_of_the_same_weights_is_mentioned(
    model_folder: Path, text: str, tmp_path: Path, capsys: Any
) -> None:
    running = "[{step: quantise_activations, bits: 4}]"
    spec = ModelSpec(str(model_folder), recipe=read_recipe(running))
    sae = write_dictionary(model_folder, tmp_path, spec=spec)
    asked = [str(model_folder), "--sae", sae, "--text", text, "--panels", "survival"]
    other = "was trained on A's weights under another recipe (activations-4bit@resid_post.*)"
    assert other in call(tmp_path, capsys, *asked, "--recipe", INT4)[1]
    assert "was trained on B, not A" in call(tmp_path, capsys, *asked, "--recipe", running)[1]
    assert "was trained on" not in call(tmp_path, capsys, *asked, "--recipe-a", running)[1]


def test_a_sweep_compares_the_very_model_of_the_dictionary(model_folder: Path, tmp_path: Path) -> None:
    spec = ModelSpec(str(model_folder), dtype="bfloat16", recipe=read_recipe(INT4))
    sae = open_run(write_dictionary(model_folder, tmp_path, spec=spec), tmp_path)
    asked = subject_of(Args(a="", recipe="int3"), sae)
    assert (asked.a, asked.model_dtype, asked.recipe, asked.sae) == (spec.name, "bfloat16", "int3", sae.ref)
    assert read_recipe(asked.recipe_a or "") == spec.recipe
    assert not {"compare.model_dtype", "compare.revision", "compare.recipe_a"} & table().keys()
    assert "compare.revision_b" in table()


def test_mistakes_are_told(model_folder: Path, neox_folder: Path, text: str, tmp_path: Path, capsys: Any) -> None:
    name = str(model_folder)
    far = write_dictionary(model_folder, tmp_path, "resid_post.5")
    wide = write_dictionary(model_folder, tmp_path, "resid_post.2", d_in=48)
    for options, message in (
        ([name], "Two models are needed: give a second one, or --recipe"),
        ([name, name, "--panels", "behavior"], "behaviour"),
        ([name, name, "--panels", "survival"], "The panel survival needs a dictionary: give --sae RUN"),
        ([name, name, "--seed", "-1"], "seed must lie in 0..2^63-1, got -1."),
        ([name, name, "--tokens", "0"], "tokens must be 1 or more, got 0."),
        ([name, "--recipe", "[{step: rtn, bits: 1}]"], "bits"),
        ([name, name, "--sae", far], "resid_post.5 lies beyond this model: its layers are 0..2"),
        ([name, name, "--sae", wide], "reads d_in=48 numbers, but resid_post.2 of model a"),
        ([name, "tiny"], "has 300 tokens, tiny 4,096"),
        ([name, name, "--context", "65"], "context must lie in 2..n_ctx=64"),
        ([name, name, "--kept", "0.2"], "blurred=0.5, kept=0.2"),
        ([name, name, "--threshold", "2"], "threshold must lie in (0, 1], got 2"),
    ):
        assert main(["compare", *options, "--text", text, "--runs", str(tmp_path)]) == 2, options
        assert message in capsys.readouterr().err
    assert find_runs(tmp_path, "compare") == []
