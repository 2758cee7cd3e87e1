"""The scores of every head in the profiles: one table of columns by (layer, head), and what each of them means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.widgets.artefacts import Unreadable, readable
from app.widgets.profiles import Shown

TABLES = ("attention", "readout")
"""Families with a table `heads`."""
MEANINGS = {
    "entropy": "entropy of where it looks, as a share of the largest possible, on text",
    "sink": "attention to position 0, on text",
    "previous": "attention to the token before, on text",
    "induction": "attention to what followed the same token before, on repeated random tokens",
    "previous_random": "attention to the token before, on random tokens",
    "duplicate": "attention to the same token before, on repeated random tokens",
    "copying": "sum of the eigenvalues of W_E W_OV W_U over that of their sizes: 1 copies, -1 suppresses",
    "copying_positive": "share of those eigenvalues with a positive real part",
    "copying_top": "share of tokens that it puts among the likeliest when it attends to them",
    "q_composition": "how much its queries read of what one earlier head writes, above random",
    "k_composition": "how much its keys read of what one earlier head writes, above random",
    "v_composition": "how much its values read of what one earlier head writes, above random",
    "ov_rank": "effective rank of OV: directions that it moves",
    "qk_rank": "effective rank of QK: directions that it compares",
    "ov_size": "largest singular value of OV",
    "qk_size": "largest singular value of QK",
    "ov_top": "share of OV in its first direction",
    "qk_top": "share of QK in its first direction",
    "dla": "direct contribution to the logit of the true next token, above the mean of all tokens",
}
"""Column -> what it is; others are shown without."""
_PLACES = ("layer", "head")


class HeadScores:
    """Numbers of each head of one profile."""

    def __init__(self, one: Shown) -> None:
        """Read the tables of heads.

        Raises:
            Unreadable: a table lacks the heads' places.
        """
        self.shown = one
        self.rows: dict[tuple[int, int], dict[str, Any]] = {}
        with readable():
            for family in TABLES:
                part = one.profile.parts.get(family)
                table = part.result.tables.get("heads") if part else None
                if table is None:
                    continue
                for row in table.to_pylist():
                    self.rows.setdefault((int(row["layer"]), int(row["head"])), {}).update(row)
        if any(place[0] < 0 or place[1] < 0 for place in self.rows):
            raise Unreadable(f"{one.run.ref} holds heads at negative places. Make the profile again.")

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and heads."""
        return (1 + max(place[0] for place in self.rows), 1 + max(place[1] for place in self.rows))

    @property
    def scores(self) -> list[str]:
        """Columns that are a number of the head itself, in their order."""
        found: dict[str, None] = {}
        for row in self.rows.values():
            for name, value in row.items():
                place = name in _PLACES or name.rpartition("_")[2] in _PLACES
                if not place and isinstance(value, int | float) and not isinstance(value, bool):
                    found[name] = None
        return list(found)

    def grid(self, score: str, shape: tuple[int, int] | None = None) -> NDArray[np.float64]:
        """Return a score of every head, [layer head], NaN where there is none."""
        found = np.full(shape or self.shape, np.nan)
        for (layer, head), row in self.rows.items():
            value = row.get(score)
            if layer < found.shape[0] and head < found.shape[1] and isinstance(value, int | float):
                found[layer, head] = value
        return found

    def row(self, layer: int, head: int) -> Mapping[str, Any]:
        """Return what is known of one head; nothing where there is no such head."""
        return self.rows.get((layer, head), {})

    def partners(self, layer: int, head: int) -> list[tuple[str, int, int, float]]:
        """Return (q, k or v; layer, head of the earlier head it reads most of; how much above random)."""
        row, found = self.row(layer, head), []
        for kind in "qkv":
            place = row.get(f"{kind}_layer"), row.get(f"{kind}_head")
            value = row.get(f"{kind}_composition")
            if place[0] is not None and place[1] is not None and isinstance(value, int | float):
                found.append((kind, int(place[0]), int(place[1]), float(value)))
        return found

    def readers(self, layer: int, head: int) -> list[tuple[str, int, int, float]]:
        """Return the later heads that read most of this one, the strongest first: (q, k or v, layer, head, value)."""
        found = [
            (kind, *place, value)
            for place in self.rows
            for kind, at_layer, at_head, value in self.partners(*place)
            if (at_layer, at_head) == (layer, head)
        ]
        return sorted(found, key=lambda one: -one[3])


def both(shown: Sequence[Shown]) -> list[HeadScores]:
    """Return the scores of each profile that has some."""
    found = [HeadScores(one) for one in shown]
    return [one for one in found if one.rows]
