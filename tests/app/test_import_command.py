"""`mechscope import`: a stranger's dictionary becomes a run that the other commands take; wrong places are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.command import main
from interp.runs import find_runs, open_run, verify_run
from sae.model import load_sae
from tests.sae.readers import layouts
from tests.sae.readers.layouts import Case

WIDTH = 32
"""d_model of the tiny model."""


def wide(folder: Path, width: int = WIDTH, **config: Any) -> Path:
    """Write a ReLU dictionary of this width in sae-lens' layout."""
    tensors: dict[str, Tensor] = {
        "W_enc": layouts.numbers(width, 40, seed=1, scale=0.3),
        "b_enc": layouts.numbers(40, seed=2, scale=0.1),
        "W_dec": layouts.numbers(40, width, seed=3, scale=0.3),
        "b_dec": layouts.numbers(width, seed=4, scale=0.1),
    }
    settings = layouts.lens_config("standard", d_in=width, d_sae=40, **config)
    return layouts.write_lens(folder, Case("relu", tensors, settings, lambda t, x: x, lambda t, z, x: z))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"the cat {i} sat on the mat and the dog sat on log {i}.\n" for i in range(200)))
    return path


def request(folder: Path, model: Path, text: Path, root: Path, *more: str) -> list[str]:
    return [
        "import",
        str(folder),
        "--model",
        str(model),
        "--text",
        str(text),
        "--context",
        "32",
        "--runs",
        str(root),
        *more,
    ]


def test_an_imported_dictionary_is_a_run_like_any_other(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any, no_network: None
) -> None:
    root, folder = tmp_path / "runs", wide(tmp_path / "d")
    arguments = request(folder, model_folder, text, root, "--json")
    assert main(arguments) == 0
    made = json.loads(capsys.readouterr().out)
    run = open_run(Path(made["run"]).name, root)
    assert (made["format"], made["site"], made["rule"], made["d_sae"]) == ("sae-lens", "resid_post.2", "relu", 40)
    assert run.config["weights"] == run.info["model"]["digest"]
    assert verify_run(run) == []
    tensors = wide_tensors(folder)
    x = layouts.numbers(20, WIDTH, seed=5)
    wanted = layouts.lens_pre(tensors, x).relu()
    with torch.no_grad():
        recon, code = load_sae(run)(x)
    assert torch.allclose(code.dense(), wanted * tensors["W_dec"].norm(dim=1), atol=1e-4)
    assert torch.allclose(recon, layouts.lens_decode(tensors, wanted, x), atol=1e-4)

    assert main(arguments) == 0
    assert "is finished already" in capsys.readouterr().err
    assert main(["evaluate", "--sae", run.id, "--tokens", "1000", "--runs", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fvu"] > 0
    assert main(["features", "--sae", run.id, "--tokens", "1000", "--runs", str(root), "--json"]) == 0
    assert len(find_runs(root, "features", finished=True)) == 1


def wide_tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "sae_weights.safetensors")


def test_the_same_files_elsewhere_are_the_same_run_and_others_are_not(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    root = tmp_path / "runs"
    for name in ("a", "b"):
        assert main(request(wide(tmp_path / name), model_folder, text, root, "--without-model")) == 0
    assert len(find_runs(root, "sae")) == 1
    changed = wide(tmp_path / "c", apply_b_dec_to_input=False)
    assert main(request(changed, model_folder, text, root, "--without-model")) == 0
    assert len(find_runs(root, "sae")) == 2


def test_a_dictionary_of_another_width_or_site_is_refused(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    root = tmp_path / "runs"
    assert main(request(wide(tmp_path / "d", 48), model_folder, text, root)) == 2
    error = capsys.readouterr().err
    assert "reads activations of width 48, resid_post.2 of" in error
    assert "has 32." in error
    assert main(request(wide(tmp_path / "e", 128), model_folder, text, root)) == 2
    assert "Sites of that width: mlp_act.0, mlp_act.1, mlp_act.2." in capsys.readouterr().err
    assert main(request(wide(tmp_path / "f"), model_folder, text, root, "--site", "resid_post.7")) == 2
    assert "Unknown site" in capsys.readouterr().err
    assert find_runs(root, "sae") == []


def test_what_the_files_do_not_say_has_to_be_given(text: Path, tmp_path: Path, capsys: Any, no_network: None) -> None:
    hidden = wide(tmp_path / "d", metadata={"model_name": "../secret", "hook_name": "ln2.hook_normalized"})
    assert main(["import", str(hidden), "--runs", str(tmp_path / "runs")]) == 2
    assert "which model the dictionary belongs to; name it with --model" in capsys.readouterr().err
    assert main(["import", str(hidden), "--model", "tiny", "--runs", str(tmp_path / "runs")]) == 2
    assert "give it with --site" in capsys.readouterr().err


def test_a_folder_without_a_dictionary_is_refused(tmp_path: Path, capsys: Any) -> None:
    folder = layouts.write_lens(tmp_path / "d", layouts.LENS["transcoder"])
    assert main(["import", str(tmp_path), "--runs", str(tmp_path / "runs")]) == 2
    assert "holds no dictionary" in capsys.readouterr().err
    assert main(["import", str(folder), "--format", "sae_lens", "--runs", str(tmp_path / "runs")]) == 2
    assert "did you mean 'sae-lens'" in capsys.readouterr().err
