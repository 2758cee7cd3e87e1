"""What the world model is trained on and measured by: targets, loss, and evaluation against loops and known models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from interp.data.othello import bits, generate_games
from interp.data.othello_tokens import game_tokens, legal_tokens, token_squares
from interp.zoo.train_othello import (
    OthelloConfig,
    build_model,
    evaluate,
    games_at,
    heldout_games,
    loss_of,
    target_distribution,
)

MICRO = OthelloConfig(side=4, n_layer=1, d_model=16, n_head=2, batch=8)


class Oracle(torch.nn.Module):
    """Gives the legal moves of the games it was made for the same logit, and all else `other`."""

    def __init__(self, games: Any, other: float) -> None:
        super().__init__()
        self.lm_head = torch.nn.Linear(1, 1)
        self.logits = torch.where(torch.from_numpy(legal_tokens(games)), 0.0, other)

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[: len(input_ids)])


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    assert np.array_equal(games_at(MICRO, 3).moves, games_at(MICRO, 3).moves)
    assert not np.array_equal(games_at(MICRO, 3).moves, games_at(MICRO, 4).moves)
    assert not np.array_equal(games_at(MICRO, 0).moves, heldout_games(MICRO, MICRO.batch).moves)


@pytest.mark.parametrize("targets", ["legal", "played"])
def test_targets_by_loops(targets: str) -> None:
    games = generate_games(20, 4, seed=1)
    found = target_distribution(games, targets).numpy()
    legal, squares = bits(games.legal, 4), token_squares(4)
    for game in range(20):
        for position in range(found.shape[1]):
            wanted = np.zeros(13)
            if position < games.lengths[game]:
                if targets == "legal":
                    wanted[1:] = legal[game, position, squares[1:]] / legal[game, position].sum()
                else:
                    wanted[squares.tolist().index(games.moves[game, position])] = 1
            elif position == games.lengths[game]:
                wanted[0] = 1
            assert found[game, position] == pytest.approx(wanted)


def test_both_targets_have_one_expected_loss() -> None:
    """Averaged over many games from one start, the loss on played moves is the loss on legal sets."""
    model = build_model(OthelloConfig(side=4, n_layer=1, d_model=16, n_head=2)).eval()
    games = generate_games(4000, 4, seed=2)
    with torch.no_grad():
        played, legal = (float(loss_of(model, games, targets)) for targets in ("played", "legal"))
    assert played == pytest.approx(legal, abs=2e-3)
    assert played != legal


def test_a_perfect_model_reaches_the_floor() -> None:
    games = generate_games(200, 6, seed=3)
    found = evaluate(Oracle(games, -1e4), games, chunk=200)
    counts = bits(games.legal, 6).sum(axis=-1)[:, 1:-1]
    floor = np.log(counts[games.moves[:, 1:] >= 0]).mean()
    assert found["floor"] == pytest.approx(floor, rel=1e-6)
    assert found["loss"] == pytest.approx(floor, rel=1e-6)
    assert found["above"] == pytest.approx(0, abs=1e-6)
    assert found["top1_legal"] == 1
    assert found["legal_mass"] == pytest.approx(1, abs=1e-6)


def test_a_model_that_prefers_illegal_moves_is_found_out() -> None:
    games = generate_games(50, 6, seed=3)
    found = evaluate(Oracle(games, 5.0), games, chunk=50)
    assert found["top1_legal"] == 0
    assert found["legal_mass"] < 0.05


def test_evaluation_by_loops_and_in_any_chunk() -> None:
    config = OthelloConfig(side=4, n_layer=1, d_model=16, n_head=2)
    model: Any = build_model(config).eval()
    games = generate_games(30, 4, seed=4)
    tokens, legal = torch.from_numpy(game_tokens(games)), legal_tokens(games)
    p = model(input_ids=tokens).logits.softmax(-1).detach().double().numpy()
    rows = [(g, t) for g in range(30) for t in range(1, games.lengths[g])]
    expected = {
        "loss": np.mean([-np.log(p[g, t, tokens[g, t + 1]]) for g, t in rows]),
        "floor": np.mean([np.log(legal[g, t].sum()) for g, t in rows]),
        "above": np.mean([np.mean(np.log(1 / legal[g, t].sum() / p[g, t, legal[g, t]])) for g, t in rows]),
        "top1_legal": np.mean([legal[g, t, p[g, t].argmax()] for g, t in rows]),
        "legal_mass": np.mean([p[g, t, legal[g, t]].sum() for g, t in rows]),
    }
    for chunk in (7, 30):
        assert evaluate(model, games, chunk=chunk) == pytest.approx(expected, rel=1e-5)


def test_the_context_holds_a_whole_game() -> None:
    for side in (4, 6, 8):
        config = OthelloConfig(side=side)
        assert game_tokens(generate_games(4, side, 0)).shape[1] == config.context
        assert len(token_squares(side)) == config.vocab


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="targets must be one of legal, played, got 'all'"):
        OthelloConfig(targets="all")
