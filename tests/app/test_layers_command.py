"""`mechscope layers`: one model or two, found again, gone on with, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app import layering
from app.command import main
from interp.layers import profile as profile_module
from interp.layers.result import load_profile
from interp.runs import find_runs, open_run

QUICK = ["--prompts", "3", "--context", "24", "--families", "stream", "spectra"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on the mat and the dog sat on the log. " * 60)
    return path


def call(model: Path, text: Path, root: Path, capsys: Any, *more: str) -> tuple[dict[str, Any], str]:
    command = ["layers", str(model), "--text", str(text), "--runs", str(root), "--json", *QUICK, *more]
    assert main(command) == 0
    out = capsys.readouterr()
    return json.loads(out.out.splitlines()[-1]), out.err


def test_a_profile_is_made_shown_and_found_again(model_folder: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    result, said = call(model_folder, text, tmp_path, capsys)
    assert "2 families on 72 tokens, about" in said
    assert [row["layer"] for row in result["layers"]] == [0, 1, 2]
    assert {"norm", "block share", "alpha"} <= result["layers"][0].keys()
    (run,) = find_runs(tmp_path, "layers")
    found = load_profile(run)
    assert list(found.parts) == ["stream", "spectra"]
    assert result["families"]["stream"] == found.results["stream"].summary
    assert run.summary["stream.norm_last"] == found.results["stream"].summary["norm_last"]
    assert (run.config["data"]["context"], run.info["model"]["digest"]) == (24, run.config["weights"])
    again, said = call(model_folder, text, tmp_path, capsys)
    assert "is finished already" in said
    assert again == result
    other, _ = call(model_folder, text, tmp_path, capsys, "--prompts", "2")
    assert other["run"] != result["run"]


def test_a_second_model_stands_beside_the_first(model_folder: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    result, said = call(model_folder, text, tmp_path, capsys, "--vs-recipe", "[{step: rtn, bits: 3}]")
    a, b = (open_run(f"layers/{Path(result[key]).name}", tmp_path) for key in ("run", "vs_run"))
    assert a.config["weights"] != b.config["weights"]
    assert a.config["tokens"] == b.config["tokens"]
    assert "rtn-3bit" in b.name
    assert {row["model"] for row in result["layers"]} == {"a", "b"}
    assert result["families"]["stream"] != result["vs_families"]["stream"]
    assert "a: " in said  # tables go beside the one line of JSON


def test_a_stopped_profile_goes_on_with_what_is_left(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = profile_module._Work.finish

    def stopped(self: Any, tell: Any, on_part: Any) -> None:
        def then_stop(name: str, part: Any) -> None:
            on_part(name, part)
            raise KeyboardInterrupt

        finish(self, tell, then_stop)

    monkeypatch.setattr(profile_module._Work, "finish", stopped)
    command = ["layers", str(model_folder), "--text", str(text), "--runs", str(tmp_path), *QUICK]
    assert main(command) == 130
    assert "the same command resumes it" in capsys.readouterr().err
    monkeypatch.undo()
    (run,) = find_runs(tmp_path, "layers")
    assert not run.finished
    assert list(load_profile(run).parts) == ["stream"]
    result, said = call(model_folder, text, tmp_path, capsys)
    assert "going on with stream, which are there" in said
    assert list(result["families"]) == ["stream", "spectra"]
    whole, _ = call(model_folder, text, tmp_path / "fresh", capsys)
    assert whole["families"] == result["families"]
    assert whole["layers"] == result["layers"]


def test_what_was_kept_and_cannot_be_read_is_measured_again(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    result, _ = call(model_folder, text, tmp_path, capsys)
    path = Path(result["run"])
    (path / "manifest.json").unlink()
    (path / "stream.layers.parquet").write_bytes(b"nothing")
    again, said = call(model_folder, text, tmp_path, capsys)
    assert "beginning again" in said
    assert again["families"] == result["families"]


def test_a_family_that_was_named_and_cannot_be_measured(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any
) -> None:
    command = ["layers", str(model_folder), "--text", str(text), "--prompts", "2", "--context", "8"]
    named = [*command, "--families", "depth", "--runs", str(tmp_path / "a")]
    assert main(named) == 2
    assert "The family depth: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--families", "streem"], "Unknown family 'streem'; did you mean 'stream'"),
        (["--prompts", "0"], "prompts must be 1 or more, got 0"),
        (["--context", "65"], "65"),
        (["--tuned-lens", "train"], "--tuned-lens is for the family lens"),
    ],
)
def test_requests_that_make_no_sense(
    model_folder: Path, text: Path, tmp_path: Path, capsys: Any, more: list[str], said: str
) -> None:
    command = ["layers", str(model_folder), "--text", str(text), "--runs", str(tmp_path), *QUICK, *more]
    assert main(command) == 2
    assert said in capsys.readouterr().err
    assert not find_runs(tmp_path, "layers")


def test_the_list_names_every_measure(capsys: Any) -> None:
    from interp.layers.families import FAMILIES

    assert main(["layers", "--list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["families"]
    assert {row["family"] for row in found} == set(FAMILIES)


def test_headlines_are_measures_of_their_families() -> None:
    from interp.layers.families import family

    for name, columns in layering.HEADLINES.items():
        measures = {measure.name for measure in family(name).measures}
        assert {measure for measure, _, _ in columns} <= measures, name
    titles = [title for columns in layering.HEADLINES.values() for _, _, title in columns]
    assert len(set(titles)) == len(titles)
