"""Whether a model does a task at all: only then does it mean anything how it does it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from interp.names import unknown
from interp.tasks.pairs import NOTHING, Pairs
from interp.tasks.registry import TASKS, Task
from interp.tasks.templates import TemplateTask, TooFewPairs

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.models.handle import ModelHandle

LEAST = 0.7
"""Accuracy below which a task is not one for the model."""
CANNOT = "this model cannot do it"
FEWEST = 8
"""Pairs below which a table gives no accuracy."""
BATCH = 64
"""Prompts of one forward."""


def check_accuracy(handle: ModelHandle, pairs: Pairs, batch: int = BATCH) -> float:
    """Return the share of clean prompts after which the best correct token beats every wrong one (0 to 1)."""
    right = 0
    for start in range(0, len(pairs), batch):
        part = pairs.take(slice(start, start + batch))
        last = handle.logits(part.clean)[:, -1].float().cpu()
        best = [
            last.gather(-1, ids.clamp(min=0)).masked_fill(ids == NOTHING, -torch.inf).amax(-1)
            for ids in (part.correct.cpu(), part.wrong.cpu())
        ]
        right += int((best[0] > best[1]).sum())
    return right / len(pairs)


def usable(handle: ModelHandle, pairs: Pairs, least: float = LEAST) -> bool:
    """Return whether the model does the task: `check_accuracy` is at least `least`."""
    return check_accuracy(handle, pairs) >= least


def task_table(
    handle: ModelHandle, tasks: Iterable[str] | None = None, n: int = 64, seed: int = 0, least: float = LEAST
) -> pa.Table:
    """Return which tasks the model can do.

    Args:
        handle: the model.
        tasks: names out of `TASKS`; None: all but `compiled`, which only compiled models have.
        n: pairs of each.
        seed: of the pairs.
        least: accuracy (0 to 1) that a usable task needs.

    Returns:
        A table with the columns task, accuracy (null where the model's tokens do not allow the task), pairs (number),
        tokens (of a prompt), dropped (words that are not single tokens of this model), usable (bool), note.

    Raises:
        ValueError: a name is unknown.
    """
    import pyarrow as pa

    compiled = handle.spec.name.startswith("compiled/")
    names = [name for name in TASKS if name != "compiled" or compiled] if tasks is None else list(tasks)
    for name in names:
        if name not in TASKS:
            raise ValueError(unknown("task", name, TASKS))
    schema = {
        "task": pa.string(), "accuracy": pa.float64(), "pairs": pa.int32(), "tokens": pa.int32(), "dropped": pa.int32(),
        "usable": pa.bool_(), "note": pa.string(),
    }  # fmt: skip
    return pa.Table.from_pylist([_row(handle, name, n, seed, least) for name in names], pa.schema(schema))


def _row(handle: ModelHandle, name: str, n: int, seed: int, least: float) -> dict:
    """Return what is to say of one task."""
    task = TASKS[name]
    row = {"task": name, "usable": False, "note": ""}
    try:
        if isinstance(task, TemplateTask):
            row["dropped"] = sum(kept.dropped for kept in task.kept(handle).values())
        pairs = _as_many(task, handle, n, seed)
    except ValueError as error:
        return row | {"note": str(error)}
    accuracy = check_accuracy(handle, pairs)
    note = "" if accuracy >= least else f"{CANNOT} ({accuracy:.0%} right)"
    found = {"accuracy": accuracy, "pairs": len(pairs), "tokens": pairs.n_pos, "usable": accuracy >= least}
    return row | found | {"note": note}


def _as_many(task: Task, handle: ModelHandle, n: int, seed: int) -> Pairs:
    """Return `n` pairs, or those that there are, if they are at least `FEWEST`."""
    try:
        return task.pairs(handle, n, seed)
    except TooFewPairs as error:
        if error.available < FEWEST:
            raise
        return task.pairs(handle, error.available, seed)
