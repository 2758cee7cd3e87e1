"""`mechscope export`: files that come back as the same dictionary, and no upload unless it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from app.command import main
from interp.runs import open_run
from sae.model import load_sae
from tests.sae.readers import layouts


@pytest.fixture
def run_id(tmp_path: Path, capsys: Any) -> str:
    """A run of kind "sae" in tmp_path/runs."""
    folder = layouts.write_sparsify(tmp_path / "layers.1", layouts.SPARSIFY["topk"])
    arguments = [
        "import",
        str(folder),
        "--model",
        "tiny",
        "--without-model",
        "--runs",
        str(tmp_path / "runs"),
        "--json",
    ]
    assert main(arguments) == 0
    return Path(json.loads(capsys.readouterr().out)["run"]).name


@pytest.mark.parametrize("format", ["sae-lens", "sparsify"])
def test_exported_files_are_imported_as_the_same_dictionary(
    format: str, run_id: str, tmp_path: Path, capsys: Any, no_network: None
) -> None:
    root, out = tmp_path / "runs", tmp_path / "out" / "layers.1"
    assert main(["export", str(out), "--sae", run_id, "--format", format, "--runs", str(root), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["published"] is None
    assert sorted(path.name for path in out.iterdir()) == sorted(result["files"])
    back = ["import", str(out), "--model", "tiny", "--without-model", "--runs", str(tmp_path / "again"), "--json"]
    assert main(back) == 0
    again = load_sae(open_run(Path(json.loads(capsys.readouterr().out)["run"]).name, tmp_path / "again"))
    first, x = load_sae(open_run(run_id, root)), layouts.rows()
    with torch.no_grad():
        assert torch.allclose(first(x)[0], again(x)[0], atol=1e-5)
        assert torch.allclose(first.encode(x).dense(), again.encode(x).dense(), atol=1e-5)
    assert main(["export", str(out), "--sae", run_id, "--format", format, "--runs", str(root)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_publishing_needs_its_option_and_a_token(
    run_id: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    calls: list[Any] = []

    class Api:
        def __init__(self, token: str) -> None:
            calls.append(token)

        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
            calls.append((repository, private))

        def create_commit(self, repository: str, operations: list[Any], *, commit_message: str) -> None:
            calls.append([one.path_in_repo for one in operations])

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    place = ["--sae", run_id, "--runs", str(tmp_path / "runs")]
    assert main(["export", str(tmp_path / "a"), *place, "--public"]) == 2
    assert "--public goes with --publish" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "a"), *place, "--publish", "user/name"]) == 2
    assert "needs a token of the hub" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert calls == []
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    assert main(["export", str(tmp_path / "a"), *place, "--publish", "user/name/layer_1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["published"] == "https://huggingface.co/user/name"
    assert calls == ["hf_x", ("user/name", True), ["layer_1/cfg.json", "layer_1/sae_weights.safetensors"]]
