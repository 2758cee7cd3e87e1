from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from app.command import main
from app.commands.runs import List, Show, Verify, run
from interp.runs import Run, RunNotFound, start_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with a finished parent and child, an interrupted, a failed and a damaged run."""
    parent = make(tmp_path, "sae", {"rule": "topk", "sae": {"k": 4}}, "tiny", {"fvu": 0.25, "steps": 4000})
    make(
        tmp_path,
        "features",
        {"sae_run": parent.ref},
        "tiny",
        {"latents": 16},
        parents=(parent.ref, "sae/lost-00000000"),
    )
    with start_run("sae", {"rule": "relu"}, slug="half", root=tmp_path) as half:
        half.progress(10, 40, "steps")
    start_run("sae", {"rule": "bad"}, slug="bad", root=tmp_path).fail(ValueError("loss is NaN at step 3"))
    broken = make(tmp_path, "activations", {"site": "resid_post.0"}, "broken", {})
    (broken.path / "a.safetensors").write_bytes(b"short")
    return tmp_path


def make(root: Path, kind: str, config: dict, slug: str, summary: dict, parents: tuple[str, ...] = ()) -> Run:
    made = start_run(kind, config, slug=slug, root=root, parents=parents)
    made.save_tensors("a.safetensors", {"w": np.arange(6.0)})
    made.finish(summary)
    return made


def ref(root: Path, kind: str, slug: str) -> str:
    return f"{kind}/{next((root / kind).glob(f'{slug}-*')).name}"


def test_list_shows_every_state_and_why(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(List(runs=root))
    states = {entry["ref"].split("-")[0]: entry["status"] for entry in result["runs"]}
    assert states == {
        "sae/tiny": "finished",
        "features/tiny": "finished",
        "sae/half": "interrupted",
        "sae/bad": "failed",
        "activations/broken": "damaged",
    }
    out = capsys.readouterr().out
    assert "fvu 0.25  steps 4,000" in out
    assert "10 of 40 (25%) steps; the same command resumes it" in out
    assert "ValueError: loss is NaN at step 3" in out
    assert "  a.safetensors has 5 bytes, the manifest says" in out


def test_list_filters_by_kind_and_state(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {entry["kind"] for entry in run(List(runs=root, kind="sae"))["runs"]} == {"sae"}
    assert [entry["status"] for entry in run(List(runs=root, state="damaged"))["runs"]] == ["damaged"]
    capsys.readouterr()
    assert run(List(runs=root, kind="probe"))["runs"] == []
    assert "No run matches" in capsys.readouterr().out


def test_list_of_nothing_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(List(runs=tmp_path / "none"))["runs"] == []
    assert "mechscope demo" in capsys.readouterr().out


def test_show_prints_configuration_lineage_and_files(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent, child = ref(root, "sae", "tiny"), ref(root, "features", "tiny")
    facts = run(Show(runs=root, ref=parent))
    assert facts["children"] == [child]
    out = capsys.readouterr().out
    assert "sae.k" in out
    assert "a.safetensors" in out
    assert f"used by (features)  {child}" in out
    below = run(Show(runs=root, ref=child))
    assert below["lineage"] == [parent]
    assert below["missing_parents"] == ["sae/lost-00000000"]


def test_show_of_an_unfinished_run_has_progress_and_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Show(runs=root, ref=ref(root, "sae", "half")))["progress"]["done"] == 10
    assert "10 of 40 (25%) steps" in capsys.readouterr().out
    run(Show(runs=root, ref=ref(root, "sae", "bad")))
    assert "loss is NaN at step 3" in capsys.readouterr().out


def test_show_of_an_unknown_run_names_the_nearest(root: Path) -> None:
    with pytest.raises(RunNotFound, match="did you mean 'sae/tiny-"):
        run(Show(runs=root, ref="sae/tinny"))


def test_verify_finds_the_flipped_byte(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = ref(root, "sae", "tiny")
    assert run(Verify(runs=root, refs=(parent,)))["ok"] is True
    path = root / parent / "a.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = run(Verify(runs=root, refs=(parent,)))
    assert result["ok"] is False
    assert "SHA-256" in result["problems"][parent][0]
    assert "1 checked, 1 with problems." in capsys.readouterr().out


def test_verify_without_names_takes_all_finished_and_damaged(root: Path) -> None:
    result = run(Verify(runs=root))
    wrong = {name.split("-")[0] for name, problems in result["problems"].items() if problems}
    assert result["checked"] == 3
    assert wrong == {"activations/broken"}


def test_the_command_itself(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "verify", ref(root, "sae", "tiny"), "--runs", str(root)]) == 0
    assert main(["runs", "verify", "--runs", str(root)]) == 1
    assert main(["runs", "show", "nobody", "--runs", str(root)]) == 2
    assert "Unknown run" in capsys.readouterr().err
    assert main(["runs", "list", "--runs", str(root), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert len(json.loads(lines[0])["runs"]) == 5
