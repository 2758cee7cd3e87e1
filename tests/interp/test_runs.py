"""Starting, resuming and finding runs; who may write them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.runs import (
    Run,
    RunBusy,
    RunError,
    RunNotFound,
    children,
    find_runs,
    lineage,
    open_run,
    runs_root,
    start_run,
    verify_run,
)
from interp.runs import lock as run_lock
from interp.runs.records import slugify

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Config:
    k: int = 4
    rate: float = 1.0


def finished(
    root: Path, config: Any = None, kind: str = "sae", parents: tuple[str, ...] = (), slug: str = "tiny"
) -> Run:
    with start_run(kind, config or {"k": 4}, slug=slug, root=root, parents=parents) as run:
        run.log(1, loss=2.0)
        run.save_tensors("w.safetensors", {"w": np.arange(6.0).reshape(2, 3)})
        run.finish({"fvu": 0.5})
    return run


def python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)


# Identity


def test_the_same_request_finds_the_finished_run(tmp_path: Path) -> None:
    first = finished(tmp_path, Config())
    again = start_run("sae", {"rate": 1, "k": 4}, slug="another-slug", root=tmp_path)
    assert again.finished
    assert again.path == first.path
    assert not again.resumed
    assert again.summary == {"fvu": 0.5}


def test_another_request_is_another_run(tmp_path: Path) -> None:
    ids = {
        start_run("sae", Config(), slug="x", root=tmp_path).id,
        start_run("sae", Config(k=5), slug="x", root=tmp_path).id,
        start_run("sae", Config(), slug="x", root=tmp_path, seed=1).id,
        start_run("sae", Config(), slug="x", root=tmp_path, parents=["activations/a-00000000"]).id,
        start_run("probe", Config(), slug="x", root=tmp_path).id,
    }
    assert len(ids) == 5


def test_the_broken_run_is_resumed(tmp_path: Path) -> None:
    first = start_run("sae", Config(), slug="x", root=tmp_path)
    first.log(1, loss=1.0)
    first.save_json("state.json", {"step": 1})
    first.close()
    assert first.status == "interrupted"
    again = start_run("sae", Config(), slug="y", root=tmp_path)
    assert again.resumed
    assert again.path == first.path
    assert again.info["created"] == first.info["created"]
    assert again.info["attempts"] == 2
    assert [row["loss"] for row in again.metrics()] == [1.0]
    assert again.json("state.json") == {"step": 1}


def test_a_failed_run_says_why_and_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), start_run("sae", Config(), slug="x", root=tmp_path) as run:
        1 / 0  # noqa: B018
    seen = open_run(run.id, tmp_path)
    assert seen.status == "failed"
    assert seen.info["error"] == "ZeroDivisionError: division by zero"
    again = start_run("sae", Config(), slug="x", root=tmp_path)
    assert again.resumed
    assert "error" not in again.info
    assert open_run(run.id, tmp_path).status == "running"


def test_interrupting_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), start_run("sae", Config(), slug="x", root=tmp_path):
        raise KeyboardInterrupt
    assert [run.status for run in find_runs(tmp_path)] == ["interrupted"]
    assert start_run("sae", Config(), slug="x", root=tmp_path).resumed


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    with start_run("sae", Config(), slug="x", root=tmp_path, model={"name": "m", "digest": "a"}) as run:
        run.finish({})
    assert start_run("sae", Config(), slug="x", root=tmp_path, model={"name": "m", "digest": "a"}).finished
    with pytest.raises(RunError, match="was made with another model of the same name"):
        start_run("sae", Config(), slug="x", root=tmp_path, model={"name": "m", "digest": "b"})


def test_parents_are_stored_by_their_full_names(tmp_path: Path) -> None:
    store = finished(tmp_path, {"a": 1}, "activations")
    named = [
        start_run("sae", {}, slug="x", root=tmp_path / "a", parents=["activations/far-away-12345678"]),
        start_run("sae", {"n": 1}, slug="x", root=tmp_path, parents=[store]),
        start_run("sae", {"n": 2}, slug="x", root=tmp_path, parents=[store.id[:5]]),
    ]
    assert [run.parents for run in named] == [["activations/far-away-12345678"], [store.ref], [store.ref]]
    with pytest.raises(RunNotFound, match="Unknown run"):
        start_run("sae", {}, slug="x", root=tmp_path, parents=["nobody"])


def test_run_json_holds_what_made_it(tmp_path: Path) -> None:
    run = start_run(
        "sae", Config(), slug="My Run!", root=tmp_path, seed=3, model={"name": "tiny"}, data={"text": "demo"}
    )
    info = json.loads((run.path / "run.json").read_text())
    assert run.path == tmp_path / "sae" / f"my-run-{run.id}"
    assert run.ref == f"sae/my-run-{run.id}"
    assert run.slug == info["slug"] == "my-run"
    assert info["config"] == {"k": 4, "rate": 1.0}
    assert (info["seed"], info["model"], info["data"]) == (3, {"name": "tiny"}, {"text": "demo"})
    assert (info["pid"], info["status"], info["schema"]) == (os.getpid(), "running", 1)
    assert info["code"].keys() == {"mechscope", "commit", "dirty"}
    assert {"python", "platform", "host", "created", "heartbeat", "progress"} <= info.keys()


@given(st.text(max_size=200))
def test_slugs_are_folder_names(text: str) -> None:
    slug = slugify(text)
    assert len(slug) <= 60
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert not slug.startswith((".", "-"))
    assert slugify(slug) == slug


@pytest.mark.parametrize("kind", ["", "..", "a/b", "SAE", "x" * 41])
def test_kinds_are_folder_names(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RunError, match="kind must be up to 40 lower-case letters"):
        start_run(kind, {}, slug="x", root=tmp_path)


def test_configurations_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite numbers only"):
        start_run("sae", {"rate": float("nan")}, slug="x", root=tmp_path)
    with pytest.raises(RunError, match="config must be a dict or a dataclass, got 3"):
        start_run("sae", 3, slug="x", root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_root_is_given_or_from_the_environment_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MECHSCOPE_RUNS", raising=False)
    assert runs_root() == tmp_path / "runs"
    monkeypatch.setenv("MECHSCOPE_RUNS", "elsewhere")
    assert runs_root() == tmp_path / "elsewhere"
    assert runs_root("given") == tmp_path / "given"


# Writers


def test_two_writers(tmp_path: Path) -> None:
    run = start_run("sae", Config(), slug="x", root=tmp_path)
    with pytest.raises(RunBusy, match=rf"is being written by process {os.getpid()} \(this process\)"):
        start_run("sae", Config(), slug="x", root=tmp_path)
    run.close()
    start_run("sae", Config(), slug="x", root=tmp_path).close()


WRITER = """
import sys, time
from interp.runs import start_run
run = start_run("sae", {"k": 4}, slug="x", root=sys.argv[1])
run.log(1, loss=1.0)
run.save_json("state.json", {"step": 1})
run.progress(1, 10, "steps")
(run.path / ".w.safetensors.1-1.part").write_bytes(b"half a file")
with open(run.path / "metrics.jsonl", "a") as file:
    file.write('{"step": 2, "lo')
print("ready", flush=True)
time.sleep(600)
"""


def test_a_killed_writer_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    process = python(WRITER, tmp_path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(RunBusy, match=f"process {process.pid} on host"):
            start_run("sae", {"k": 4}, slug="x", root=tmp_path)
        (seen,) = find_runs(tmp_path)
        assert seen.status == "running"
        assert seen.info["progress"] == {"done": 1, "total": 10, "unit": "steps"}
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (seen,) = find_runs(tmp_path, finished=False)
    assert seen.status == "interrupted"
    assert [row["step"] for row in seen.metrics()] == [1]
    with start_run("sae", {"k": 4}, slug="x", root=tmp_path) as run:
        assert run.resumed
        assert run.json("state.json") == {"step": 1}
        run.log(2, loss=0.5)
        assert [row["step"] for row in run.metrics()] == [1, 2]
        run.finish({})
    assert sorted(run.files) == ["metrics.jsonl", "run.json", "state.json"]
    assert verify_run(run) == []


FORKER = """
import os, sys, time
from interp.runs import start_run
run = start_run("sae", {"k": 4}, slug="x", root=sys.argv[1])
child = os.fork()
if child == 0:
    time.sleep(600)
print(child, run.writable, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    process = python(FORKER, tmp_path)
    assert process.stdout is not None
    child, writable = process.stdout.readline().split()
    try:
        assert writable == "True"
        with pytest.raises(RunBusy):
            start_run("sae", {"k": 4}, slug="x", root=tmp_path)
        process.kill()
        process.wait()
        with start_run("sae", {"k": 4}, slug="x", root=tmp_path) as run:
            assert run.resumed
    finally:
        os.kill(int(child), signal.SIGKILL)
        process.kill()
        process.communicate()


def test_a_later_process_with_the_same_pid_is_another_one() -> None:
    me = run_lock.writer()
    assert run_lock.alive(me)
    assert not run_lock.alive(me | {"pid": 2**22 + 1})
    assert not run_lock.alive(me | {"pid": "x"})
    if me["process"] is not None:
        assert not run_lock.alive(me | {"process": "00000000-1"})


def test_a_writer_on_another_host_is_judged_by_its_heartbeat() -> None:
    far = run_lock.writer() | {"host": "elsewhere", "pid": 1}
    assert run_lock.alive(far | {"heartbeat": run_lock.now()})
    assert not run_lock.alive(far | {"heartbeat": "2020-01-01T00:00:00.000000+00:00"})
    assert not run_lock.alive(far | {"heartbeat": "yesterday"})


def test_without_file_locks_the_record_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "fcntl", None)
    run = start_run("sae", Config(), slug="x", root=tmp_path)
    with pytest.raises(RunBusy, match="this process"):
        start_run("sae", Config(), slug="x", root=tmp_path)
    run.close()
    assert start_run("sae", Config(), slug="x", root=tmp_path).resumed


# Finding


def test_open_by_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(tmp_path)
    refs = [run.id, run.id[:4], run.name, run.ref, f"sae/{run.id}", f"sae/{run.id[:5]}", run.path, str(run.path), run]
    for ref in refs:
        assert open_run(ref, tmp_path).path == run.path
    monkeypatch.chdir(tmp_path)
    assert open_run(f"./sae/{run.name}/", tmp_path).path == run.path


def test_unknown_and_ambiguous_names(tmp_path: Path) -> None:
    run = finished(tmp_path)
    with pytest.raises(
        RunNotFound, match=f"Unknown run in .*: 'sae/tinny'; did you mean '{run.ref}'. Known: {run.ref}"
    ):
        open_run("sae/tinny", tmp_path)
    for ref in (run.id[:3], "probe/" + run.id, "a\0b", "", "..", "/", "~nobody-here/x", tmp_path, run.path.parent):
        with pytest.raises(RunNotFound, match="Unknown run"):
            open_run(ref, tmp_path)
    twin = tmp_path / "probe" / run.name
    twin.parent.mkdir()
    run.path.parent.joinpath(run.name).rename(twin)
    finished(tmp_path)
    with pytest.raises(RunNotFound, match=rf"fits 2 runs: probe/{run.name}, sae/{run.name}; give more of it"):
        open_run(run.id, tmp_path)


def test_a_slip_in_an_id_or_a_name_suggests_the_full_ref(tmp_path: Path) -> None:
    run = finished(tmp_path)
    slip = "0" if run.id[-1] != "0" else "1"
    for ref in (run.id[:-1] + slip, run.name[:-1] + slip, f"sae/{run.id[:-1]}{slip}"):
        with pytest.raises(RunNotFound, match=f"did you mean '{run.ref}'"):
            open_run(ref, tmp_path)


def test_a_run_outside_the_root_is_not_opened(tmp_path: Path) -> None:
    run = finished(tmp_path / "elsewhere")
    here = tmp_path / "runs"
    with pytest.raises(RunNotFound, match=r"lies outside .*runs; give --runs .*elsewhere"):
        open_run(run.path, here)
    (here / "sae").mkdir(parents=True)
    (here / "sae" / run.name).symlink_to(run.path)
    assert find_runs(here) == []


def test_find_filters_and_sorts(tmp_path: Path) -> None:
    assert find_runs(tmp_path / "nothing") == []
    first = finished(tmp_path, {"site": "resid_post.0", "sae": {"rule": "topk", "rule_args": {"k": 4}}})
    second = finished(tmp_path, {"site": "resid_post.1", "sae": {"rule": "topk"}})
    third = finished(tmp_path, {"x": 1}, kind="features")
    broken = start_run("sae", {"x": 2}, slug="x", root=tmp_path)
    (tmp_path / "sae" / "notes").mkdir()
    (tmp_path / "README").write_text("not a run")

    def refs(**filters: Any) -> list[str]:
        return [run.ref for run in find_runs(tmp_path, **filters)]

    assert refs() == [broken.ref, third.ref, second.ref, first.ref]
    assert refs(kind="features") == [third.ref]
    assert refs(finished=False) == [broken.ref]
    assert refs(finished=True, kind="sae") == [second.ref, first.ref]
    assert refs(where={"sae.rule": "topk"}) == [second.ref, first.ref]
    assert refs(where={"sae.rule_args.k": 4, "site": "resid_post.0"}) == [first.ref]
    assert refs(where={"sae.rule.deeper": 4}) == refs(where={"nothing": 1}) == []


def test_find_reads_no_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(tmp_path)
    for module in ("interp.runs.index.sha256", "interp.runs.run.sha256", "interp.runs.tensors.read"):
        monkeypatch.setattr(module, None)  # calling it would be a TypeError
    assert [found.ref for found in find_runs(tmp_path)] == [run.ref]
    assert open_run(run.id, tmp_path).summary == {"fvu": 0.5}


def test_lineage_and_children(tmp_path: Path) -> None:
    store = finished(tmp_path, {"a": 1}, "activations")
    sae = finished(tmp_path, {"a": 2}, "sae", (store.ref,))
    features = finished(tmp_path, {"a": 3}, "features", (sae.ref, store.ref, "sae/gone-00000000"))
    assert [run.ref for run in lineage(features)] == [store.ref, sae.ref]
    assert lineage(store) == []
    assert {run.ref for run in children(store)} == {sae.ref, features.ref}
    assert [run.ref for run in children(sae, tmp_path)] == [features.ref]


def test_importing_runs_is_light() -> None:
    code = (
        "import sys, interp.runs, interp.config, interp.names\n"
        "heavy = 'torch transformer_lens transformers datasets wandb pyarrow safetensors numpy'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert python(code).communicate()[0] == "[]\n"
