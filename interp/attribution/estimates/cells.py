"""From products of activations and gradients to cells, and from cells of every prompt to an `Attribution`.

score of a cell = sum over everything that the cell has all of, of (activation difference) x (gradient)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.attribution.axes import parts_of
from interp.attribution.estimates.question import Question
from interp.attribution.result import Attribution
from interp.attribution.tables import completeness_table, nodes_of, token_labels
from interp.sites import STREAM, Site

if TYPE_CHECKING:
    pass


@dataclass
class Scores:
    """Scores of every prompt, collected batch by batch."""

    cells: dict[Site, list[Tensor]] = field(default_factory=dict)
    """Site -> [batch, axes of its parts], one for each batch."""
    totals: dict[Site, list[Tensor]] = field(default_factory=dict)
    """Site -> [batch], what its cells should add up to."""
    clean: list[Tensor] = field(default_factory=list)
    """Metric of the clean runs."""
    corrupt: list[Tensor] = field(default_factory=list)
    """Metric of the corrupted runs."""

    def add_values(self, question: Question, base: Tensor, other: Tensor) -> None:
        """Keep the metric of both runs."""
        pair = (other, base) if question.plan.direction == "denoising" else (base, other)
        for values, kept in zip(pair, (self.clean, self.corrupt), strict=True):
            kept.append(values.cpu().double())

    def add_whole(self, question: Question) -> None:
        """Keep the effect of the whole, in the batch that was added last, as the total of the stream's kinds."""
        for site in question.sites:
            if site.kind in STREAM:
                self.add_total(site, self.clean[-1] - self.corrupt[-1])

    def add_total(self, site: Site, values: Float[Tensor, " batch"]) -> None:
        """Keep what the cells of `site` should add up to."""
        self.totals.setdefault(site, []).append(values.cpu().double())

    def add(self, site: Site, values: Float[Tensor, "batch ..."]) -> None:
        """Keep the scores of a batch."""
        self.cells.setdefault(site, []).append(values)


def result(question: Question, method: str, scores: Scores, about: dict[str, Any]) -> Attribution:
    """Return the `Attribution` of `scores`."""
    import pyarrow as pa

    cells = {site: torch.cat(parts).numpy() for site, parts in scores.cells.items()}
    tables = []
    for site, values in cells.items():
        flat = values.reshape(len(values), -1)
        grid = np.unravel_index(np.arange(flat.shape[1]), values.shape[1:]) if values.ndim > 1 else ()
        tables.append(nodes_of(site.kind, site.layer, list(parts_of(site.kind, question.parts)), list(grid), flat))
    totals = {site: float(torch.cat(parts).mean()) for site, parts in scores.totals.items()}
    explained = {site: float(cells[site].reshape(len(cells[site]), -1).sum(1).mean()) for site in totals}
    values = {
        "clean": float(torch.cat(scores.clean).mean()),
        "corrupt": float(torch.cat(scores.corrupt).mean()),
        "prompts": float(len(question.pairs)),
    }
    return Attribution(
        method,
        question.metric.name,
        question.plan.baseline,
        question.plan.direction,
        pa.concat_tables(tables),
        completeness_table([(site.kind, site.layer, "all", explained[site], totals[site]) for site in totals]),
        token_labels(question.handle, question.pairs),
        values,
        about=described(question) | about,
    )


def described(question: Question) -> dict[str, Any]:
    """Return model, task and arguments as JSON values."""
    return {
        "model": question.handle.spec.name,
        "task": question.pairs.task,
        "parts": list(question.parts),
        "sites": [str(site) for site in question.sites],
    }
