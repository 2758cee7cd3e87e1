"""Results, tables and progress as a terminal and a log file see them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from app import console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that goes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_results_go_to_stdout_and_notes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit("a result")
    console.note("working")
    console.error("wrong")
    out, err = capsys.readouterr()
    assert out == "a result\n"
    assert err == "working\nmechscope: wrong\n"


def test_json_output_keeps_stdout_for_the_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with console.json_output():
        console.emit("for people")
        with console.json_output(False):
            console.emit("inside")
        console.table(["a"], [[1]])
    console.emit("after")
    out, err = capsys.readouterr()
    assert out == "inside\nafter\n"
    assert err.splitlines()[0] == "for people"


def test_a_terminal_is_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit("\x1b[2Jgone\x07 \u202eleft")
    console.table(["name\x1b"], [["x\n\x1b]0;title\x07y"]])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\u202e" not in out
    assert "\\x1b[2Jgone\\x07 \\u202eleft" in out
    assert len(out.splitlines()) == 4


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["name", "fvu", "steps"], [["a", 0.123456, 12000], ["longer", None, 5]])
    assert capsys.readouterr().out.splitlines() == [
        "name       fvu   steps",
        "------  ------  ------",
        "a       0.1235  12,000",
        "longer       -       5",
    ]


def test_a_table_without_rows_has_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["name", "fvu"], [])
    assert capsys.readouterr().out == "name  fvu\n----  ---\n"


def test_the_result_is_the_run_or_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {"fvu": float("nan"), "l0": np.float32(2), "n": np.int64(3)}
    value = {"run": Path("runs/sae/x-1"), "sites": ("a", "b"), **numbers}
    console.result(value, as_json=False)
    console.result(value, as_json=True)
    console.result(None, as_json=True)
    console.result(None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(Path("runs/sae/x-1"))
    assert json.loads(lines[1]) == {"run": lines[0], "fvu": None, "l0": 2.0, "sites": ["a", "b"], "n": 3}
    assert lines[2:] == ["{}"]


def test_progress_says_how_far_how_fast_and_how_long() -> None:
    clock = Clock()
    bar = console.Progress(4096, "rows", "train", stream=io.StringIO(), clock=clock)
    clock.now += 2
    bar.update(1024, note="fvu 0.5")
    assert bar.text() == "train: 1,024/4,096 rows (25%), 512 rows/s, 0:06 left, fvu 0.5"
    bar.to(4096)
    assert bar.text() == "train: 4,096/4,096 rows (100%), 2.05k rows/s, fvu 0.5"


def test_progress_of_a_resumed_job_does_not_count_what_was_there() -> None:
    clock = Clock()
    stream = io.StringIO()
    bar = console.Progress(3000, "steps", "train", start=2000, stream=stream, clock=clock)
    clock.now += 10
    bar.to(2100)
    assert "10 steps/s, 1:30 left" in bar.text()
    bar.close()
    assert stream.getvalue().splitlines()[-1] == "train: 2,100 steps in 0:10, 10 steps/s"


def test_progress_of_unknown_length() -> None:
    clock = Clock()
    bar = console.Progress(None, "documents", "read", stream=io.StringIO(), clock=clock)
    clock.now += 1
    bar.update(2_500_000)
    assert bar.text() == "read: 2,500,000 documents, 2.5M documents/s"


def test_progress_in_a_log_file_is_a_line_now_and_then() -> None:
    clock, stream = Clock(), io.StringIO()
    bar = console.Progress(100, "steps", "train", stream=stream, clock=clock)
    for _ in range(100):
        clock.now += 0.2
        bar.update()
    bar.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train: 0 of 100 steps"
    assert 3 <= len(lines) <= 7
    assert "\r" not in stream.getvalue()
    assert lines[-1] == "train: 100 steps in 0:20, 5 steps/s"


def test_progress_in_a_terminal_stays_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    clock, stream = Clock(), Terminal()
    bar = console.Progress(100, "steps", "train", stream=stream, clock=clock)
    for _ in range(100):
        clock.now += 0.2
        bar.update(note="a note that is far too long for such a line\nand breaks")
    bar.close()
    drawn = stream.getvalue()
    assert drawn.count("\n") == 1
    assert drawn.endswith("\n")
    assert all(len(part) <= 39 for part in drawn.rstrip("\n").split("\r"))


def test_progress_closes_its_line_when_the_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with console.progress(10, "steps", "train") as bar:
            bar.update(3)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert capsys.readouterr().err.splitlines()[-1].startswith("train: 3 steps in 0:00")
