"""Workers: each takes one cell after the other, one that dies costs its cell only, stopping waits for them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.sweeps.mirror import Mirror, MirrorConfig, agent_config
from app.sweeps.pool import THREADS, Pool, worker_environment
from app.sweeps.worker import message

STAND_IN = """
import json, os, signal, sys, time
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if request["do"] == "leave":
        sys.exit(3)
    if request["do"] == "wait":
        try:
            open(request["file"], "w").close()
            time.sleep(60)
        except KeyboardInterrupt:
            open(request["file"] + ".saved", "w").close()
            sys.exit(130)
    print(json.dumps({"status": "finished", "metrics": {"pid": os.getpid()}}), flush=True)
"""


@pytest.fixture
def pool(tmp_path: Path) -> Any:
    def make(workers: int) -> Pool:
        return Pool([sys.executable, "-c", STAND_IN], worker_environment(1), workers, tmp_path / "logs" / "w.log")

    return make


def requests(*jobs: str) -> list[dict[str, Any]]:
    return [{"index": i, "do": do} for i, do in enumerate(jobs)]


def test_one_worker_answers_all_in_order(pool: Any) -> None:
    answers = list(pool(1).work(requests("a", "b", "c")))
    assert [request["index"] for request, _ in answers] == [0, 1, 2]
    assert len({answer["metrics"]["pid"] for _, answer in answers}) == 1
    assert all(answer["status"] == "finished" and answer["seconds"] >= 0 for _, answer in answers)


def test_several_workers_share_the_work(pool: Any) -> None:
    answers = list(pool(3).work(requests(*"abcdefgh")))
    assert sorted(request["index"] for request, _ in answers) == list(range(8))


def test_a_worker_that_dies_costs_its_cell_only(pool: Any) -> None:
    found = {r["index"]: a for r, a in pool(1).work(requests("a", "die", "b", "leave", "c"))}
    assert [found[i]["status"] for i in range(5)] == ["finished", "failed", "finished", "failed", "finished"]
    assert "ended by SIGKILL" in found[1]["error"]
    assert "ended with status 3" in found[3]["error"]


def test_nothing_to_do(pool: Any) -> None:
    assert list(pool(2).work([])) == []


def test_leaving_early_lets_workers_save(pool: Any, tmp_path: Path) -> None:
    started = tmp_path / "started"
    work = pool(2).work([{"index": 0, "do": "a"}, {"index": 1, "do": "wait", "file": str(started)}])
    request, _ = next(work)
    assert request["index"] == 0
    while not started.exists():
        time.sleep(0.01)
    work.close()
    assert (tmp_path / "started.saved").exists()


def test_a_command_that_does_not_start_fails_its_cells(tmp_path: Path) -> None:
    pool = Pool([str(tmp_path / "nothing")], worker_environment(1), 1, tmp_path / "w.log")
    answers = [answer for _, answer in pool.work(requests("a", "b"))]
    assert all(answer["status"] == "failed" and "No worker could be started" in answer["error"] for answer in answers)


def test_workers_get_their_share_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = worker_environment(2)
    assert [environment[name] for name in THREADS] == ["2"] * 3


def test_errors_are_one_line_with_a_name_where_they_need_one() -> None:
    assert message(ValueError("k must lie in\n1..8.")) == "k must lie in 1..8."
    assert message(KeyError("W_dec")) == "KeyError: 'W_dec'"
    assert message(MemoryError()) == "MemoryError"


class FakeRun:
    """What the mirror asks of a run of wandb."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.rows, self.code = options, [], None
        self.config = self

    def define_metric(self, *args: Any, **options: Any) -> None:
        """Metrics are not checked here."""

    def update(self, values: dict[str, Any], **options: Any) -> None:
        self.options["config"] = self.options["config"] | values

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.code = exit_code


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that were opened in a stand-in for wandb; asking it for a sweep fails."""
    import wandb

    opened: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        opened.append(FakeRun(options))
        return opened[-1]

    def refuse(*args: Any, **options: Any) -> None:
        pytest.fail("nothing here asks wandb's server for a sweep")

    monkeypatch.setattr(wandb, "init", init)
    for name in ("sweep", "agent", "controller"):
        monkeypatch.setattr(wandb, name, refuse)
    return opened


def test_a_mirror_shows_a_cell_as_part_of_its_group(wandb_runs: list[FakeRun], tmp_path: Path) -> None:
    from interp.runs import start_run

    run = start_run("sae", {"a": 1}, slug="t", root=tmp_path)
    run.log(1, fvu=0.9, tokens=64)
    run.log(2, fvu=0.5, tokens=128)
    config = MirrorConfig("offline", "project", "team", "group", "group-1234", str(tmp_path / "w"))
    with Mirror(config, {"d_sae": 8}, tmp_path) as mirror:
        mirror.trained(run)
        mirror.measured({"fvu": 0.6, "tokens": 500, "train/fvu": 0.5})
    (shown,) = wandb_runs
    asked = {key: shown.options[key] for key in ("project", "entity", "group", "name", "mode")}
    assert asked == {"project": "project", "entity": "team", "group": "group", "name": "group-1234", "mode": "offline"}
    assert shown.options["config"] == {"d_sae": 8, "sae_run": run.ref}
    assert shown.rows == [{"train/fvu": 0.9, "tokens": 64}, {"train/fvu": 0.5, "tokens": 128}, {"fvu": 0.6}]
    assert shown.code == 0
    run.close()


def test_a_mirror_follows_a_training_while_it_runs(
    wandb_runs: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.sweeps import mirror as module
    from interp.runs import start_run

    monkeypatch.setattr(module, "POLL", 0.01)
    with Mirror(MirrorConfig("offline", folder=str(tmp_path / "w")), {}, tmp_path) as mirror:
        run = start_run("sae", {"a": 1}, slug="t", root=tmp_path)
        for step in (1, 2, 3):
            run.log(step, fvu=1 / step, tokens=step)
            while len(wandb_runs[0].rows) < step:
                time.sleep(0.01)
        mirror.trained(run)
    assert [row["tokens"] for row in wandb_runs[0].rows] == [1, 2, 3], "each row once"
    run.close()


def test_a_cell_that_fails_is_shown_as_failed(wandb_runs: list[FakeRun], tmp_path: Path) -> None:
    with pytest.raises(ValueError), Mirror(MirrorConfig("offline", folder=str(tmp_path)), {}, tmp_path):
        raise ValueError
    assert wandb_runs[0].code == 1


def test_off_opens_nothing(wandb_runs: list[FakeRun], tmp_path: Path) -> None:
    with Mirror(MirrorConfig(), {}, tmp_path) as mirror:
        mirror.measured({"fvu": 1})
    assert wandb_runs == []


def test_under_an_agent_the_server_is_told_unless_somebody_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_SWEEP_ID", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert agent_config("off").mode == "off"
    assert agent_config("offline") == MirrorConfig("offline", "mechscope")
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert agent_config("off") == MirrorConfig("online", None)
    assert agent_config("disabled").mode == "disabled"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert agent_config("off").mode == "offline"


def test_requests_and_answers_are_json() -> None:
    assert json.loads(json.dumps(requests("a"))) == requests("a")
