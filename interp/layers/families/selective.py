"""Family `selective`: what the components of each layer do for two tasks (`interp.layers.selective`).

It reads the tasks' prompts and not the text of the profile, and is measured only where it is asked for: most models do
not do most tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.layers.family import Batch, FamilyResult, Measure, layer_table
from interp.layers.selective import SETS, SelectiveConfig, find_selective
from interp.sites import Site
from interp.tasks.registry import task
from interp.tasks.templates import TooFewPairs

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle
    from interp.tasks.pairs import Pairs
    from interp.tasks.registry import Task


class SelectiveFamily:
    """Effects of heads and MLPs on two tasks, and the double dissociation of the sets that they name."""

    name = "selective"
    measures = (
        Measure("effect", "effect of the layer's components", "of the task", "Added up; patches of one layer overlap."),
        Measure("largest", "largest effect of a component", "of the task", "1: it alone brings the answer back."),
        Measure("difference", "largest difference of effects", "of the task", "Above 0: the first task."),
        Measure("chosen", "components of the sets", "number", "Chosen for a task on one half of the items."),
    )  # fmt: skip

    def __init__(
        self,
        first: str = "agreement",
        second: str = "pronoun_gender",
        items: int = 64,
        k: int = 3,
        neurons: int = 0,
        draws: int = 200,
        seed: int = 0,
    ) -> None:
        """Compare the tasks `first` and `second`, names of `interp.tasks.TASKS`, on `items` items each.

        Raises:
            ValueError: an unknown task, or a number below 1.
        """
        self.tasks, self.items = (task(first), task(second)), items
        self.config = SelectiveConfig(k=k, neurons=neurons, draws=draws, seed=seed)

    def sites(self, handle: ModelHandle) -> tuple[Site, ...]:  # noqa: ARG002
        """Return no site: the text is not read."""
        return ()

    def begin(self, handle: ModelHandle, blocks: Blocks) -> None:  # noqa: ARG002
        """Make the items of both tasks.

        Raises:
            ValueError: the model's tokens do not allow a task.
        """
        self._handle = handle
        self._pairs = [self._some(one, handle) for one in self.tasks]

    def _some(self, one: Task, handle: ModelHandle) -> Pairs:
        """Return as many pairs as were asked for, or as there are."""
        try:
            return one.pairs(handle, self.items, self.config.seed)
        except TooFewPairs as error:
            return one.pairs(handle, error.available, self.config.seed)

    def update(self, batch: Batch) -> None:
        """Do nothing: the text is not read."""

    def finish(self) -> FamilyResult:
        """Return the curves, and the tables `components`, `sets` and `draws`.

        Raises:
            ValueError: the model does not do a task.
        """
        found = find_selective(self._handle, self._pairs[0], self._pairs[1], self.config)
        names = [one.name for one in self.tasks]
        parts = names if names[0] != names[1] else [f"{names[0]} (1)", f"{names[1]} (2)"]
        rows, table = [], found.components.to_pylist()
        for layer in range(self._handle.n_layers):
            own = [row for row in table if row["layer"] == layer]
            for which, part in zip(SETS, parts, strict=True):
                effects = [row[which] for row in own if row["neuron"] is None]  # a neuron is a part of its MLP
                rows += [(layer, "effect", part, sum(effects)), (layer, "largest", part, max(effects))]
                rows.append((layer, "chosen", part, float(sum(row["chosen"] == which for row in own))))
            rows.append((layer, "difference", "", max((row["difference"] for row in own), key=abs)))
        tables = {"components": found.components, "sets": found.sets, "draws": found.draws}
        return FamilyResult(found.summary | {"first": names[0], "second": names[1]}, layer_table(rows), tables)
