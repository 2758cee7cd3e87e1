"""`mechscope evaluate --studies`: a run whose tables say what the library says, and requests that make no sense."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from app.command import main
from app.studies.pooled import pool
from app.studies.sparse_probing import sparse_probing
from app.studies.spurious_removal import spurious_removal
from app.studies.targeted_perturbation import targeted_perturbation
from interp.config import to_json
from interp.data import DataSpec
from interp.data.labelled import read_labelled
from interp.models import ModelSpec, load_model
from interp.runs import Run, find_runs, open_run, start_run, verify_run
from sae.config import SaeConfig
from sae.model import Sae, load_sae

SUBJECTS = {"animal": ("cat", "dog", "log"), "court": ("king", "queen", "land"), "water": ("sea", "calm", "went")}


@pytest.fixture(scope="module")
def trained(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A random dictionary of resid_post.1 as a finished training leaves it."""
    place = {"model": to_json(ModelSpec(str(model_folder))), "data": to_json(DataSpec("demo")), "site": "resid_post.1"}
    torch.manual_seed(5)
    sae = Sae(SaeConfig(32, 40, "topk", {"k": 4}))
    sae.W_dec.data = torch.nn.functional.normalize(torch.randn_like(sae.W_dec), dim=1)
    sae.W_enc.data = torch.randn_like(sae.W_enc)
    root = tmp_path_factory.mktemp("labelled") / "runs"
    with start_run("sae", {**place, "sae": to_json(sae.config)}, slug="random", root=root) as record:
        sae.save(record)
        record.finish({})
    return open_run(record.id, root)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """144 texts with a topic of three, a truth value of two, and a length that goes along with the latter by half."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = []
    for number in range(144):
        topic = sorted(SUBJECTS)[number % 3]
        first, second, third = SUBJECTS[topic]
        good = number // 3 % 2 == 0
        long = number // 6 % 2 == 0
        text = f"{number} the {first} and the {second} {'sat' if good else 'ran'}" + f" by the {third}" * (1 + 3 * long)
        rows.append({"text": text, "topic": topic, "good": good, "long": long})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ask(root: Path, *words: str) -> list[str]:
    return ["evaluate", "--runs", str(root), "--json", "--labelled.context", "32", *words]


def test_all_three_in_two_runs(trained: Run, texts: Path, capsys: Any, no_network: None) -> None:
    root = trained.root
    request = ask(
        root, "--labelled.file", str(texts), "--studies", "sparse_probing", "tpp", "--labelled.label", "topic"
    )
    assert main(request) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    run = open_run(Path(found["run"]).name, root)
    assert (run.kind, run.finished, verify_run(run), run.parents) == ("labelled", True, [], [trained.ref])
    handle = load_model(trained.config["model"]["name"], device="cpu")
    labelled = read_labelled(texts, label="topic").sample(2000)
    pooled = pool(handle, "resid_post.1", load_sae(trained), labelled.texts, context=32)
    probing = sparse_probing(pooled, labelled)
    rows = run.table("probing.parquet").to_pylist()
    assert [(row["label"], row["k"], row["accuracy"]) for row in rows] == [
        (one.label, one.k, one.accuracy) for one in probing.scores
    ]
    assert found["probing_latents_5"] == pytest.approx(probing.mean("latents", 5))
    tpp = targeted_perturbation(pooled, labelled)
    assert {row["n"]: row["score"] for row in run.table("tpp.parquet").to_pylist()} == tpp.scores
    drops = {
        (row["n"], row["ablated"], row["probe"]): row["drop"] for row in run.table("tpp_drops.parquet").to_pylist()
    }
    assert drops[2, "court", "water"] == tpp.drops[2][1][2]

    request = ask(root, "--labelled.file", str(texts), "--studies", "scr", "--labelled.label", "good")
    assert main([*request, "--labelled.spurious", "long"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    labelled, long = (read_labelled(texts, label=name).sample(2000) for name in ("good", "long"))
    pooled = pool(handle, "resid_post.1", load_sae(trained), labelled.texts, context=32)
    target, other = (torch.from_numpy(one.is_class("True")) for one in (labelled, long))
    scr = spurious_removal(pooled, target, other, torch.from_numpy(labelled.split()))
    assert (found["scr_base"], found["scr_clean"]) == (scr.base, scr.clean)
    table = open_run(Path(found["run"]).name, root).table("scr.parquet").to_pylist()
    assert {row["n"]: row["accuracy"] for row in table} == scr.ablated


def test_the_same_request_finds_its_run_and_another_file_does_not(
    trained: Run, texts: Path, tmp_path: Path, capsys: Any
) -> None:
    def number(file: Path) -> str:
        words = ("--labelled.file", str(file), "--studies", "sparse_probing", "--labelled.label", "good")
        assert main(ask(trained.root, *words, "--labelled.texts", "60")) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])["run"]

    moved, changed = tmp_path / "texts.jsonl", tmp_path / "changed" / "texts.jsonl"
    moved.write_bytes(texts.read_bytes())
    changed.parent.mkdir()
    changed.write_text(texts.read_text(encoding="utf-8").replace("1 the", "9 the"), encoding="utf-8")
    first = number(texts)
    assert number(moved) == first
    assert number(changed) != first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--studies", "tpp"), "name their file with --labelled.file"),
        (("--labelled.file", "FILE"), "--labelled goes with --studies"),
        (("--studies", "scr", "--labelled.file", "FILE"), "name its field with --labelled.spurious"),
        (("--studies", "tpp", "--labelled.file", "FILE", "--labelled.label", "good"), "TPP needs three labels or more"),
        (
            ("--studies", "scr", "--labelled.file", "FILE", "--labelled.label", "good", "--labelled.spurious", "topic"),
            r"scr needs two values in the field 'topic', got 3",
        ),
        (("--studies", "tpp", "--labelled.file", "FILE", "--tokens", "5"), "leave --tokens out"),
        (("--studies", "tpp", "--labelled.file", "FILE", "--labelled.texts", "0"), "texts must be 1 or more, got 0"),
        (("--studies", "tpp", "--labelled.file", "FILE", "--labelled.label", "topc"), "did you mean 'topic'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_run_begins(
    words: tuple[str, ...], message: str, trained: Run, texts: Path, capsys: Any
) -> None:
    before = len(find_runs(trained.root))
    assert main(ask(trained.root, *(str(texts) if word == "FILE" else word for word in words))) != 0
    said = capsys.readouterr()
    assert re.search(message, said.out + said.err), said
    assert len(find_runs(trained.root)) == before


@pytest.mark.data
def test_reviews_whose_file_names_no_columns(trained: Run, data_dir: Path, capsys: Any) -> None:
    path = data_dir / "probes" / "sst2" / "dev.tsv"
    words = ("--studies", "sparse_probing", "--labelled.file", str(path), "--labelled.names", "text", "label")
    assert main(ask(trained.root, *words, "--labelled.texts", "80")) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["texts"] == 80
    rows = open_run(Path(found["run"]).name, trained.root).table("probing.parquet").to_pylist()
    assert {row["label"] for row in rows} == {"1"}
    assert len(rows) == 7
