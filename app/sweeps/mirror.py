"""One wandb run for each cell: what the cell's training logs, live, and what its evaluation found.

The mirror reads the metrics file that the training writes, as anybody may, so that a cell that was found finished, or
resumed, shows its whole curve, and the training computes the same with wandb and without. Nothing is read back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from interp.runs import Run, find_runs, open_run, runs_root

Mode = Literal["off", "online", "offline", "disabled"]
POLL = 2.0
"""Seconds between two looks at the metrics file."""


@dataclass(frozen=True)
class MirrorConfig:
    """How cells are shown in wandb."""

    mode: Mode = "off"
    """"off" does not even import wandb."""
    project: str | None = None
    """None leaves it to wandb."""
    entity: str | None = None
    """None leaves it to wandb."""
    group: str | None = None
    """What the runs of one sweep have in common: its name."""
    name: str | None = None
    """Of the cell's run; None lets wandb choose."""
    folder: str | None = None
    """Where wandb keeps its files; None takes `.wandb` in the folder of the runs."""


def agent_config(mode: Mode) -> MirrorConfig:
    """Return the configuration of a cell that somebody started by itself: an agent of wandb, or a person.

    An agent names project, group and run in the environment, and its server waits for the numbers; $WANDB_MODE and a
    `mode` other than "off" come before that.
    """
    agent = bool(os.environ.get("WANDB_SWEEP_ID"))
    wanted = os.environ.get("WANDB_MODE", "online") if agent and mode == "off" else mode
    modes: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "disabled"}
    project = None if agent else "mechscope"
    return MirrorConfig(modes.get(wanted, "off"), project, folder=os.environ.get("WANDB_DIR"))


class Mirror:
    """A context around one cell; does nothing where the mode is "off"."""

    def __init__(self, config: MirrorConfig, parameters: Mapping[str, Any], runs: Path | None) -> None:
        """Mirror the cell with these parameters, whose runs lie in `runs`."""
        self.config, self.parameters, self.runs = config, dict(parameters), runs
        self._wandb: Any = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._sent = 0
        self._sending = threading.Lock()

    def __enter__(self) -> Mirror:
        """Open the wandb run and begin to follow the training of this process."""
        if self.config.mode == "off":
            return self
        import wandb

        folder = Path(self.config.folder or runs_root(self.runs) / ".wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            group=self.config.group,
            name=self.config.name,
            job_type="cell",
            dir=folder,
            mode=self.config.mode,
            config=self.parameters,
            settings=wandb.Settings(x_disable_stats=True, console="off", disable_git=True, disable_code=True),
        )
        self._wandb.define_metric("tokens")
        self._wandb.define_metric("train/*", step_metric="tokens")
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def trained(self, run: Run) -> None:
        """Send what of the finished training has not been sent, and its name."""
        if self._wandb is not None:
            self._end_following()
            self._send(run)
            self._wandb.config.update({"sae_run": run.ref}, allow_val_change=True)

    def measured(self, metrics: Mapping[str, Any]) -> None:
        """Send what the evaluation found, under the names that `metric` uses; `tokens` is the curves' axis."""
        if self._wandb is not None:
            own = {k: v for k, v in metrics.items() if not k.startswith("train/") and k != "tokens"}
            self._wandb.log(own)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close the wandb run; one whose cell failed is marked failed."""
        if self._wandb is not None:
            self._end_following()
            self._wandb.finish(exit_code=0 if kind is None else 1)

    def _end_following(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _follow(self) -> None:
        """Look for the training that this process writes, then for new rows in it, until told to stop."""
        ref = None
        while not self._stop.wait(POLL):
            if ref is None:
                mine = (r for r in find_runs(self.runs, "sae", finished=False) if r.info.get("pid") == os.getpid())
                ref = next((r.ref for r in mine if r.status == "running"), None)
            if ref is not None:
                self._send(open_run(ref, self.runs))

    def _send(self, run: Run) -> None:
        with self._sending:
            rows = run.metrics()
            for row in rows[self._sent :]:
                tokens = row.get("tokens")
                kept = {k: v for k, v in row.items() if k not in ("step", "tokens", "time") and v is not None}
                self._wandb.log({f"train/{name}": value for name, value in kept.items()} | {"tokens": tokens})
            self._sent = max(self._sent, len(rows))
