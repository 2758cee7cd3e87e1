"""`mechscope probe`: a run that says what the library says; found again; wrong requests refused without a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.command import main
from app.labelled_texts import Fields, digest, read_texts
from interp.attribution.randomisation import randomised
from interp.data import Labelled
from interp.models import ModelHandle, load_model
from interp.runs import Run, find_runs, open_run, verify_run
from probes import LogisticProbe, load_probe
from probes.capturing import capture_texts
from probes.splits import grouped_split
from probes.sweep import sweep

SMALL = ("--texts", "60", "--C", "1", "--resamples", "20", "--sites", "resid_post.1")


def probe(*options: str, root: Path, model: str = "tiny") -> int:
    return main(["probe", model, "--runs", str(root), *options])


def answer(capsys: Any) -> dict[str, Any]:
    """Return the one JSON line that a command wrote to stdout."""
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


@pytest.fixture(scope="module")
def tiny() -> ModelHandle:
    return load_model("tiny", device="cpu")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Twenty towns, each in a true and a false statement."""
    rows = [
        {"statement": f"The town of {town} is in the {where}.", "label": int(where == "north"), "town": town}
        for town in (f"T{i}own" for i in range(20))
        for where in ("north", "south")
    ]
    path = tmp_path / "towns.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_run_holds_what_the_library_finds(tiny: ModelHandle, tmp_path: Path, capsys: Any) -> None:
    options = ("--data", "tense", "--positions", "last", "-2", "--ks", "1", "--json")
    assert probe(*SMALL, *options, root=tmp_path) == 0
    run = open_run(answer(capsys)["run"], root=tmp_path)
    assert verify_run(run) == []
    labelled = read_texts("tense", Fields()).sample(60, 0)
    places = (["resid_post.1"], ["last", "-2"])
    acts, random = (capture_texts(one, labelled.texts, *places) for one in (tiny, randomised(tiny)))
    y, groups = np.array(labelled.labels), np.array(labelled.groups)
    split = grouped_split(y, groups, test=0.3)
    wanted = sweep(acts, y, groups=groups, split=split, probe=LogisticProbe(1.0), random=random, ks=(1,), resamples=20)
    assert run.table("sweep.parquet").to_pylist() == wanted.table().to_pylist()
    assert run.table("predictions.parquet").to_pylist() == wanted.predictions().to_pylist()
    assert run.summary.items() >= wanted.summary().items()
    texts = run.table("texts.parquet").to_pylist()
    assert [row["text"] for row in texts if row["part"] == "test"] == split.test.tolist()
    assert [row["content"] for row in texts] == list(labelled.texts)
    found = load_probe(run, "probes/resid_post.1@-2")
    rows = acts.rows("resid_post.1", "-2")
    assert np.array_equal(found.decision_function(rows), wanted.probes["resid_post.1", "-2"].decision_function(rows))  # type: ignore[index]
    assert found.source.digest == tiny.digest()


def test_the_same_command_finds_its_run_and_another_seed_does_not(tmp_path: Path, capsys: Any) -> None:
    options = ("--data", "sentiment", "--texts", "40", *SMALL[2:])
    assert probe(*options, root=tmp_path) == 0
    assert probe(*options, root=tmp_path) == 0
    said = capsys.readouterr()
    assert "finished already" in said.err
    assert "random" in said.out
    assert len(find_runs(tmp_path, "probes", finished=True)) == 1
    assert probe(*options, "--seed", "1", root=tmp_path) == 0
    assert len(find_runs(tmp_path, "probes", finished=True)) == 2


def test_texts_of_a_file_are_divided_by_their_group(file: Path, tmp_path: Path, capsys: Any) -> None:
    fields = ("--data", str(file), "--text", "statement", "--group", "town")
    assert probe(*SMALL, *fields, "--template", "Is this true? {}", "--json", root=tmp_path) == 0
    run = open_run(answer(capsys)["run"], root=tmp_path)
    rows = run.table("texts.parquet").to_pylist()
    parts = {town: {row["part"] for row in rows if row["group"] == town} for town in {row["group"] for row in rows}}
    assert all(len(part) == 1 for part in parts.values())
    assert run.config["data"]["name"] == "towns.jsonl"
    assert all(not row["content"].startswith("Is this true?") for row in rows)


def depth_rows(run: Run) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in run.table("depths.parquet").to_pylist()}


@pytest.mark.slow
def test_depth_compares_noise_and_copies_on_one_division(tmp_path: Path, capsys: Any) -> None:
    options = ("--data", "tense", "--study", "depth", "--noise", "--recipes", "int8", "[{step: rtn, bits: 2}]")
    sites = ("--texts", "80", "--C", "1", "--resamples", "20", "--sites", "resid_post", "--json")
    assert probe(*options, *sites, root=tmp_path) == 0
    run = open_run(answer(capsys)["run"], root=tmp_path)
    assert verify_run(run) == []
    found = depth_rows(run)
    assert list(found)[:3] == ["original", "noise", "int8"]
    assert len(found) == 4
    layers = run.table("layers.parquet").to_pylist()
    drops = {(row["variant"], row["layer"]): row["auc_drop"] for row in layers}
    assert {value for (variant, _), value in drops.items() if variant == "original"} == {None}
    assert all(abs(drops["int8", layer]) < 0.05 for layer in range(4))
    assert run.summary["auc_drop.int8"] == pytest.approx(np.mean([drops["int8", layer] for layer in range(4)]))
    areas = {(row["variant"], row["layer"]): row["auc"] for row in layers}
    for variant in found:
        if variant != "original":
            assert drops[variant, 1] == pytest.approx(areas["original", 1] - areas[variant, 1])
    assert probe(*options, *sites, root=tmp_path) == 0
    assert len(find_runs(tmp_path, "probes")) == 1


@pytest.mark.slow
def test_short_texts_are_left_out_and_leaks_are_told(tmp_path: Path, capsys: Any) -> None:
    rows = [{"text": f"{word} {'sea ' * (i % 7)}{i // 14}", "label": word} for i in range(140) for word in ("go", "GO")]
    rows += [{"text": one["text"].lower() + " ", "label": one["label"]} for one in rows]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    options = ("--data", str(path), *SMALL[2:], "--texts", "300", "--positions", "last", "-6", "--json")
    assert probe(*options, root=tmp_path) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["left_out"] > 0
    assert f"{found['left_out']} of 300 texts have fewer than 6 tokens and are left out" in said.err
    assert found["leaks"] > 0
    assert "stand in different parts" in said.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "sentimental"), "sentiment"),
        (("--data", "tense", "--label", "x"), "leave --text, --label"),
        (("--data", "tense", "--sites", "resid_pots"), "resid_post"),
        (("--data", "tense", "--sites", "resid_post.9"), "layers are 0..3"),
        (("--data", "tense", "--positions", "first"), "last, mean, or a whole number"),
        (("--data", "tense", "--positions", "-90"), "none of the 1000 texts has as many|none of the"),
        (("--data", "tense", "--texts", "1"), "texts must be 2 or more"),
        (("--data", "tense", "--texts", "12", "--sites", "resid_post.0"), "5 folds need 5 groups|gave each part"),
        (("--data", "tense", "--test", "1"), "between 0 and 1"),
        (("--data", "tense", "--template", "x"), "where the text goes"),
        (("--study", "transfer", "--data", "tense"), "name them with --to"),
        (("--study", "quality", "--data", "tense", "--positions", "last", "mean"), "reads one position"),
        (("--study", "quality", "--data", "tense", "--board.games", "30"), "not read by --study quality, but by board"),
        (("--study", "board", "--data", "tense"), "not read by --study board"),
        (("--study", "transfer", "--to", "gender", "--sites", "resid_post"), "reads one site"),
        (("--study", "transfer", "--data", "tense", "--to", "tense"), "Two sets are called tense"),
        (("--data", "tense", "--ccs"), "not read by --study sweep, but by transfer"),
        (("--data", "tense", "--ks", "0"), "--ks are numbers of columns, 1 or more, got 0"),
        (("--data", "tense", "--noise"), "not read by --study sweep, but by depth"),
        (("--data", "tense", "--probe", "lda", "--C", "1"), "penalty of logistic and l1"),
        (("--data", "nowhere.jsonl"), "There is no file nowhere.jsonl"),
    ],
)
def test_wrong_requests_are_refused_in_a_line(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: Any
) -> None:
    import re

    assert probe(*options, root=tmp_path) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert find_runs(tmp_path, "probes", finished=True) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tables", "number"),
    [
        (("--study", "transfer", "--to", "gender"), {"transfer", "directions"}, "logistic_transfer"),
        (("--study", "quality", "--sites", "resid_post.1", "resid_post.2"), {"quality"}, "best_aqi"),
    ],
)
def test_other_studies_keep_their_tables(
    options: tuple[str, ...], tables: set[str], number: str, tmp_path: Path, capsys: Any
) -> None:
    assert probe(*options, "--data", "tense", "--texts", "80", "--json", root=tmp_path) == 0
    run = open_run(answer(capsys)["run"], root=tmp_path)
    assert verify_run(run) == []
    assert {f"{name}.parquet" for name in tables} <= run.files.keys()
    assert run.summary[number] is not None
    assert run.summary["study"] == run.config["study"] == options[1]
    if "transfer" in options:
        pairs = {(row["fitted_on"], row["measured_on"]) for row in run.table("transfer.parquet").to_pylist()}
        assert pairs == {(a, b) for a in ("tense", "gender") for b in ("tense", "gender")}
        assert run.config["to"]["gender"]["digest"] != run.config["data"]["digest"]


@pytest.mark.slow
def test_a_set_that_ships_stands_beside_a_file(file: Path, tmp_path: Path, capsys: Any) -> None:
    fields = ("--text", "statement", "--group", "town", "--resamples", "20", "--json")
    options = ("--data", "true_false", "--study", "transfer", "--to", str(file), "--centring", "each", "--ccs")
    assert probe(*options, *fields, root=tmp_path) == 0
    run = open_run(answer(capsys)["run"], root=tmp_path)
    rows = run.table("transfer.parquet").to_pylist()
    assert {row["centring"] for row in rows} == {"each"}
    assert {row["fitted_on"] for row in rows if row["probe"] == "lda"} == {"true_false", "towns.jsonl"}
    assert {row["fitted_on"] for row in rows if row["probe"] == "ccs"} == {"true_false"}  # the file has no denials
    assert run.config["data"]["fields"]["text"] == "text"
    assert run.config["to"]["towns.jsonl"]["fields"]["text"] == "statement"


def test_a_position_beyond_the_context_is_refused_before_anything_is_read(tmp_path: Path, capsys: Any) -> None:
    assert probe("--data", "tense", "--positions", "5", "--context", "5", root=tmp_path) == 2
    said = capsys.readouterr().err
    assert "need texts of 6 tokens or more, and none of the 992 texts has as many in a context of 5" in said


@pytest.mark.slow
@pytest.mark.parametrize(("study", "table"), [("selection", "selection"), ("latents", "best")])
def test_studies_of_a_dictionary_take_its_model_and_site(study: str, table: str, tmp_path: Path, capsys: Any) -> None:
    assert probe("--study", study, "--data", "tense", root=tmp_path) == 2
    assert "make one with `mechscope train`" in capsys.readouterr().err
    small = ["--d-sae", "32", "--tokens", "3000", "--train.tokens", "2000", "--train.batch", "256"]
    train = ["train", "--model", "tiny", "--site", "resid_post.1", *small]
    assert main([*train, "--runs", str(tmp_path), "--json"]) == 0
    sae = open_run(answer(capsys)["run"], root=tmp_path)
    options = ("--study", study, "--data", "tense", "--texts", "80", "--resamples", "20", "--json")
    assert main(["probe", "--runs", str(tmp_path), *options]) == 0
    run = open_run(answer(capsys)["run"], root=tmp_path)
    assert run.parents == [sae.ref]
    assert run.config["settings"]["sites"] == ["resid_post.1"]
    assert run.config["settings"]["positions"] == ["mean" if study == "selection" else "last"]
    assert run.table(f"{table}.parquet").num_rows > 0
    assert main(["probe", "compiled/induction", "--runs", str(tmp_path), *options[:-1]]) == 2
    assert "leave the model out" in capsys.readouterr().err


def test_one_class_is_refused(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "one.csv"
    path.write_text("text,label\na b,1\nc d,1\n")
    assert probe("--data", str(path), root=tmp_path) == 2
    assert "two labels or more" in capsys.readouterr().err


def test_a_saved_data_set_is_read_with_the_names_of_its_classes(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"sentence": Value("string"), "y": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_dict({"sentence": ["a", "b", "c"], "y": [0, 1, 0]}, features=features)
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "set"))
    found = read_texts(str(tmp_path / "set"), Fields("sentence", "y"))
    assert (found.texts, found.labels) == (("a", "b", "c"), ("bad", "good", "bad"))
    with pytest.raises(ValueError, match="train"):
        read_texts(str(tmp_path / "set"), Fields("sentence", "y", split="trian"))
    with pytest.raises(ValueError, match="sentence"):
        read_texts(str(tmp_path / "set"), Fields("sentenc", "y"))


def test_the_digest_knows_every_part_of_a_set() -> None:
    base = Labelled(("a", "b"), ("x", "y"), ("g", "h"))
    others = [
        Labelled(("a", "c"), ("x", "y"), ("g", "h")),
        Labelled(("a", "b"), ("y", "x"), ("g", "h")),
        Labelled(("a", "b"), ("x", "y"), ("g", "g")),
        Labelled(("b", "a"), ("y", "x"), ("h", "g")),
    ]
    assert len({digest(one) for one in (base, *others)}) == 5
    assert digest(base) == digest(Labelled(("a", "b"), ("x", "y"), ("g", "h")))
