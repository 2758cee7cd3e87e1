"""The board study: probes with their controls, dictionaries against probes, interventions; written into one run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from app import sources
from app.studies.board.accuracy import MODEL, RANDOM, Row, Scorer, layer_of, part
from app.studies.board.cases import CHANGES, FLIP, Cases, draw_cases, wrong_moves
from app.studies.board.intervening import Edit, Editor, SquareProbe, edits_of
from app.studies.board.latents import Comparison, train_dictionary
from app.studies.board.moves import move_rows
from app.studies.board.positions import (
    COLOUR,
    LABELS,
    PARITY,
    TURN,
    all_labels,
    even_rows,
    make_positions,
    read,
    side_of,
    stream_sites,
)
from app.studies.board.saving import OWN, save_board, save_table
from app.studies.board_options import BoardOptions
from interp.attribution.randomisation import randomised
from interp.config import to_json
from interp.models import ModelHandle
from interp.runs import Run, open_run
from interp.sites import Site
from probes.board import BoardProbe
from probes.intervals import bootstrap, weighted_mean
from probes.source import Source
from sae.model import Sae, load_sae

Hear = Callable[[int, int, str], None]
"""Hears (done, total, unit) of each stage."""
MEDIAN_ROWS = 16384
COMPARED = 400
"""Games, of each part, that columns are compared on."""
RESAMPLES = 400
NONE = "none"


def silent(done: int, total: int, unit: str) -> None:
    """Hear of progress and do nothing."""


def board_config(handle: ModelHandle, options: BoardOptions) -> dict[str, Any]:
    """Return what identifies a board study: the model, its weights, the options."""
    return {"model": to_json(handle.spec), "weights": handle.digest(), "options": to_json(options)}


def board_study(handle: ModelHandle, options: BoardOptions, run: Run, on_progress: Hear = silent) -> dict[str, Any]:
    """Make the study of an Othello model and write its files into `run` (kind "board"), which the caller finishes.

    Args:
        handle: a model whose tokens are the squares of a board.
        options: what is asked.
        run: the run, begun with `board_config`.
        on_progress: hears (done, total, unit) of each stage.

    Returns:
        The headline numbers, for `Run.finish`.

    Raises:
        ValueError: no Othello model, unknown layers or sites, a dictionary that does not fit, activations with NaN.
    """
    work = _Work(handle, options, run, on_progress)
    given = work.open_dictionaries()
    model = work.fit(handle, MODEL)
    shuffled = randomised(handle, options.seed)
    random = work.fit(shuffled, RANDOM)
    rows = work.scorer.commonest_rows(work.fitted)
    accuracy = model.rows + random.rows + rows
    save_table(run, "accuracy.parquet", accuracy)
    moves = [row for one, name in ((handle, MODEL), (shuffled, RANDOM)) for row in work.moves(one, name)]
    save_table(run, "moves.parquet", moves)
    probes = work.square_probes(model)
    own = work.compare(shuffled, model.X, given)
    edits = work.intervene(probes[TURN])
    save_board(run, work.side, probes, own, options.dictionaries)
    counts = {"side": work.side, "games": options.games, "rows": len(work.positions)}
    return counts | {"top1_legal": moves[0]["top1_legal"]} | headline(accuracy, edits)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Probes of one model at all layers."""

    probe: BoardProbe
    X: Float[Tensor, "row site d"]
    rows: list[Row]


class _Work:
    """What the stages share: the games and their division, the sites, the run."""

    def __init__(self, handle: ModelHandle, options: BoardOptions, run: Run, hear: Hear) -> None:
        self.handle, self.options, self.run, self.hear = handle, options, run, hear
        self.side = side_of(handle)
        self.sites = stream_sites(handle, options.layers)
        self.site = sources.handle_site(handle, options.site)
        self.positions, self.test_games = make_positions(options.games, self.side, options.seed)
        self.test = part(self.positions, self.test_games)
        self.fitted = ~self.test
        self.Y: Int[np.ndarray, "row task"] = all_labels(self.positions)
        self.scorer = Scorer(self.positions, self.test, options.seed)

    def fit(self, handle: ModelHandle, subject: str) -> _Fitted:
        """Read a model at all layers, fit the probes, score them."""
        X = read(handle, self.sites, self.positions, on_progress=lambda d, n: self.hear(d, n, f"games, {subject}"))
        held = [Source.of(handle, site) for site in self.sites]
        probe = BoardProbe(epochs=self.options.epochs, seed=self.options.seed, sources=held)
        probe.fit(X[torch.from_numpy(self.fitted)], self.Y[self.fitted])
        rows = self.scorer.probe_rows(probe, X[torch.from_numpy(self.test)], subject, list(map(str, self.sites)))
        return _Fitted(probe, X, rows)

    def moves(self, handle: ModelHandle, subject: str) -> list[Row]:
        """Return how well a model knows the rules on the test rows."""
        return move_rows(handle, self.positions, self.test, subject, self.options.seed)

    def square_probes(self, model: _Fitted) -> dict[str, SquareProbe]:
        """Return the probe of each label, with medians over rows that it was fitted on."""
        some = np.flatnonzero(self.fitted)[:MEDIAN_ROWS]
        held = model.X[torch.from_numpy(some)], self.Y[some], self.side**2
        return {label: SquareProbe.of(model.probe, self.sites, *held, label) for label in LABELS}

    def open_dictionaries(self) -> dict[str, tuple[Site, Sae]]:
        """Return the runs of `mechscope train` that are compared, each checked against the model."""
        found = {}
        for ref in self.options.dictionaries:
            run = open_run(ref, self.run.root)
            sae = load_sae(run)
            self.handle.check_weights(run.config.get("weights"), run.ref)
            site = self.handle.check_site(str(run.config.get("site")))
            if sae.config.target.kind != "input" or sae.d_in != self.handle.width(site):
                raise ValueError(
                    f"{run.ref} ({sae.config.target.kind}, d_in={sae.d_in}) does not read {site} alone, which has "
                    f"{self.handle.width(site)} numbers; name a dictionary of one site."
                )
            found[run.ref] = (site, sae)
        return found

    def compare(
        self, shuffled: ModelHandle, X: Float[Tensor, "row site d"], given: dict[str, tuple[Site, Sae]]
    ) -> tuple[Site, Sae] | None:
        """Write what latents, neurons and probes tell; return the study's own dictionary."""
        choose = even_rows(self.positions, ~self.test_games, COMPARED)
        test = even_rows(self.positions, self.test_games, COMPARED)
        table = Comparison(choose, test, self.options.seed)
        found, own, options = [], None, self.options
        models = {"": self.handle, f", {RANDOM}": shuffled}
        total = 4 + len(given) + 1
        for suffix, handle in models.items():
            known, scored = (read(handle, [self.site], one)[:, 0] for one in (choose, test))
            if options.latents:
                sae = train_dictionary(self._training_rows(handle, X), options.latents, options.active, options.seed)
                found.append(table.codes(f"{OWN}{suffix}", sae, known, scored))
                own = own or (self.site, sae)
            self.hear(len(found), total, "kinds of columns")
            neurons = Site(self.site.layer, "mlp_act")
            found.append(table.columns(f"neurons{suffix}", *(read(handle, [neurons], r)[:, 0] for r in (choose, test))))
            self.hear(len(found), total, "kinds of columns")
            if not suffix:
                found.append(table.probe("linear probe", choose, known, scored, options.epochs))
        for ref, (site, sae) in given.items():
            found.append(table.codes(ref, sae, *(read(self.handle, [site], r)[:, 0] for r in (choose, test))))
            self.hear(len(found), total, "kinds of columns")
        save_table(self.run, "columns.parquet", [row for one in found for row in one.summary])
        save_table(self.run, "labels.parquet", [row for one in found for row in one.labels])
        save_table(self.run, "latents.parquet", [row for one in found for row in one.meanings])
        return own

    def _training_rows(self, handle: ModelHandle, X: Float[Tensor, "row site d"]) -> Float[Tensor, "row d"]:
        """Return the rows of the games for fitting at the dictionary's site."""
        fitted = torch.from_numpy(self.fitted)
        if handle is self.handle and self.site in self.sites:
            return X[fitted, self.sites.index(self.site)]
        return read(handle, [self.site], self.positions)[fitted, 0]

    def intervene(self, probe: SquareProbe) -> list[Row]:
        """Write how many moves are wrong after edits of each kind at each layer."""
        rows: list[Row] = []
        if not self.options.edits:
            return rows
        modes = {"median": (1.0,), "negate": (1.0,), "add": self.options.scales, "random": (1.0,)}
        for change in CHANGES:
            cases = draw_cases(self.positions, self.test, change, self.options.edits, self.options.seed)
            editor = Editor(self.handle, probe, cases)
            chosen = modes if change == FLIP else {"median": (1.0,)}
            rows += [
                _edit_row(change, cases, editor.clean_logits, cases.before, "true board", self.options.seed),
                _edit_row(change, cases, editor.clean_logits, cases.after, NONE, self.options.seed),
            ]
            planned = edits_of(self.sites, chosen, self.options.seed)
            for done, (reach, edit) in enumerate(planned):
                rows.append(_edited_row(change, cases, editor, reach, edit))
                self.hear(done + 1, len(planned), f"edits ({change})")
        save_table(self.run, "edits.parquet", rows)
        return rows


def _edit_row(
    change: str, cases: Cases, logits: Float[Tensor, "case token"], legal: Bool[np.ndarray, "case token"], mode: str,
    seed: int,
) -> Row:  # fmt: skip
    """Return the count of wrong moves against a board, with its interval over games."""
    wrong = wrong_moves(logits, legal)
    span = bootstrap(weighted_mean(wrong), cases.game, resamples=RESAMPLES, seed=seed)
    ends = [end if math.isfinite(end) else None for end in (span.low, span.high)]
    about: Row = {"change": change, "mode": mode, "scale": None, "reach": "", "first": "", "last": ""}
    numbers: Row = {"cases": len(cases), "wrong": span.value, "low": ends[0], "high": ends[1]}
    return about | numbers | {"right": float((wrong == 0).mean()), "length": None, "share": None}


def _edited_row(change: str, cases: Cases, editor: Editor, reach: str, edit: Edit) -> Row:
    done = editor.run(edit)
    row = _edit_row(change, cases, done.logits, cases.after, edit.mode, edit.seed)
    first = edit.sites[0]
    return row | {
        "scale": edit.scale if edit.mode == "add" else None,
        "reach": reach,
        "first": str(first),
        "last": str(edit.sites[-1]),
        "length": float(done.lengths[first].mean()),
        "share": float(done.shares[first].mean()),
    }


def headline(accuracy: list[Row], edits: list[Row]) -> dict[str, Any]:
    """Return the numbers that a reader wants first: the best layer of each kind of probe, the fewest wrong moves."""
    found: dict[str, Any] = {}
    for subject, label, name in (
        (MODEL, TURN, "turn"),
        (MODEL, PARITY, "parity"),
        (MODEL, COLOUR, "colour"),
        (RANDOM, TURN, "turn_shuffled"),
    ):
        for squares in ("all", "occupied"):
            rows = [
                row
                for row in accuracy
                if (row["subject"], row["label"], row["squares"], row["positions"]) == (subject, label, squares, "all")
            ]
            best = max(rows, key=lambda row: row["accuracy"])
            end = "" if squares == "all" else "_occupied"
            found[name + end] = best["accuracy"]
            if name == "turn" and not end:
                found["layer"] = layer_of(best["site"])
    flips = [row for row in edits if row["change"] == FLIP]
    for mode in ("true board", NONE, "median", "negate", "add", "random"):
        wrong = [row["wrong"] for row in flips if row["mode"] == mode]
        if wrong:
            found[f"wrong_{mode.replace(' ', '_')}"] = min(wrong)
    return found
