"""Notes on features: kept, merged, never lost."""

from __future__ import annotations

import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.workspace import LABEL_LENGTH, Note, Workspace, WorkspaceError, merge

REF = "sae/tiny-1234abcd"


@pytest.fixture
def notes(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "runs", REF)


def test_what_is_saved_is_read_back(notes: Workspace) -> None:
    assert notes.notes() == {}
    notes.save(12, Note("harbours", "a long\nnote", True))
    notes.save(3, Note(label="ships"))
    assert notes.notes() == {12: Note("harbours", "a long\nnote", True), 3: Note(label="ships")}


def test_the_file_lies_beside_the_runs_as_plain_sorted_json(notes: Workspace, tmp_path: Path) -> None:
    notes.save(100, Note(label="b"))
    notes.save(20, Note(label="a é"))
    path = tmp_path / "workspace" / "sae.tiny-1234abcd.json"
    assert notes.path == path
    assert list(json.loads(path.read_text(encoding="utf-8"))["features"]) == ["20", "100"]
    assert "a é" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".part"] == []


def test_an_unchanged_field_keeps_its_date(notes: Workspace) -> None:
    notes.save(1, Note(label="a"))
    before = json.loads(notes.path.read_text())["features"]["1"]["edited"]
    notes.save(1, Note(label="a", note="more"))
    after = json.loads(notes.path.read_text())["features"]["1"]["edited"]
    assert after["label"] == before["label"]
    assert set(after) == {"label", "note"}


def test_nothing_said_writes_nothing(notes: Workspace) -> None:
    notes.save(1, Note())
    assert not notes.path.exists()


def test_a_note_can_be_taken_back(notes: Workspace) -> None:
    notes.save(1, Note(label="a"))
    notes.save(1, Note())
    assert notes.notes() == {}


def test_two_windows_do_not_undo_each_other(tmp_path: Path) -> None:
    windows = [Workspace(tmp_path / "runs", REF) for _ in range(4)]

    def save(i: int) -> None:
        windows[i % 4].save(i, Note(label=f"label {i}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, range(40)))
    assert windows[0].notes() == {i: Note(label=f"label {i}") for i in range(40)}


def test_a_failed_write_leaves_the_old_file(notes: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    notes.save(1, Note(label="kept"))
    before = notes.path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WorkspaceError, match=r"cannot be written \(No space left on device\); the note is not saved"):
        notes.save(2, Note(label="lost"))
    assert notes.path.read_bytes() == before
    assert list(notes.path.parent.glob("*.part")) == list(notes.path.parent.glob(".*.part")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON .*repair it or move it away"),
        ("<<<<<<< ours\n{}\n=======", "it holds a git conflict, resolve it"),
        ("[]", 'must be a JSON object with "features"'),
        ('{"schema": 9, "features": {}}', "has schema 9; this version reads 1. Upgrade mechscope"),
        ('{"schema": 1, "features": {"x": {}}}', "entry 'x' is not a latent"),
        ('{"schema": 1, "features": {"1": []}}', "entry '1' is not a latent"),
        ('{"schema": 1, "features": {"1": {"edited": 3}}}', '"edited" of latent 1 must be an object'),
        ("\xff\x00", "is not JSON"),
    ],
)
def test_a_damaged_file_is_named_and_left_alone(notes: Workspace, text: str, message: str) -> None:
    notes.path.parent.mkdir()
    notes.path.write_text(text)
    with pytest.raises(WorkspaceError, match=message):
        notes.notes()
    with pytest.raises(WorkspaceError, match=message):
        notes.save(1, Note(label="a"))
    assert notes.path.read_text() == text


@pytest.mark.parametrize("ref", ["../x", "/etc/passwd", "", "a b", "sae/..", "x\0"])
def test_a_name_cannot_leave_the_workspace(tmp_path: Path, ref: str) -> None:
    with pytest.raises(WorkspaceError, match="A workspace belongs to a run such as"):
        Workspace(tmp_path, ref)


def test_labels_have_a_largest_length(notes: Workspace) -> None:
    notes.save(1, Note(label=" " + "x" * 1000, note="\ud800"))
    assert notes.notes()[1] == Note("x" * LABEL_LENGTH, "\ud800")


entries = st.dictionaries(
    st.sampled_from("123"),
    st.builds(
        lambda fields, dates: fields | {"edited": {k: d for k, d in dates.items() if k in fields}},
        st.fixed_dictionaries({}, optional={"label": st.sampled_from("ab"), "note": st.sampled_from("xy")}),
        st.dictionaries(st.sampled_from(["label", "note"]), st.sampled_from(["2025", "2026"])),
    ),
)


@given(entries, entries, entries)
def test_merging_is_the_same_in_every_order(a, b, c) -> None:
    files = [{"schema": 1, "dictionary": REF, "features": features} for features in (a, b, c)]
    merged = [merge(merge(x, y), z) for x, y, z in itertools.permutations(files)]
    assert all(result == merged[0] for result in merged)
    assert merge(merged[0], merged[0]) == merged[0]


def test_the_later_edit_wins_field_by_field(notes: Workspace) -> None:
    notes.save(1, Note(label="mine", note="old"))
    entry = {"label": "theirs", "note": "new", "edited": {"label": "2001", "note": "2999"}}
    notes.merge({"schema": 1, "dictionary": REF, "features": {"1": entry, "2": {"label": "other", "edited": {}}}})
    assert notes.notes() == {1: Note("mine", "new"), 2: Note("other")}
