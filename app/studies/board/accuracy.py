"""Linear probes of the board at every layer, with what they have to beat, and intervals over games.

One `BoardProbe` reads all squares under all three labels at all layers in one product. Beside it stand the same probe
on shuffled weights, and for each square the commonest state among the rows fitted on: alone, or by the number of moves
played. On occupied squares the commonest is taken among the occupied ones.

Most of the accuracy on a board is the class "empty", so everything is said over all squares and over occupied ones. A
pass makes the side to move differ from what counting moves gives; rows are told apart by whether the game has had one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from app.studies.board.positions import EMPTY, LABELS, Positions, columns_of
from probes.board import BoardProbe
from probes.intervals import bootstrap

MODEL, RANDOM = "model", "shuffled weights"
COMMONEST, COMMONEST_BY_MOVE = "commonest by square", "commonest by move"
"""The commonest state of each square, and of each square after so many moves."""
RESAMPLES = 400
"""Draws of the bootstrap over games."""
SQUARES = ("all", "occupied")
Right = Bool[np.ndarray, "row square"]
Row = dict[str, Any]


def part(positions: Positions, games: Bool[np.ndarray, " game"]) -> Bool[np.ndarray, " row"]:
    """Return which rows are of these games."""
    return games[positions.game]


def subsets(positions: Positions) -> dict[str, Bool[np.ndarray, " row"]]:
    """Return the rows by what passes there were: all; none so far; some; so many that counting moves is wrong."""
    passes = positions.passes
    return {
        "all": np.ones(len(positions), dtype=bool),
        "before a pass": passes == 0,
        "after a pass": passes > 0,
        "counting is wrong": passes % 2 == 1,
    }


class Scorer:
    """Accuracy over squares and rows, with intervals over the games that the rows are of."""

    def __init__(self, positions: Positions, rows: Bool[np.ndarray, " row"], seed: int) -> None:
        """Take the rows that are scored."""
        self.positions, self.rows, self.seed = positions, rows, seed
        self.of = np.unique(positions.game[rows], return_inverse=True)[1]
        self.subsets = {name: chosen[rows] for name, chosen in subsets(positions).items()}
        self.labels = {which: positions.labels(which)[rows] for which in LABELS}

    def score(self, right: Right, which: str, squares: str, subset: str) -> Row:
        """Return value, interval and numbers of squares and games, for the squares told right."""
        counted = np.broadcast_to(self.subsets[subset][:, None], right.shape)
        if squares == "occupied":
            counted = counted & (self.labels[which] != EMPTY)
        games = int(self.of.max()) + 1
        hits = np.bincount(self.of, (right & counted).sum(1), games)
        total = np.bincount(self.of, counted.sum(1), games)
        some = total > 0
        found: Row = {"label": which, "squares": squares, "positions": subset, "counted": int(total.sum())}
        if not some.any():
            return found | {"games": 0, "accuracy": None, "low": None, "high": None}
        hits, total = hits[some], total[some]

        def share(weights: Float[np.ndarray, " game"]) -> float:
            drawn = weights @ total
            return float(weights @ hits / drawn) if drawn else float("nan")

        span = bootstrap(share, np.arange(len(hits)), resamples=RESAMPLES, seed=self.seed)
        ends = [float(end) if np.isfinite(end) else None for end in (span.low, span.high)]
        return found | {"games": int(some.sum()), "accuracy": span.value, "low": ends[0], "high": ends[1]}

    def probe_rows(self, probe: BoardProbe, X: Any, subject: str, sites: list[str]) -> list[Row]:
        """Return the scores of a probe at each layer; X holds the scored rows."""
        predicted = probe.predict(X).numpy()
        found = []
        for which, truth in self.labels.items():
            columns = columns_of(which, truth.shape[1])
            for index, site in enumerate(sites):
                right = predicted[:, index, columns] == truth
                found += [
                    {"subject": subject, "site": site, "layer": layer_of(site)} | self.score(right, which, squares, one)
                    for squares in SQUARES
                    for one in self.subsets
                ]
        return found

    def commonest_rows(self, fitted: Bool[np.ndarray, " row"]) -> list[Row]:
        """Return the scores of the commonest state of each square among the rows `fitted`."""
        found = []
        moves = self.positions.move
        for which, truth in self.labels.items():
            known = self.positions.labels(which)[fitted]
            for by_move, subject in ((False, COMMONEST), (True, COMMONEST_BY_MOVE)):
                strata = np.zeros(len(moves), dtype=int) if not by_move else moves
                for squares in SQUARES:
                    guess = _commonest(known, strata[fitted], strata[self.rows], occupied=squares == "occupied")
                    found += [
                        {"subject": subject, "site": "", "layer": None}
                        | self.score(guess == truth, which, squares, one)
                        for one in self.subsets
                    ]
        return found


def _commonest(
    known: Int[np.ndarray, "fitted square"],
    strata: Int[np.ndarray, " fitted"],
    wanted: Int[np.ndarray, " row"],
    *,
    occupied: bool,
) -> Int[np.ndarray, "row square"]:
    """Return for each wanted row the commonest state of each square among fitted rows of its stratum."""
    table = np.zeros((max(strata.max(), wanted.max()) + 1, known.shape[1], 3))
    for state in range(1 if occupied else 0, 3):
        np.add.at(table[..., state], strata, known == state)
    return table.argmax(-1)[wanted]


def layer_of(site: str) -> int:
    """Return the published number of a layer: 0 for the embeddings, k for the stream after the k-th block."""
    kind, _, layer = site.partition(".")
    return 0 if kind == "resid_pre" else int(layer) + 1
