"""Dictionaries against probes: what single latents, neurons and linear probes tell of tiles, moves and stability.

Labels are the state of each square (empty, mine, theirs), the legal moves, and the squares with a stable disc. For each
label and each kind of columns:

    AUROC           of the best column by mid-ranks, beside what the best column has when whole games exchange labels
    within a move   AUROC among positions after equally many moves, which a count of moves cannot have
    coverage        F1 of the best column and threshold, chosen on other games (`probes.coverage`)

The baselines: raw MLP neurons, a dictionary and the neurons of the model with shuffled weights, a linear probe for each
label, the number of moves alone, and a guess that is always on. Columns are chosen for AUROC on the rows that are
scored, which the null accounts for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from app.studies.board.positions import STATES, TURN, Positions
from interp.data.othello import bits, centre, square_names
from interp.data.othello_stability import stable_discs
from probes.board import BoardProbe
from probes.coverage import Coverage, always_on, coverage, f1_score
from probes.roc import AurocStream, auroc, max_null
from probes.within import auroc_within, stratum_only
from sae.config import SaeConfig, TrainConfig
from sae.model import Sae
from sae.training import begin, train

COLOUR, LEGAL, STABLE = "tile", "legal", "stable"
FAMILIES = {COLOUR: "state of a square", LEGAL: "legal moves", STABLE: "stable discs"}
"""What is asked of single columns."""
HIGH = 0.9
"""AUROC that published claims of single latents name."""
DRAWS = 20
"""Shufflings of the null."""
QUANTILE = 0.95
STEPS, BATCH = 1000, 1024
"""Training of the study's own dictionaries."""
ENCODED = 8192
"""Rows encoded at a time."""
MEANINGS = 3
"""Labels named for each latent."""
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Marks:
    """Labels of rows, with what each is."""

    values: Bool[np.ndarray, "row label"]
    """Whether the row has the label."""
    family: NDArray[np.str_]
    """One of `FAMILIES`."""
    square: Int[np.ndarray, " label"]
    """The square it is about."""
    state: NDArray[np.str_]
    """`empty`, `mine` or `theirs` of a tile, else the family."""

    def about(self, label: int, side: int) -> Row:
        """Return family, square and state of a label."""
        square = int(self.square[label])
        named = {"family": str(self.family[label]), "square": square, "name": square_names(side)[square]}
        return named | {"state": str(self.state[label])}


def board_marks(positions: Positions) -> Marks:
    """Return the labels of the rows: state of each square for the side to move, legal moves, stable discs."""
    games, kept = positions.games, positions.kept
    tiles = positions.labels(TURN)
    n = tiles.shape[1]
    playable = np.setdiff1d(np.arange(n), centre(games.side))
    legal = bits(games.legal[kept], games.side)[:, playable]
    stable = stable_discs(games.mine[kept], games.theirs[kept], games.side)
    parts = [tiles == state for state in range(3)] + [legal, stable]
    squares = [np.arange(n)] * 3 + [playable, np.arange(n)]
    states = [*STATES, LEGAL, STABLE]
    families = [COLOUR] * 3 + [LEGAL, STABLE]
    return Marks(
        np.concatenate(parts, axis=1),
        np.concatenate([np.full(len(s), f) for s, f in zip(squares, families, strict=True)]),
        np.concatenate(squares),
        np.concatenate([np.full(len(s), f) for s, f in zip(squares, states, strict=True)]),
    )


class RowBatches:
    """Batches of rows in memory: every row once in a seeded order, then again in another."""

    def __init__(self, rows: Float[Tensor, "row d"], batch: int, seed: int) -> None:
        """Take `batch` of the rows in a step."""
        self.rows, self.size, self.seed = rows, min(batch, len(rows)), seed
        self.d_in = rows.shape[1]

    def batch(self, step: int) -> Float[Tensor, "batch d"]:
        """Return the rows of a step."""
        per_pass = len(self.rows) // self.size
        generator = torch.Generator().manual_seed(1000003 * self.seed + step // per_pass)
        order = torch.randperm(len(self.rows), generator=generator)
        first = step % per_pass * self.size
        return self.rows[order[first : first + self.size]]


def train_dictionary(
    rows: Float[Tensor, "row d"], latents: int, active: int, seed: int, steps: int | None = None
) -> Sae:
    """Return a TopK dictionary of rows in memory; 1,000 steps of 1,024 rows by default."""
    batches = RowBatches(rows, BATCH, seed)
    config = TrainConfig(tokens=(steps or STEPS) * batches.size, batch=batches.size, seed=seed)
    sae = Sae(SaeConfig(rows.shape[1], latents, "topk", {"k": min(active, latents)}))
    return train(begin(sae, batches, config), batches)


@dataclass(frozen=True, eq=False)
class Compared:
    """What one kind of columns is found to tell."""

    summary: list[Row]
    """For each family: how well the best columns do."""
    labels: list[Row]
    """For each label: its best column."""
    meanings: list[Row]
    """For each column that fires: the labels that it tells best within a move."""


class Comparison:
    """Columns of one kind after the other against the same labels."""

    def __init__(self, choose: Positions, test: Positions, seed: int) -> None:
        """Take the rows that thresholds are chosen on and those that are scored, equally many of each game."""
        self.choose, self.test, self.seed = choose, test, seed
        self.chosen_marks, self.marks = board_marks(choose), board_marks(test)
        self.position_only = stratum_only(test.move, self.marks.values)
        self.always = always_on(self.marks.values)

    def codes(self, source: str, sae: Sae, choose: Float[Tensor, "row d"], test: Float[Tensor, "row d"]) -> Compared:
        """Return what the latents of a dictionary tell; AUROC is gathered batch by batch."""
        stream = AurocStream(sae.d_sae, self.marks.values.shape[1])
        for start in range(0, len(test), ENCODED):
            piece = slice(start, start + ENCODED)
            stream.add(_encode(sae, test[piece]), self.marks.values[piece])
        known = torch.cat([_encode(sae, piece).dense() for piece in choose.split(ENCODED)]).numpy()
        return self._compare(source, stream.columns(), known, meanings=True)

    def columns(self, source: str, choose: Float[Tensor, "row d"], test: Float[Tensor, "row d"]) -> Compared:
        """Return what raw columns (neurons) tell."""
        return self._compare(source, test.numpy(), choose.numpy(), meanings=False)

    def _compare(self, source: str, scored: Any, known: NDArray, *, meanings: bool) -> Compared:
        marks = self.marks.values
        areas = auroc(scored, marks)
        within = auroc_within(scored, marks, self.test.move)
        null = max_null(scored, marks, draws=DRAWS, groups=self.test.game, seed=self.seed)
        dense = scored.toarray() if hasattr(scored, "toarray") else scored
        found = coverage(known, self.chosen_marks.values, np.asarray(dense), marks)
        labels = self._labels(source, areas, within, null, found)
        summary = self._summary(source, labels, null, areas.shape[0], self._rebuilt(known, dense))
        named = self._meanings(source, areas, within, (dense != 0).mean(0)) if meanings else []
        return Compared(summary, labels, named)

    def _rebuilt(self, known: NDArray, dense: NDArray) -> float:
        """Return the F1 of the board (all squares and states) rebuilt from precise columns."""
        tiles = self.marks.family == COLOUR
        found = coverage(known, self.chosen_marks.values[:, tiles], np.asarray(dense), self.marks.values[:, tiles])
        return float(np.nanmean(found.reconstruction))

    def _labels(self, source: str, areas: NDArray, within: NDArray, null: NDArray, found: Coverage) -> list[Row]:
        rows = []
        for label in range(areas.shape[1]):
            best, best_within = int(areas[:, label].argmax()), _best(within[:, label])
            rows.append(
                {"source": source}
                | self.marks.about(label, self.test.games.side)
                | {
                    "share": float(self.marks.values[:, label].mean()),
                    "column": best,
                    "auroc": _number(areas[best, label]),
                    "null": _number(np.quantile(null[:, label], QUANTILE)),
                    "position_only": _number(self.position_only[label]),
                    "within_column": best_within,
                    "within": _number(within[best_within, label]),
                    "f1_column": int(found.column[label]),
                    "threshold": float(found.threshold[label]),
                    "f1": _number(found.f1[label]),
                    "always_on": _number(self.always[label]),
                }
            )
        return rows

    def _summary(self, source: str, labels: list[Row], null: NDArray, columns: int, rebuilt: float) -> list[Row]:
        rows = []
        for family in FAMILIES:
            of = [row for row in labels if row["family"] == family]
            of_null = null[:, self.marks.family == family]
            known = np.isfinite(of_null).all(0)
            draws = of_null[:, known].mean(1) if known.any() else np.array([np.nan])
            rows.append(
                {"source": source, "family": family, "columns": columns, "labels": len(of)}
                | {name: _mean(of, name) for name in ("auroc", "position_only", "within")}
                | {"null": _number(np.quantile(draws, QUANTILE))}
                | {"above": _count(of, "auroc"), "above_within": _count(of, "within")}
                | {"coverage": _mean(of, "f1"), "always_on": _mean(of, "always_on")}
                | {"reconstruction": _number(rebuilt) if family == COLOUR else None}
            )
        return rows

    def _meanings(self, source: str, areas: NDArray, within: NDArray, fires: NDArray) -> list[Row]:
        rows = []
        order = np.argsort(-np.nan_to_num(within, nan=-1.0), axis=1)[:, :MEANINGS]
        for column in np.flatnonzero(fires > 0):
            for rank, label in enumerate(order[column]):
                about = {"source": source, "latent": int(column), "rank": rank, "fires": float(fires[column])}
                scores = {"within": _number(within[column, label]), "auroc": _number(areas[column, label])}
                rows.append(about | self.marks.about(int(label), self.test.games.side) | scores)
        return rows

    def probe(self, source: str, fitted: Positions, rows: Float[Tensor, "row d"], test: Float[Tensor, "row d"],
              epochs: int) -> Compared:  # fmt: skip
        """Return what a linear probe for each label tells, fitted on `rows` of the positions `fitted`."""
        marks = board_marks(fitted).values
        probe = BoardProbe(epochs=epochs, seed=self.seed).fit(rows[:, None], marks.astype(np.int64))
        margin = _margins(probe, test)
        truth = self.marks.values
        within = np.full(truth.shape[1], np.nan)
        areas = within.copy()
        for label in range(truth.shape[1]):
            column = margin[:, label]
            areas[label] = auroc(column, truth[:, label])[0, 0]
            within[label] = auroc_within(column[:, None], truth[:, [label]], self.test.move)[0, 0]
        f1 = f1_score(margin > 0, truth, 0)
        labels = []
        for label in range(truth.shape[1]):
            own = {"column": label, "within_column": label, "f1_column": label, "threshold": 0.0, "null": None}
            scores = {"auroc": _number(areas[label]), "within": _number(within[label]), "f1": _number(f1[label])}
            fixed = {
                "share": float(truth[:, label].mean()),
                "position_only": _number(self.position_only[label]),
                "always_on": _number(self.always[label]),
            }
            labels.append({"source": source} | self.marks.about(label, self.test.games.side) | own | scores | fixed)
        tiles = self.marks.family == COLOUR
        rebuilt = float(np.nanmean(f1_score(margin[:, tiles] > 0, truth[:, tiles])))
        null = np.full((1, truth.shape[1]), np.nan)
        return Compared(self._summary(source, labels, null, truth.shape[1], rebuilt), labels, [])


def _margins(probe: BoardProbe, rows: Float[Tensor, "row d"]) -> NDArray:
    """Return the score of "has the label" less that of "has not", for each row and label."""
    scores = torch.cat([probe.decision_function(piece[:, None])[:, 0] for piece in rows.split(ENCODED)])
    return (scores[..., 1] - scores[..., 0]).numpy()


@torch.no_grad()
def _encode(sae: Sae, rows: Float[Tensor, "row d"]) -> Any:
    return sae.encode(rows)


def _best(values: NDArray) -> int:
    return int(np.nan_to_num(values, nan=-1.0).argmax())


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(rows: list[Row], name: str) -> float | None:
    known = [row[name] for row in rows if row[name] is not None]
    return float(np.mean(known)) if known else None


def _count(rows: list[Row], name: str) -> int:
    return sum(row[name] is not None and row[name] > HIGH for row in rows)
