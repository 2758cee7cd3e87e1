from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.command import main
from interp.config import to_json
from interp.data import DataSpec
from interp.models import ModelSpec
from interp.runs import find_runs, start_run
from sae.config import SaeConfig
from sae.features import load_features
from sae.model import Sae


@pytest.fixture
def root(model_folder: Path, tmp_path: Path) -> Path:
    """A folder of runs with one dictionary of the random GPT-2."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the cat {i} sat on the mat and the dog sat on log {i}.\n" for i in range(200)))
    sae = Sae(SaeConfig(32, 40, "topk", {"k": 4}))
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.W_dec):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    config = {
        "model": to_json(ModelSpec(str(model_folder))),
        "site": "resid_post.1",
        "data": to_json(DataSpec(str(text), context=32)),
        "sae": to_json(sae.config),
    }
    with start_run("sae", config, slug="gpt2.resid_post.1.topk-40", root=tmp_path / "runs") as run:
        sae.save(run)
        run.finish({})
    return tmp_path / "runs"


def call(root: Path, capsys: Any, *more: str) -> tuple[dict[str, Any], str]:
    assert main(["features", "--runs", str(root), "--json", *more]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_describes_the_newest_dictionary_on_the_text_of_its_training(root: Path, capsys: Any) -> None:
    result, err = call(root, capsys)
    assert {"run", "latents", "dead", "tokens", "seconds", "excluded_share"} <= set(result)
    assert result["latents"] == 40
    features = load_features(Path(result["run"]).name, root)
    dictionary = find_runs(root, "sae")[0]
    assert features.run.parents == [dictionary.ref]
    assert features.run.config["sae_run"] == dictionary.ref
    assert features.run.config["site"] == "resid_post.1"
    assert features.run.config["data"] == dictionary.config["data"]
    assert features.examples(0, "near_miss").num_rows == 10
    assert err.index("read: 0 of") < err.index("describe: 0 of 40 latents")
    again, err = call(root, capsys)
    assert again == result
    assert "is finished already" in err


def test_other_text_other_length_and_fewer_tokens(root: Path, capsys: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("the queen of the land went to the sea. " * 100)
    options = ["--text", str(other), "--tokens", "300", "--context", "16", "--n-top", "3"]
    result, _ = call(root, capsys, *options)
    features = load_features(Path(result["run"]).name, root)
    assert result["tokens"] == 300 // 16 * 15
    assert features.run.config["data"]["text"] == str(other)
    assert features.run.config["features"]["n_top"] == 3
    assert max(features.examples(0)["position"].to_pylist(), default=0) < 16


def test_other_text_by_its_own_field(root: Path, capsys: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"body": f"the queen went to the sea {i} times."}) + "\n" for i in range(99)))
    options = ["--text", str(other), "--field", "body", "--split", "validation", "--tokens", "300"]
    result, _ = call(root, capsys, *options)
    data = load_features(Path(result["run"]).name, root).run.config["data"]
    assert (data["field"], data["split"]) == ("body", "validation")


def test_mistakes_are_told(root: Path, capsys: Any) -> None:
    for options, message in (
        (["--sae", "nothing-1234"], "nothing-1234"),
        (["--tokens", "0"], "tokens must be 1 or more, got 0."),
        (["--split", "test"], "--split says how to read another text; name one with --text, or leave it out."),
        (["--outlier-norm", "0.5"], "outlier_norm is a multiple of the median norm"),
        (["--context", "9999"], "context must lie in 2..n_ctx=64"),
    ):
        assert main(["features", "--runs", str(root), *options]) == 2
        assert message in capsys.readouterr().err
