"""Puzzles: answers by walking the links, corrupted prompts that lead elsewhere, one form for both kinds."""

from __future__ import annotations

import numpy as np
import pytest

from interp.tasks.puzzles import PUZZLES, Puzzles


def walk(prompt: list[int], steps: int) -> int:
    """Return where the query leads along the links of a prompt."""
    links = dict(zip(prompt[1:-2:2], prompt[2:-2:2], strict=True))
    at = prompt[-2]
    for _ in range(steps):
        at = links[at]
    return at


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_answers_are_where_the_links_lead_and_what_the_table_says(steps: int) -> None:
    made = Puzzles(nodes=12, steps=steps)
    for kind in PUZZLES:
        pairs = made.pairs(kind, 30, seed=2)
        assert pairs.clean.shape == (30, made.n_pos)
        assert len(pairs.roles) == made.n_pos
        for side, answers in ((pairs.clean, pairs.correct), (pairs.corrupt, pairs.wrong)):
            for prompt, answer in zip(side.tolist(), answers[:, 0].tolist(), strict=True):
                expected = made.table[prompt[-2]] if kind == "recall" else walk(prompt, steps)
                assert answer == expected
        assert (pairs.correct != pairs.wrong).all()
        assert ((pairs.clean != pairs.corrupt).sum(1) == (1 if kind == "recall" else 2)).all()


def test_only_the_marker_tells_the_kinds_apart() -> None:
    made = Puzzles()
    recall, chain = (made.draw(kind, 50, np.random.default_rng(3))[0] for kind in PUZZLES)
    assert (recall[:, :-1] == chain[:, :-1]).all()
    assert (recall[:, -1] == 13).all()
    assert (chain[:, -1] == 14).all()
    assert made.d_vocab == 15


def test_the_table_is_a_cycle_and_a_pure_function_of_the_seed() -> None:
    table, at, seen = Puzzles(nodes=9).table, 1, set()
    while at not in seen:
        seen.add(at)
        at = int(table[at])
    assert seen == set(range(1, 10))
    assert (table == Puzzles(nodes=9).table).all()
    assert (table != Puzzles(nodes=9, seed=1).table).any()


def test_what_is_no_puzzle_is_refused() -> None:
    with pytest.raises(ValueError, match="got nodes=5, chains=2, steps=2"):
        Puzzles(nodes=5)
    with pytest.raises(ValueError, match="did you mean 'recall'"):
        Puzzles().pairs("recal")
    with pytest.raises(ValueError, match="n must be at least 1"):
        Puzzles().pairs("chain", 0)
