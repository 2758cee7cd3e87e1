"""`mechscope edit`: what it writes is what the library says; found again; a copy that loads; wrong requests refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.command import main
from app.commands.edit import Args
from app.editing import ask
from interp.hooks import capture
from interp.metrics import kl_divergence
from interp.models import load_model
from interp.runs import Run, find_runs, open_run, verify_run
from probes.editing import edit
from probes.saving import load_probe

WORDS = ("the", "cat", "sat", "on", "mat", "and", "dog", "log")
TEXT = "the cat sat on the king"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts that end in one of two words, which is their label."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("texts") / "ends.jsonl"
    rows = []
    for number in range(40):
        label = ("royal", "wet")[number % 2]
        start = " ".join(rng.choice(WORDS, 4))
        rows.append(json.dumps({"text": f"{start} {number} {'king' if label == 'royal' else 'sea'}", "label": label}))
    path.write_text("\n".join(rows))
    return path


def request(model: Path, texts: Path, root: Path, *more: str) -> list[str]:
    base = ["edit", str(model), "--data", str(texts), "--target", "wet", "--text", TEXT, "--C", "1"]
    return [*base, "--neutral-tokens", "600", "--new-tokens", "4", "--top", "3", "--runs", str(root), *more]


def made(asked: list[str], capsys: Any, root: Path) -> tuple[dict[str, Any], Run]:
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return found, open_run(Path(found["run"]).name, root)


def test_a_hyperplane(model_folder: Path, texts: Path, tmp_path: Path, capsys: Any, no_network: None) -> None:
    asked = request(model_folder, texts, tmp_path, "--site", "resid_post.0", "resid_post.1", "--p", "0.8")
    found, run = made(asked, capsys, tmp_path)
    assert (run.kind, run.finished, verify_run(run)) == ("edit", True, [])
    rows = run.table("probabilities.parquet").to_pylist()
    assert [row["site"] for row in rows] == ["resid_post.0", "resid_post.1"]
    for row in rows:
        assert row["before"] < 0.5
    assert rows[0]["after"] == pytest.approx(0.8, abs=1e-4)
    assert rows[1]["after"] >= 0.8 - 1e-4
    assert found["after"] == rows[1]["after"]
    assert found["kl"] > 0
    assert found["neutral_kl_mean"] > 0
    assert 0 <= found["held_out_reads_before"] <= found["held_out_reads_after"] <= 1
    assert len(found["gained"]) == len(found["lost"]) == 3
    assert len(found["continuations"]["after"]["ids"]) == 4
    assert main(asked) == 0
    out, err = capsys.readouterr()
    assert "is finished already" in err
    assert out.splitlines()[-1] == str(run.path)
    assert main(request(model_folder, texts, tmp_path, "--probe", run.path.name)) == 2
    assert "holds no probes" in capsys.readouterr().err


def test_a_study_gives_the_probe(model_folder: Path, texts: Path, tmp_path: Path, capsys: Any) -> None:
    study = ["probe", str(model_folder), "--data", str(texts), "--C", "1", "--resamples", "10", "--runs", str(tmp_path)]
    assert main([*study, "--sites", "resid_post.1", "--json"]) == 0
    probes = Path(json.loads(capsys.readouterr().out)["run"]).name
    asked = request(model_folder, texts, tmp_path, "--probe", probes, "--p", "0.7")
    found, run = made(asked, capsys, tmp_path)
    assert run.parents == [f"probes/{probes}"]
    handle = load_model(str(model_folder), device="cpu")
    probe = load_probe(open_run(probes, tmp_path), "probes/resid_post.1@last")
    tokens = handle.tokens(TEXT)
    before = handle.logits(tokens)[0, -1]
    with edit(handle, probe, "wet", 0.7), capture(handle, "resid_post.1") as taken:
        after = handle.logits(tokens)[0, -1]
    x = taken["resid_post.1"][0, -1:].double()
    assert found["after"] == pytest.approx(probe.predict_proba(x)[0, 1], abs=1e-6)
    assert found["kl"] == pytest.approx(float(kl_divergence(before, after)), abs=1e-6)


def test_a_study_gives_its_template_and_its_context(model_folder: Path, texts: Path, tmp_path: Path) -> None:
    """The last token that the model is edited at is the one that the probe was fitted at."""
    small = ["--C", "1", "--resamples", "5", "--sites", "resid_post.1", "--template", "so {}", "--context", "9"]
    assert main(["probe", str(model_folder), "--data", str(texts), *small, "--runs", str(tmp_path)]) == 0
    (study,) = find_runs(tmp_path, "probes")
    question = ask(Args(model=str(model_folder), probe=study.ref, target="wet", C=1.0, runs=tmp_path))
    assert all(text.startswith("so ") for text in question.texts)
    fitted = question.ids(np.flatnonzero(question.train))
    assert {len(ids) for ids in fitted} == {9}
    with capture(question.handle, "resid_post.1") as taken:
        question.handle.logits(torch.stack(fitted))
    rows = question.captured.rows("resid_post.1", "last")
    np.testing.assert_allclose(rows, taken["resid_post.1"][:, -1].cpu(), atol=1e-5)


def test_other_ways(model_folder: Path, texts: Path, tmp_path: Path, capsys: Any) -> None:
    asked = request(model_folder, texts, tmp_path, "--site", "resid_post.1", "--new-tokens", "0", "--how")
    for how in ("mean_difference", "leace"):
        found, _ = made([*asked, how], capsys, tmp_path)
        assert found["after"] > found["before"]
        assert found["continuations"] is None
    none, _ = made([*asked, "leace", "--strength", "0"], capsys, tmp_path)
    assert (none["size"], none["kl"], none["neutral_loss_delta"]) == (0, 0, 0)
    assert len(find_runs(tmp_path, "edit")) == 3


def test_casal_is_saved(model_folder: Path, texts: Path, tmp_path: Path, capsys: Any) -> None:
    asked = request(model_folder, texts, tmp_path, "--site", "resid_post.1", "--how", "casal", "--steps", "150")
    found, run = made([*asked, "--strength", "3"], capsys, tmp_path)
    assert found["loss_last"] < 0.5 * found["loss_first"]
    assert found["after"] > found["before"]
    folder = tmp_path / "copy"
    saved, again = made([*asked, "--strength", "3", "--save", str(folder)], capsys, tmp_path)
    assert (again.path, saved["saved"]) == (run.path, str(folder))
    base, copy = (load_model(str(path), device="cpu") for path in (model_folder, folder))
    changed = [
        name
        for (name, old), new in zip(base.module.state_dict().items(), copy.module.state_dict().values(), strict=True)
        if not torch.equal(old, new)
    ]
    assert sorted(changed) == sorted(run.tensors("module.safetensors"))
    assert json.loads((folder / "edit.json").read_text())["run"] == run.ref
    tokens = base.tokens(TEXT)
    divergence = kl_divergence(base.logits(tokens)[0, -1], copy.logits(tokens)[0, -1])
    assert found["kl"] == pytest.approx(float(divergence), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "dry"], "dry"),
        (["--p", "1"], "p must lie between 0 and 1, got 1.0"),
        (["--save", "here"], "--save needs --how casal"),
        (["--how", "casal", "--site", "mlp_out.1"], "casal trains one block"),
        (["--site", "resid_post.7"], "layers are 0..2"),
        (["--position", "middle"], "A position is last, mean, or a whole number"),
        (["--steps", "0"], "steps must be 1 or more, got 0"),
        (["--text", " "], "--text is what the model reads"),
        (["--neutral-tokens", "10"], "neutral_tokens must be 512 or more"),
        (["--new-tokens", "99"], "more than the n_ctx=64"),
    ],
)
def test_wrong_requests(
    options: list[str], message: str, model_folder: Path, texts: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(request(model_folder, texts, tmp_path, *options)) == 2
    assert message in capsys.readouterr().err
    assert find_runs(tmp_path, "edit") == []
