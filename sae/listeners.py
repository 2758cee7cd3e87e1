"""Who listens to a training: the run's log, its checkpoints, wandb. None of them changes a number."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from interp.checkpoint import read_checkpoint, write_checkpoint
from interp.runs import Run
from sae.training import Training

CHECKPOINT = "checkpoint.safetensors"


class RunLog:
    """Append a row to the run's metrics.jsonl every `every` steps and at the end, and keep its progress live."""

    def __init__(self, run: Run, every: int = 10) -> None:
        """Log into `run`."""
        self.run, self.every = run, every
        self.last: dict[str, float] = {}
        self._since = (time.time(), 0)

    def on_step(self, training: Training, metrics: dict[str, Tensor | float]) -> None:
        """Log every `every`-th step, the first and the last."""
        if training.step % self.every and training.step not in (1, training.config.steps):
            return
        now, tokens = time.time(), training.tokens
        before, seen = self._since
        self.last = {name: float(value) for name, value in metrics.items()}
        self.last["tokens"] = tokens
        if seen:
            self.last["rows_per_s"] = round((tokens - seen) / max(1e-9, now - before))
        self._since = (now, tokens)
        self.run.log(training.step, **self.last)
        self.run.progress(training.step, training.config.steps, "step", fvu=self.last["fvu"])

    def on_stop(self, training: Training) -> None:
        """Nothing is held back: rows are flushed as they come."""


class Checkpoint:
    """Write the whole state into the run every `seconds` and when the training stops, finished or not.

    The kernels that were chosen belong to the state (`sae.backends`): others would sum in another order. `discard`
    drops the checkpoint once what was trained is safe elsewhere.
    """

    def __init__(self, run: Run, seconds: float = 60.0) -> None:
        """Save into `run`."""
        self.run, self.seconds, self._saved = run, seconds, time.time()

    @property
    def path(self) -> Path:
        """The checkpoint's file."""
        return self.run.file(CHECKPOINT)

    def restore(self, training: Training) -> bool:
        """Put `training` where the checkpoint is and drop the log's later rows; False where there is none."""
        if not self.path.exists():
            return False
        tensors, meta = read_checkpoint(self.path)
        training.kernels.taken.update(meta.get("kernels", {}))
        training.restore(tensors, meta)
        self.run.truncate_metrics(training.step)
        return True

    def on_step(self, training: Training, metrics: dict[str, Tensor | float]) -> None:  # noqa: ARG002
        """Save when the time has come."""
        if time.time() - self._saved >= self.seconds:
            self._save(training)

    def on_stop(self, training: Training) -> None:
        """Save where the training is, unless a step was torn: then the checkpoint before it is the truth."""
        if training.whole:
            self._save(training)

    def discard(self) -> None:
        """Remove the checkpoint."""
        self.path.unlink(missing_ok=True)

    def _save(self, training: Training) -> None:
        meta = {"step": training.step, "kernels": training.kernels.taken}
        write_checkpoint(self.path, training.tensors(), meta)
        self._saved = time.time()


def check_wandb(mode: str) -> None:
    """Make sure, before anything takes time, that wandb can mirror online if `mode` is "online".

    In a terminal wandb asks for the key that it lacks.

    Raises:
        ValueError: it has no key, or none that its server takes; says what to do.
    """
    if mode != "online":
        return
    import wandb
    from wandb.errors import Error

    try:
        ready, why = wandb.login(), "no key was given."
    except Error as problem:
        ready, why = False, str(problem)
    if not ready:
        raise ValueError(
            f"wandb cannot mirror online: {why} `wandb login` stores a key, WANDB_API_KEY gives one; or mirror offline "
            "(--wandb offline) and send it later with `wandb sync` and the run's folder .wandb/wandb/offline-run-*."
        )


class Wandb:
    """Mirror the metrics to Weights & Biases; nothing is ever read back from it."""

    def __init__(
        self,
        run: Run,
        *,
        mode: Literal["online", "offline", "disabled"] = "offline",
        project: str = "mechscope",
        group: str | None = None,
        every: int = 10,
    ) -> None:
        """Open a wandb run named like `run`.

        Its files go into a hidden folder of the run (not into the home folder), which the run's manifest leaves out.
        """
        import wandb

        self.every = every
        folder = run.path / ".wandb"
        folder.mkdir(exist_ok=True)
        self._wandb = wandb.init(
            project=project,
            name=run.name,
            group=group,
            job_type=run.kind,
            dir=folder,
            mode=mode,
            config={"run": run.ref, **run.config},
            settings=wandb.Settings(x_disable_stats=True, console="off", disable_git=True, disable_code=True),
        )
        self._wandb.define_metric("tokens")
        self._wandb.define_metric("train/*", step_metric="tokens")

    def on_step(self, training: Training, metrics: dict[str, Tensor | float]) -> None:
        """Log every `every`-th step and the last."""
        if training.step % self.every == 0 or training.step == training.config.steps:
            row: dict[str, Any] = {f"train/{name}": float(value) for name, value in metrics.items()}
            self._wandb.log(row | {"tokens": training.tokens})

    def on_stop(self, training: Training) -> None:
        """Close the wandb run; one that stopped early is marked failed."""
        self._wandb.finish(exit_code=0 if training.step == training.config.steps else 1)
