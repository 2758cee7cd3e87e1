"""Transcoders of other libraries: read at one site, written at another, by their original formulas; and back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.command import main
from interp.hooks import capture
from interp.models import load_model
from interp.runs import Run, find_runs, open_run, verify_run
from sae.model import load_sae
from tests.sae.readers import layouts
from tests.sae.readers.layouts import Case

READS, WRITES, D_SAE, K = 32, 128, 40, 4
"""d_model of the tiny model, width of its mlp_act, latents."""


def tensors(*names: str) -> dict[str, Tensor]:
    """Return tensors of a transcoder from resid_mid to mlp_act in sae-lens' layout."""
    every = {
        "W_enc": layouts.numbers(READS, D_SAE, seed=1, scale=0.3),
        "b_enc": layouts.numbers(D_SAE, seed=2, scale=0.1),
        "W_dec": layouts.numbers(D_SAE, WRITES, seed=3, scale=0.3),
        "b_dec": layouts.numbers(WRITES, seed=4, scale=0.1),
        "threshold": 0.2 + layouts.numbers(D_SAE, seed=5, scale=0.1).abs(),
        "W_skip": layouts.numbers(WRITES, READS, seed=6, scale=0.2),
    }
    return {name: every[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", *names)}


def lens(kind: str, *names: str) -> Case:
    """Return a transcoder of sae-lens with its code and reconstruction, written from its definition."""
    about = {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.mlp.hook_post"}
    settings = layouts.lens_config(kind, d_in=READS, d_sae=D_SAE, d_out=WRITES, apply_b_dec_to_input=False)
    settings["metadata"] = settings["metadata"] | about

    def code(t: dict[str, Tensor], x: Tensor) -> Tensor:
        pre = x @ t["W_enc"] + t["b_enc"]
        return torch.where(pre > t["threshold"], pre, 0.0).relu() if "threshold" in t else pre.relu()

    def decode(t: dict[str, Tensor], z: Tensor, x: Tensor) -> Tensor:
        return z @ t["W_dec"] + t["b_dec"] + (x @ t["W_skip"].T if "W_skip" in t else 0.0)

    return Case("relu", tensors(*names), settings, code, decode)


LENS = {
    "transcoder": lens("transcoder"),
    "skip": lens("skip_transcoder", "W_skip"),
    "jumprelu": lens("jumprelu_transcoder", "threshold"),
    "jumprelu and skip": lens("jumprelu_skip_transcoder", "threshold", "W_skip"),
}


def call(capsys: Any, root: Path, *words: str) -> dict[str, Any]:
    assert main([*words, "--runs", str(root), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def check(run: Run, wanted: Tensor, x: Tensor) -> None:
    """Assert that the run's transcoder reconstructs `wanted` from `x`."""
    assert verify_run(run) == []
    with torch.no_grad():
        assert torch.allclose(load_sae(run)(x)[0], wanted, atol=1e-4)


@pytest.mark.parametrize("name", LENS)
def test_sae_lens_lands_at_both_sites_and_goes_out_again(
    name: str, model_folder: Path, tmp_path: Path, capsys: Any, no_network: None
) -> None:
    root, case = tmp_path / "runs", LENS[name]
    folder = layouts.write_lens(tmp_path / "d", case)
    found = call(capsys, root, "import", str(folder), "--model", str(model_folder))
    assert (found["site"], found["target_site"]) == ("resid_mid.1", "mlp_act.1")
    run = open_run(Path(found["run"]).name, root)
    assert run.config["target_site"] == "mlp_act.1"
    x = layouts.numbers(20, READS, seed=7)
    wanted = case.decode(case.tensors, case.encode(case.tensors, x), x)
    check(run, wanted, x)

    call(capsys, root, "export", str(tmp_path / "out"), "--sae", run.id)
    written = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    assert (written["hook_name"], written["hook_name_out"]) == ("blocks.1.hook_resid_mid", "blocks.1.mlp.hook_post")
    again = call(capsys, tmp_path / "again", "import", str(tmp_path / "out"), "--model", str(model_folder))
    assert (again["site"], again["target_site"]) == ("resid_mid.1", "mlp_act.1")
    check(open_run(Path(again["run"]).name, tmp_path / "again"), wanted, x)


def test_what_is_imported_is_evaluated_at_the_site_that_it_writes(
    model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    root, case = tmp_path / "runs", LENS["skip"]
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the cat {i} sat on the mat and the dog sat on log {i}.\n" for i in range(60)))
    folder = layouts.write_lens(tmp_path / "d", case)
    words = ("--model", str(model_folder), "--text", str(text), "--context", "32")
    run = open_run(Path(call(capsys, root, "import", str(folder), *words)["run"]).name, root)
    measured = call(capsys, root, "evaluate", "--sae", run.id, "--tokens", "300", "--text", str(text))
    handle = load_model(str(model_folder), device="cpu")
    tokens = handle.tokens(text.read_text()[:120])
    with capture(handle, ["resid_mid.1", "mlp_act.1"]) as seen, torch.no_grad():
        handle.forward(tokens)
        x, y = seen["resid_mid.1"][0, 1:], seen["mlp_act.1"][0, 1:]
        left = (load_sae(run)(x)[0] - y).square().sum() / (y - y.mean(0)).square().sum()
    assert measured["fvu"] == pytest.approx(float(left), rel=0.5)  # the same transcoder on other tokens of that text
    assert measured["fvu"] > 1  # random numbers explain nothing


def sparsify() -> Case:
    """Return a skip transcoder of sparsify from resid_mid to mlp_out, of one width."""
    every = {
        "encoder.weight": layouts.numbers(D_SAE, READS, seed=11, scale=0.4),
        "encoder.bias": layouts.numbers(D_SAE, seed=12, scale=0.2),
        "W_dec": torch.nn.functional.normalize(layouts.numbers(D_SAE, READS, seed=13), dim=1),
        "b_dec": layouts.numbers(READS, seed=14, scale=0.3),
        "W_skip": layouts.numbers(READS, READS, seed=15, scale=0.2),
    }
    settings = layouts.sparsify_config(transcode=True, skip_connection=True, d_in=READS, num_latents=D_SAE, k=K)

    def decode(t: dict[str, Tensor], z: Tensor, x: Tensor) -> Tensor:
        return z @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T

    return Case("topk", every, settings, lambda t, x: layouts.largest(layouts.sparsify_pre(t, x), K), decode)


def test_sparsify_names_what_is_written_and_the_rest_has_to_be_given(
    model_folder: Path, tmp_path: Path, capsys: Any, no_network: None
) -> None:
    root, case = tmp_path / "runs", sparsify()
    folder = layouts.write_sparsify(tmp_path / "layers.1.mlp", case)
    assert main(["import", str(folder), "--model", str(model_folder), "--runs", str(root)]) == 2
    assert "read an MLP's input after its norm, which is no site here" in capsys.readouterr().err
    place = ("--model", str(model_folder), "--site", "resid_mid.1")
    found = call(capsys, root, "import", str(folder), *place)
    assert (found["site"], found["target_site"]) == ("resid_mid.1", "mlp_out.1")
    x = layouts.numbers(20, READS, seed=7)
    run = open_run(Path(found["run"]).name, root)
    check(run, case.decode(case.tensors, case.encode(case.tensors, x), x), x)
    out = tmp_path / "out" / "layers.1.mlp"
    call(capsys, root, "export", str(out), "--sae", run.id, "--format", "sparsify")
    again = call(capsys, tmp_path / "again", "import", str(out), *place)
    check(open_run(Path(again["run"]).name, tmp_path / "again"), load_sae(run)(x)[0].detach(), x)


def test_gemma_scope_transcoders_need_both_sites(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_1"
    every = tensors("threshold")
    layouts.write_gemma(folder, every)
    request = ["import", str(folder), "--model", str(model_folder), "--runs", str(tmp_path / "runs"), "--json"]
    assert main([*request, "--site", "resid_mid.1"]) == 2
    assert "do not say which site it writes; give it with --target-site" in capsys.readouterr().err
    assert main([*request, "--site", "resid_mid.1", "--target-site", "mlp_act.1"]) == 0
    run = open_run(Path(json.loads(capsys.readouterr().out.splitlines()[-1])["run"]).name, tmp_path / "runs")
    case = LENS["jumprelu"]
    x = layouts.numbers(20, READS, seed=7)
    check(run, case.decode(every, case.encode(every, x), x), x)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target-site", "mlp_out.1"), "The dictionary writes activations of width 128, mlp_out.1 of"),
        (("--site", "mlp_act.0"), "The dictionary reads activations of width 32, mlp_act.0 of"),
        (("--target-site", "attn_out.1"), "computed after resid_mid.1, which attn_out.1 is not"),
    ],
)
def test_sites_that_do_not_fit_are_refused(
    words: tuple[str, ...], message: str, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = layouts.write_lens(tmp_path / "d", LENS["transcoder"])
    assert main(["import", str(folder), "--model", str(model_folder), *words, "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert find_runs(tmp_path / "runs", "sae") == []


def test_a_dictionary_has_no_second_site(tmp_path: Path, capsys: Any) -> None:
    folder = layouts.write_lens(tmp_path / "d", layouts.LENS["standard"])
    words = ["import", str(folder), "--without-model", "--target-site", "mlp_out.3", "--runs", str(tmp_path / "runs")]
    assert main(words) == 2
    assert "--target-site is for transcoders" in capsys.readouterr().err
