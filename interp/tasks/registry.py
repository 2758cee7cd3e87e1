"""The tasks by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from interp.models.compiled.catalog import compiled_models
from interp.names import unknown
from interp.tasks.agreement import AGREEMENT, AGREEMENT_ATTRACTOR
from interp.tasks.docstring import DOCSTRING
from interp.tasks.greater_than import GREATER_THAN
from interp.tasks.induction import Induction
from interp.tasks.ioi import IOI, IOI_S2
from interp.tasks.pronoun_gender import PRONOUN_GENDER, PRONOUN_NAME
from interp.tasks.quotes import BRACKETS, QUOTES, QUOTES_STOP

if TYPE_CHECKING:
    from interp.models.handle import ModelHandle
    from interp.tasks.pairs import Pairs


@runtime_checkable
class Task(Protocol):
    """What makes pairs of prompts for a model."""

    @property
    def name(self) -> str:
        """Name of the task."""
        ...

    @property
    def summary(self) -> str:
        """What is asked, for tables."""
        ...

    def pairs(self, handle: ModelHandle, n: int = 32, seed: int = 0) -> Pairs:
        """Return `n` different pairs for this model, the same for equal seeds.

        Raises:
            ValueError: this model's tokens do not allow it.
        """
        ...


class Compiled:
    """The task of a compiled model: what it was written for."""

    name = "compiled"
    summary = "what a compiled model was written for"

    def pairs(self, handle: ModelHandle, n: int = 32, seed: int = 0) -> Pairs:
        """Return `n` pairs of the task of this compiled model.

        Raises:
            ValueError: it is no compiled model, or has no task of this size.
        """
        known = compiled_models()
        if handle.spec.name not in known:
            raise ValueError(f"The task 'compiled' is for {', '.join(known)}, not for {handle.spec.name}.")
        return known[handle.spec.name].pairs(n, seed)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Induction(),
        PRONOUN_GENDER,
        PRONOUN_NAME,
        AGREEMENT,
        AGREEMENT_ATTRACTOR,
        QUOTES,
        QUOTES_STOP,
        BRACKETS,
        IOI,
        IOI_S2,
        GREATER_THAN,
        DOCSTRING,
        Compiled(),
    )
}
"""Name -> task."""


def task(name: str) -> Task:
    """Return the task `name`, or raise ValueError with the nearest match."""
    if name not in TASKS:
        raise ValueError(unknown("task", name, TASKS))
    return TASKS[name]
