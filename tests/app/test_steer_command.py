"""`mechscope steer`: a run with tables that say what the library says; found again; wrong requests refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.command import main
from interp.config import to_json
from interp.data import DataSpec
from interp.models import ModelSpec, load_model
from interp.runs import Run, find_runs, open_run, start_run, verify_run
from sae.config import SaeConfig, TargetConfig
from sae.model import Sae, load_sae
from sae.steering_effect import effect

TEXT = "the cat sat on the mat"


def write_sae(root: Path, model: Path, **config: Any) -> Run:
    """Write a random dictionary of resid_post.1 as a finished training leaves it."""
    place = {"model": to_json(ModelSpec(str(model))), "data": to_json(DataSpec("demo")), "site": "resid_post.1"}
    torch.manual_seed(5)
    sae = Sae(SaeConfig(32, 40, "topk", {"k": 4}, **config))
    sae.W_dec.data = torch.nn.functional.normalize(torch.randn_like(sae.W_dec), dim=1)
    sae.W_enc.data = torch.randn_like(sae.W_enc)
    with start_run("sae", {**place, "sae": to_json(sae.config)}, slug="random", root=root) as record:
        sae.save(record)
        record.finish({})
    return open_run(record.id, root)


@pytest.fixture(scope="module")
def trained(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_sae(tmp_path_factory.mktemp("steer") / "runs", model_folder)


def test_a_run_with_tables(trained: Run, capsys: Any, no_network: None) -> None:
    root = trained.root
    request = ["steer", "--sae", trained.id, "--latent", "7", "--value", "8", "--text", TEXT, "--runs", str(root)]
    request += ["--new-tokens", "5", "--top", "4"]
    assert main([*request, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    run = open_run(Path(found["run"]).name, root)
    assert (run.kind, run.finished, verify_run(run), run.parents) == ("steering", True, [], [trained.ref])
    handle = load_model(trained.config["model"]["name"], device="cpu")
    wanted = effect(
        handle, handle.tokens(TEXT), "resid_post.1", load_sae(trained), latent=7, how="clamp", value=8.0, top=4
    )
    assert run.table("positions.parquet").equals(wanted.positions)
    assert run.table("next_tokens.parquet").equals(wanted.next_tokens)
    assert found["kl_mean"] == pytest.approx(sum(wanted.kl) / len(wanted.kl))
    assert found["kl_last"] == wanted.kl[-1] > 0
    assert len(found["gained"]) == len(found["lost"]) == 4
    for one in found["gained"]:
        assert one["after"] > one["before"]
    assert len(run.json("continuations.json")["after"]["ids"]) == 5

    assert main(request) == 0
    out, err = capsys.readouterr()
    assert "is finished already" in err
    assert "gained" in out
    assert "kl_mean" in out
    assert out.splitlines()[-1] == str(run.path)
    assert main([*request[:-4], "--new-tokens", "0", "--how", "add", "--positions", "-1", "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    kl = open_run(Path(other["run"]).name, root).table("positions.parquet").column("kl").to_pylist()
    assert [value > 0 for value in kl] == [False] * (len(kl) - 1) + [True]
    assert other["continuations"] is None
    assert len(find_runs(root, "steering")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latent", "40", "--how", "ablate"], "latent must lie in 0..d_sae-1=39, got 40"),
        (["--latent", "1"], "clamp needs a value"),
        (["--latent", "1", "--value", "nan"], "value must be a finite number"),
        (["--latent", "1", "--how", "ablate", "--value", "1"], "takes no value"),
        (["--latent", "1", "--how", "ablate", "--new-tokens", "60"], "n_ctx=64"),
        (["--latent", "1", "--how", "ablate", "--positions", "50"], "positions must lie in 0.."),
        (["--latent", "1", "--how", "ablate", "--positions", "0", "-40"], "positions must lie in 0.."),
        (["--latent", "1", "--how", "ablate", "--new-tokens", "-1"], "new_tokens must be 0 or more"),
        (["--latent", "1", "--how", "ablate", "--temperature", "-1"], "temperature must be a number from 0 on"),
        (["--latent", "1", "--how", "ablate", "--top", "0"], "top must be 1 or more"),
        (["--latent", "1", "--how", "ablate", "--new-tokens", "0", "--text", "word " * 80], "Take a shorter text."),
    ],
)
def test_refusals_begin_no_run(trained: Run, options: list[str], message: str, capsys: Any) -> None:
    before = sorted(trained.root.glob("steering/*"))
    assert main(["steer", "--sae", trained.id, "--text", TEXT, "--runs", str(trained.root), *options]) == 2
    assert message in capsys.readouterr().err
    assert sorted(trained.root.glob("steering/*")) == before


def test_a_transcoder_is_refused(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    run = write_sae(tmp_path, model_folder, target=TargetConfig("transcoder"))
    request = ["steer", "--sae", run.id, "--latent", "1", "--how", "ablate", "--text", TEXT, "--runs", str(tmp_path)]
    assert main(request) == 2
    assert "A latent of a transcoder reads resid_post.1 and writes somewhere else" in capsys.readouterr().err
