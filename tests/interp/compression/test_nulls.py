"""Random damage of a size that is asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp.compression.nulls import LARGEST, matched_null, mean_kl, null_recipe, solve, spread_blocks
from interp.compression.panels import Behaviour
from interp.models import ModelSpec, load_model
from tests.interp.compression.pairs import copy_of, measured, some_blocks


def test_mean_kl_is_that_of_the_behaviour() -> None:
    a, b, blocks = copy_of(), copy_of(noise=0.05), some_blocks(20)
    expected = measured(Behaviour(), a, b, blocks).summary["kl_mean"]
    assert mean_kl(a, b, blocks) == pytest.approx(expected, rel=1e-5)
    assert mean_kl(a, copy_of(), blocks) == 0


@pytest.mark.parametrize("kind", list(LARGEST))
def test_a_null_has_the_kl_that_was_asked_for(kind: str, model_folder: Path) -> None:
    spec, blocks, heard = ModelSpec(str(model_folder)), some_blocks(20), []
    recipe = matched_null(kind, spec, 0.05, blocks, tolerance=0.05, on_progress=lambda *trial: heard.append(trial))
    a = load_model(spec, device="cpu")
    null = load_model(replace(spec, recipe=recipe), device="cpu")
    assert mean_kl(a, null, blocks) == pytest.approx(0.05, rel=0.05)
    assert [step.name for step in recipe] == [kind]
    assert heard[-1][1] == pytest.approx(0.05, rel=0.05)
    assert recipe == null_recipe(kind, heard[-1][0])


def test_the_solution_is_found_for_curves_of_many_shapes() -> None:
    for kl_at, target, largest in (
        (lambda s: s**2, 1e-6, 64.0),
        (lambda s: 3 * s**2 / (1 + s), 40.0, 64.0),
        (lambda s: 0.0 if s < 0.3 else (s - 0.3) ** 0.5, 0.1, 1.0),  # nothing happens at first
        (lambda s: math.inf if s > 2e-3 else 50 * s, 0.03, 64.0),  # breaks down early
        (lambda s: math.exp(20 * s) - 1, 1e5, 1.0),
    ):
        tried = []

        def counted(strength: float, kl_at=kl_at, tried=tried) -> float:
            tried.append(strength)
            return kl_at(strength)

        found = solve(counted, target, largest, 0.02)
        assert kl_at(found) == pytest.approx(target, rel=0.02)
        assert 0 < found <= largest
        assert len(tried) < 30


def test_what_cannot_be_matched_is_told_with_numbers() -> None:
    with pytest.raises(ValueError, match=r"No strength up to 1 gives a KL of 5 nats: 1 gives 2\."):
        solve(lambda s: 2 * s, 5.0, 1.0, 0.02)
    with pytest.raises(ValueError, match="No strength gives a KL of 0.5 nats within 2% in 40 trials"):
        solve(lambda s: float(s > 0.1), 0.5, 1.0, 0.02)


def test_requests_are_checked(model_folder: Path) -> None:
    blocks = some_blocks()
    for kind, target, tolerance, message in (
        ("weight_nois", 0.1, 0.02, "weight_noise"),
        ("weight_noise", 0.0, 0.02, "target_kl must be a number above 0, got 0.0: equal models need no null"),
        ("weight_noise", 0.1, 0.0, "tolerance must lie between 0 and 1, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            matched_null(kind, str(model_folder), target, blocks, tolerance=tolerance)


def test_blocks_are_spread_over_the_text() -> None:
    blocks = some_blocks(20)
    some = spread_blocks(blocks, 48)
    assert torch.equal(some.tokens, blocks.tokens[[0, 5, 10, 15]])
    assert len(spread_blocks(blocks, 1)) == 1
    assert len(spread_blocks(blocks, 10**6)) == 20
