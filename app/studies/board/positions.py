"""Positions of random games as rows of activations: which count, where they are read, and what is true of them.

A row is a position t of a game with 1 <= t < number of moves: the start, which is the same in all games, and the
position after the last move, where nobody is to move, are left out. Row t is read at token t, the move just played, and
its board is the one after that move.

`resid_pre.0` is the embeddings (token and place), `resid_post.l` the stream after block l. Published layer 0 is
resid_pre.0 here, and published layer k is resid_post.(k - 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.data.othello import SIDES, Games, generate_games
from interp.data.othello_tokens import game_tokens, vocabulary
from interp.hooks import capture
from interp.models import ModelHandle
from interp.sites import Site, parse_sites

TEST_SHARE = 0.2
"""Share of the games that probes are tested on."""
TURN, PARITY, COLOUR = "turn", "parity", "colour"
LABELS = {
    TURN: "mine / theirs / empty, by the side to move",
    PARITY: "mine / theirs / empty, by counting moves",
    COLOUR: "black / white / empty",
}
"""Three ways to name the state of a square; 0 is empty in each."""
EMPTY, MINE, THEIRS = 0, 1, 2
STATES = ("empty", "mine", "theirs")
"""Names of the classes of the first two labels."""
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Hear of progress and do nothing."""


def side_of(handle: ModelHandle) -> int:
    """Return the side of the board whose squares are the model's tokens.

    Raises:
        ValueError: the vocabulary is not that of a board, or the model reads fewer tokens than a game has.
    """
    found = handle.vocabulary() if handle.tokenizer is not None else []
    sides = [side for side in SIDES if found == vocabulary(side)]
    if not sides:
        shown = ", ".join(map(repr, found[:4])) + ", ..." if found else "no tokenizer"
        raise ValueError(
            f"A board study needs a model whose tokens are <game> and the squares a1, b1, ... of an Othello board; "
            f"{handle.spec.name} has {shown}. Name such a model, as othello6."
        )
    if handle.n_ctx < sides[0] ** 2 - 4:
        raise ValueError(
            f"A game on {sides[0]}x{sides[0]} squares has {sides[0] ** 2 - 4} moves, and {handle.spec.name} reads "
            f"n_ctx={handle.n_ctx} tokens only. Name a model that reads whole games."
        )
    return sides[0]


def stream_sites(handle: ModelHandle, layers: Sequence[int] = ()) -> list[Site]:
    """Return the embeddings and the stream after each of `layers` (all, where none is named).

    Raises:
        ValueError: the model has no such layer.
    """
    chosen = sorted(layers) if layers else range(handle.n_layers)
    for layer in chosen:
        if not 0 <= layer < handle.n_layers:
            raise ValueError(f"layers must lie in 0..{handle.n_layers - 1} of {handle.spec.name}, got {layer}.")
    return parse_sites(["resid_pre.0", *(f"resid_post.{layer}" for layer in chosen)])


@dataclass(frozen=True, eq=False)
class Positions:
    """Rows of some games; they stand game by game, in the order of the moves."""

    games: Games
    """The games."""
    kept: Bool[np.ndarray, "game position"]
    """Which positions are rows."""

    @cached_property
    def tokens(self) -> Int[Tensor, "game position"]:
        """What the model reads."""
        return torch.from_numpy(game_tokens(self.games))

    @cached_property
    def game(self) -> Int[np.ndarray, " row"]:
        """The game of each row."""
        return np.nonzero(self.kept)[0]

    @cached_property
    def move(self) -> Int[np.ndarray, " row"]:
        """How many moves were played before each row's position."""
        return np.nonzero(self.kept)[1]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.game)

    def labels(self, which: str) -> Int[np.ndarray, "row square"]:
        """Return the state of every square, 0 empty, as one of `LABELS` names it."""
        of = {TURN: self.games.relative, PARITY: lambda: self.games.relative(PARITY), COLOUR: self.games.absolute}
        return of[which]()[self.kept].astype(np.int64)

    @cached_property
    def passes(self) -> Int[np.ndarray, " row"]:
        """How many passes there were before each row's position."""
        return np.cumsum(self.games.passed, axis=1)[self.kept]


def all_labels(positions: Positions) -> Int[np.ndarray, "row task"]:
    """Return the labels of every square under each of `LABELS`, side by side."""
    return np.concatenate([positions.labels(which) for which in LABELS], axis=1)


def columns_of(which: str, squares: int) -> slice:
    """Return which tasks of `all_labels` are the squares under the label `which`."""
    first = list(LABELS).index(which) * squares
    return slice(first, first + squares)


def make_positions(n: int, side: int, seed: int) -> tuple[Positions, Bool[np.ndarray, " game"]]:
    """Return (rows of `n` random games, which games are for testing); the last fifth of the games is."""
    games = generate_games(n, side, [seed, 6])
    test = np.arange(n) >= n - max(1, round(n * TEST_SHARE))
    return rows_of(games), test


def rows_of(games: Games) -> Positions:
    """Return the rows of `games`: positions after at least one move at which a side is to move."""
    at = np.arange(games.legal.shape[1])
    return Positions(games, (at >= 1) & (at < games.lengths[:, None]) & (games.legal != 0))


def even_rows(positions: Positions, games: Bool[np.ndarray, " game"], most: int) -> Positions:
    """Return rows of some of the games, the same moves of each, so that games can exchange their labels.

    Games that end early are left out: those with fewer rows than nine in ten games have.

    Args:
        positions: all rows.
        games: which games may be taken.
        most: games at most.
    """
    counts = positions.kept.sum(axis=1)
    length = int(np.quantile(counts[games], 0.1))
    chosen = np.flatnonzero(games & (counts >= length))[:most]
    held = positions.games
    part = Games(
        held.side, held.moves[chosen], held.mine[chosen], held.theirs[chosen], held.black_moves[chosen],
        held.legal[chosen],
    )  # fmt: skip
    kept = positions.kept[chosen].copy()
    kept &= np.cumsum(kept, axis=1) <= length
    return Positions(part, kept)


def read(
    handle: ModelHandle,
    sites: Sequence[Site | str],
    positions: Positions,
    *,
    batch: int = 128,
    on_progress: Progress = silent,
) -> Float[Tensor, "row site d"]:
    """Return the activations of the rows at sites of one width, float32 on the CPU.

    Args:
        handle: the model.
        sites: where to read.
        positions: the rows.
        batch: games in a forward pass.
        on_progress: hears (games read so far, all games).

    Raises:
        ValueError: sites of different widths, or activations that are not finite.
    """
    places = [handle.check_site(site) for site in sites]
    widths = {handle.width(place) for place in places}
    if len(widths) != 1:
        raise ValueError(f"Sites read together have one width, got {sorted(widths)}; read them one by one.")
    found = torch.empty(len(positions), len(places), widths.pop())
    filled, n = 0, len(positions.tokens)
    length = int(positions.move.max()) + 1  # nothing after the last row is read
    for start in range(0, n, batch):
        kept = torch.from_numpy(positions.kept[start : start + batch, :length])
        with capture(handle, places, stop=True) as cache:
            handle.forward(positions.tokens[start : start + batch, :length].to(handle.device))
        rows = int(kept.sum())
        for index, place in enumerate(places):
            found[filled : filled + rows, index] = cache[place].flatten(2)[kept.to(handle.device)].float().cpu()
        filled += rows
        on_progress(min(start + batch, n), n)
    if not torch.isfinite(found).all():
        bad = [str(place) for index, place in enumerate(places) if not torch.isfinite(found[:, index]).all()]
        raise ValueError(
            f"{handle.spec.name} has activations that are not finite at {', '.join(bad)}, so nothing can be read. "
            "Check its weights (`mechscope models`), or load it as float32."
        )
    return found
