"""Damaged, edited, foreign and newer runs: refused by name, never with a raw parsing error."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp.runs import (
    Run,
    RunDamaged,
    RunError,
    SchemaError,
    damaged_runs,
    find_runs,
    open_run,
    records,
    start_run,
    verify_run,
)
from interp.runs.files import check_header, tensor_header


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with start_run("sae", {"k": 4}, slug="x", root=tmp_path) as made:
        made.log(1, loss=1.0)
        made.log(2, loss=0.5)
        made.save_tensors("w.safetensors", {"w": np.arange(64.0), "b": np.zeros(3)})
        made.save_table("t.parquet", pa.table({"a": list(range(50))}))
        made.save_json("m.json", {"a": 1})
        made.finish({"fvu": 0.25})
    return made


def cut(path: Path, keep: int | None = None) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 if keep is None else keep])


def edit(path: Path, change: Callable[[dict[str, Any]], Any], reseal: bool = False) -> None:
    record = json.loads(path.read_text())
    change(record)
    if reseal:
        record["digest"] = records.seal(record)
    path.write_text(json.dumps(record))


def refit(run: Run, name: str) -> None:
    """Make the manifest agree with the size of `name`, so that only the header can give it away."""
    size = (run.path / name).stat().st_size
    edit(run.path / "manifest.json", lambda record: record["files"][name].update(bytes=size), reseal=True)


def refused(run: Run, message: str, kind: type[RunError] = RunDamaged) -> None:
    """Check that the run is refused by opening, listing, starting and verifying, each with `message`."""
    root = run.root
    with pytest.raises(kind, match=message) as caught:
        open_run(run.id, root)
    assert str(run.path) in str(caught.value)
    assert find_runs(root) == []
    assert [path for path, _ in damaged_runs(root)] == [run.path]
    with pytest.raises(kind, match=message):
        start_run("sae", {"k": 4}, slug="x", root=root)
    assert verify_run(run) != []


@pytest.mark.parametrize("name", ["w.safetensors", "t.parquet", "metrics.jsonl", "m.json"])
def test_cut_off_files(run: Run, name: str) -> None:
    cut(run.path / name)
    refused(run, rf"{name} has \d+ bytes, the manifest says \d+: cut off or changed\. Delete the folder and run")


@pytest.mark.parametrize(("name", "what"), [("w.safetensors", "safetensors"), ("t.parquet", "Parquet")])
@pytest.mark.parametrize("keep", [0, 5, None])
def test_headers_are_checked_on_opening(run: Run, name: str, what: str, keep: int | None) -> None:
    cut(run.path / name, keep)
    refit(run, name)
    refused(run, rf"{name} is cut off or damaged: (it is no whole {what} file|its header describes)")


def test_missing_file(run: Run) -> None:
    (run.path / "t.parquet").unlink()
    refused(run, r"t\.parquet is missing\. Delete the folder and run the command again")


def test_several_wrong_files_are_counted_and_verify_lists_all(run: Run) -> None:
    (run.path / "t.parquet").unlink()
    cut(run.path / "w.safetensors")
    refused(run, r"\(1 more files are wrong\.\)")
    assert len(verify_run(run)) == 2


def test_flipped_byte_is_found_by_verify(run: Run) -> None:
    path = run.path / "w.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)
    assert open_run(run.id, run.root).finished
    assert verify_run(run) == [f"{path} was changed: its SHA-256 is not the one in the manifest."]


def test_extra_file_is_found_by_verify(run: Run) -> None:
    (run.path / "notes.txt").write_text("hello")
    assert open_run(run.id, run.root).finished
    assert verify_run(run) == [f"{run.path / 'notes.txt'} is extra: the manifest does not know it."]


def test_unfinished_runs_cannot_be_verified(tmp_path: Path) -> None:
    made = start_run("sae", {}, slug="x", root=tmp_path)
    assert verify_run(made) == [f"{made.ref} is not finished (running); only a finished run has hashes."]


def test_edited_summary(run: Run) -> None:
    edit(run.path / "manifest.json", lambda record: record["summary"].update(fvu=0.01))
    refused(run, r"manifest\.json was changed after the run finished")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("files"), "manifest.json is damaged: 'files' is missing or no dict"),
        (lambda r: r.update(files=[]), "'files' is missing or no dict"),
        (lambda r: r.pop("schema"), "it lacks an integer 'schema'"),
        (lambda r: r.update(schema="1"), "it lacks an integer 'schema'"),
        (lambda r: r.update(schema=True), "it lacks an integer 'schema'"),
        (lambda r: r.update(id="00000000"), "is of another run: id '00000000'"),
        (lambda r: r["files"]["m.json"].pop("bytes"), r"the entry of 'm\.json' lacks bytes or sha256"),
        (lambda r: r["files"].update({"m.json": 3}), r"the entry of 'm\.json' lacks bytes or sha256"),
        (lambda r: r["files"].update({"../x": r["files"]["m.json"]}), "lists a file that is not the run's own"),
        (lambda r: r["files"].update({"/etc/passwd": r["files"]["m.json"]}), "lists a file that is not the run's own"),
        (lambda r: r["files"].update({"a\0": r["files"]["m.json"]}), "lists a file that is not the run's own"),
    ],
)
def test_edited_manifest(run: Run, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    edit(run.path / "manifest.json", change, reseal=True)
    refused(run, message)


def test_manifest_lists_a_link_that_leaves(run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    (run.path / "m.json").rename(outside)
    (run.path / "m.json").symlink_to(outside)
    refused(run, "lists a file that is not the run's own. .*is a link that leaves the run")


def test_run_json_may_not_be_a_link(run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    (run.path / "run.json").rename(outside)
    (run.path / "run.json").symlink_to(outside)
    refused(run, "is a link that leaves the run")


@pytest.mark.parametrize("name", ["manifest.json", "run.json"])
@pytest.mark.parametrize(
    "data", [b"", b'{"schema": 1, ', b"\x00\xff\xfe", b"[1]", b"null", b"[" * 100_000, b"1" * 5000]
)
def test_records_that_are_no_records(run: Run, name: str, data: bytes) -> None:
    (run.path / name).write_bytes(data)
    refused(run, rf"{name} is (cut off or damaged: it is no JSON|no record of a run)")


def test_missing_run_json(run: Run) -> None:
    (run.path / "run.json").unlink()
    refused(run, r"run\.json is missing")


def test_run_json_cut_off_in_an_unfinished_run(tmp_path: Path) -> None:
    made = start_run("sae", {"k": 4}, slug="x", root=tmp_path)
    made.close()
    cut(made.path / "run.json")
    refused(made, r"run\.json is cut off or damaged: it is no JSON")


def test_edited_configuration(run: Run) -> None:
    edit(run.path / "run.json", lambda record: record["config"].update(k=5))
    refused(run, rf"run\.json was changed: its configuration is not the one of run {run.id}")
    edit(run.path / "run.json", lambda record: record["config"].update(k=float("nan")))
    refused(run, r"run\.json was changed")


def test_a_run_in_a_foreign_folder(run: Run) -> None:
    other = run.root / "probe" / run.name
    other.parent.mkdir()
    run.path.rename(other)
    with pytest.raises(RunDamaged, match=r"it belongs to another folder\. Move it back"):
        open_run(run.id, run.root)
    other.rename(run.path.with_name("x-00000000"))
    with pytest.raises(RunDamaged, match="it belongs to another folder"):
        open_run("00000000", run.root)


def test_renaming_the_slug_is_allowed(run: Run) -> None:
    run.path.rename(run.path.with_name(f"better-name-{run.id}"))
    assert open_run("better-name-" + run.id, run.root).slug == "better-name"
    assert start_run("sae", {"k": 4}, slug="x", root=run.root).finished


@pytest.mark.parametrize("name", ["manifest.json", "run.json"])
def test_newer_schema_is_refused_by_name(run: Run, name: str) -> None:
    edit(run.path / name, lambda record: record.update(schema=7))
    refused(run, rf"sae/x-{run.id} has schema 7; this version reads 1\. Upgrade mechscope\.", SchemaError)


def test_older_schema_is_upgraded_step_by_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(run.path / "manifest.json", lambda record: record.update(schema=-1, result=record.pop("summary")))
    refused(run, "has schema -1, which no version of mechscope wrote", SchemaError)
    steps = {
        -1: lambda record: record | {"schema": 0, "summary": record["result"]},
        0: lambda record: {k: v for k, v in record.items() if k != "digest"} | {"schema": 1},
    }
    monkeypatch.setattr(records, "UPGRADES", steps)
    assert open_run(run.id, run.root).summary == {"fvu": 0.25}


def test_unknown_keys_of_a_manifest_are_kept(run: Run) -> None:
    edit(run.path / "manifest.json", lambda record: record.update(later={"a": 1}), reseal=True)
    manifest = open_run(run.id, run.root).manifest
    assert manifest is not None
    assert manifest["later"] == {"a": 1}
    assert verify_run(run) == []


def test_torn_last_line_of_metrics(tmp_path: Path) -> None:
    made = start_run("sae", {}, slug="x", root=tmp_path)
    made.log(1, loss=1.0)
    with (made.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "los')
    assert [row["step"] for row in open_run(made.id, tmp_path).metrics()] == [1]


@pytest.mark.parametrize("line", [b"\x00\x00", b"[1]", b'{"loss": 1}', b'{"step": "x"}', b"\xff"])
def test_a_wrong_line_of_metrics_is_named(tmp_path: Path, line: bytes) -> None:
    made = start_run("sae", {}, slug="x", root=tmp_path)
    (made.path / "metrics.jsonl").write_bytes(line + b'\n{"step": 2}\n')
    with pytest.raises(RunDamaged, match=r"metrics\.jsonl is damaged: line 1 is no row of metrics"):
        made.metrics()


def test_damage_behind_the_header_is_named_when_read(run: Run) -> None:
    path = run.path / "t.parquet"
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    with pytest.raises(RunDamaged, match=r"t\.parquet cannot be read and is probably damaged"):
        open_run(run.id, run.root).table("t.parquet")


def tensors_file(path: Path, header: Any, data: bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        [1],
        {"w": 3},
        {"w": {}},
        {"w": ENTRY | {"shape": None}},
        {"w": ENTRY | {"shape": [-2]}},
        {"w": ENTRY | {"dtype": 3}},
        {"w": ENTRY | {"data_offsets": [8, 0]}},
        {"w": ENTRY | {"data_offsets": [0]}},
        {"w": ENTRY | {"data_offsets": [0, 16]}},
        {"w": ENTRY | {"data_offsets": [0, 4]}},
        {"w": ENTRY, "v": ENTRY},
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any) -> None:
    with pytest.raises(RunDamaged, match=r"w\.safetensors is (cut off or )?damaged"):
        tensor_header(tensors_file(tmp_path / "w.safetensors", header, bytes(8)))


def test_a_shape_that_lies_is_found_when_the_tensor_is_read(tmp_path: Path) -> None:
    made = start_run("sae", {}, slug="x", root=tmp_path)
    tensors_file(made.path / "w.safetensors", {"w": ENTRY | {"shape": [4]}}, bytes(8))
    with pytest.raises(RunDamaged, match=r"w has 8 bytes for \[4\] of F32"):
        made.tensors("w.safetensors")
    tensors_file(made.path / "w.safetensors", {"w": ENTRY | {"dtype": "F8_E4M3"}}, bytes(8))
    with pytest.raises(RunError, match=r"w in .* is F8_E4M3, which numpy cannot hold; read it with torch"):
        made.tensors("w.safetensors")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(tmp_path: Path, data: bytes) -> None:
    for name in ("x.safetensors", "x.parquet"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RunDamaged, match="damaged"):
            check_header(tmp_path / name)
