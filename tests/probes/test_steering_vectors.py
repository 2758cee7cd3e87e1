"""Difference-in-means steering, swaps by LEACE, effects on texts, and the causal check of a direction."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from interp.data import DataSpec, token_blocks
from interp.hooks import capture, patch
from interp.metrics import kl_divergence, next_token_loss
from interp.models import ModelHandle
from interp.sites import Site
from probes import LogisticProbe, MassMean, RidgeProbe, Source
from probes.capturing import capture_texts
from probes.causal import causal_check, score_direction
from probes.editing import change_rows, edit
from probes.effects import cost, preference, text_batches, texts_effect, word_ids
from probes.steering_vectors import (
    Shift,
    leace_swap,
    mean_difference,
    mean_differences,
    pair_differences,
    random_like,
    steer_along,
)

TEXTS = ["the cat sat", "the dog sat on the log", "the king", "the queen and the sea", "a mat", "the land of the sea"]
LABELS = ["a", "b", "a", "b", "a", "b"]


def test_the_difference_of_the_means(model: ModelHandle) -> None:
    found = mean_differences(model, TEXTS, LABELS, "b", ["resid_post"])
    assert list(found) == [Site(layer, "resid_post") for layer in range(3)]
    rows = []
    for text in TEXTS:  # one by one, without padding
        with capture(model, "resid_post.1") as taken:
            model.forward(model.tokens(text))
        rows.append(taken["resid_post.1"][0, -1].numpy())
    one, rows_ = found[Site(1, "resid_post")], np.stack(rows)
    np.testing.assert_allclose(one.vector, rows_[1::2].mean(0) - rows_[::2].mean(0), atol=1e-4)
    assert one.counts == (3, 3)
    assert one.norm == pytest.approx(np.linalg.norm(one.vector))
    away = np.concatenate([rows_[k::2] - rows_[k::2].mean(0) for k in (0, 1)])
    assert one.spread == pytest.approx(np.sqrt((away**2).sum(1).mean()), rel=1e-3)
    assert one.source == Source.of(model, "resid_post.1", "last")


def test_pairs_are_a_difference_of_means(gpt2: ModelHandle) -> None:
    pairs = [("the king", "the queen"), ("the cat sat", "the dog sat"), ("a mat", "a log")]
    found = pair_differences(gpt2, pairs, ["resid_post.1"])[Site(1, "resid_post")]
    with capture(gpt2, "resid_post.1") as taken:
        steps = []
        for pair in pairs:
            sides = []
            for text in pair:
                gpt2.forward(gpt2.tokens(text))
                sides.append(taken["resid_post.1"][0, -1].numpy())
            steps.append(sides[0] - sides[1])
    np.testing.assert_allclose(found.vector, np.mean(steps, 0), atol=1e-4)


def test_steering_adds_the_vector(model: ModelHandle) -> None:
    vectors = mean_differences(model, TEXTS, LABELS, "b", ["resid_post.0", "resid_post.1"])
    only = {Site(1, "resid_post"): vectors[Site(1, "resid_post")]}
    tokens, v = model.tokens(TEXTS[1]), torch.tensor(only[Site(1, "resid_post")].vector, dtype=torch.float32)
    before = model.logits(tokens)

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        x[:, -1] += -1.5 * v
        return x

    with patch(model, "resid_post.1", by_hand):
        wanted = model.logits(tokens)
    with steer_along(model, only, -1.5, positions="last"):
        found = model.logits(tokens)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    with steer_along(model, vectors, 0.0):
        assert torch.equal(model.logits(tokens), before)
    with (
        pytest.raises(ValueError, match="fitted at resid_post.1"),
        steer_along(model, {Site(0, "resid_post"): only[Site(1, "resid_post")]}),
    ):
        pass
    assert torch.equal(model.logits(tokens), before)


def test_random_directions_are_as_long_and_unlike() -> None:
    v = np.random.default_rng(0).normal(size=200)
    drawn = random_like(v, 50, seed=1)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), np.linalg.norm(v))
    cosine = drawn @ v / np.linalg.norm(v) ** 2
    assert abs(cosine.mean()) < 0.05
    assert np.abs(cosine).max() < 0.4
    np.testing.assert_array_equal(drawn, random_like(v, 50, seed=1))
    assert not np.allclose(drawn, random_like(v, 50, seed=2))


def planted(n: int = 400, d: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + np.outer(y, 2 * rng.normal(size=d)), y


def test_a_swap_gives_the_concept_and_nothing_else() -> None:
    x, y = planted()
    swap = leace_swap(x, y, 1)
    moved = swap(x)
    assert np.linalg.matrix_rank(moved - x, tol=1e-6) == 1
    np.testing.assert_allclose(swap(moved), moved, atol=1e-9)
    np.testing.assert_allclose(moved[y == 1].mean(0), x[y == 1].mean(0), atol=1e-9)
    np.testing.assert_allclose(moved[y == 0].mean(0), x[y == 1].mean(0), atol=1e-8)
    reader = LogisticRegression(max_iter=1000).fit(x, y)
    assert reader.score(x, y) > 0.9
    assert reader.predict(moved[y == 0]).mean() > 0.9
    # What is uncorrelated with the label stays: the covariance of what is left with any probe of it is untouched.
    other = np.random.default_rng(1).normal(size=len(x))
    left = np.eye(x.shape[1]) - swap.right.T @ swap.left.T
    np.testing.assert_allclose((moved - moved.mean(0)).T @ other, ((x - x.mean(0)) @ left).T @ other, atol=1e-6)


def test_sides_that_are_missing() -> None:
    x, y = planted(20)
    for target, word in ((7, "no"), (0, "only")):
        with pytest.raises(ValueError, match=f"got {word} such rows"):
            mean_difference(x[: 20 if word == "no" else 1], y[: 20 if word == "no" else 1], target)
    with pytest.raises(ValueError, match="one label for each of the 20 rows"):
        leace_swap(x, y[:5], 1)


def test_batches_hold_every_text_once(gpt2: ModelHandle) -> None:
    seen = {}
    for part in text_batches(gpt2, TEXTS, batch=4):
        for row, number in enumerate(part.numbers):
            ids = part.tokens[row][part.real[row]]
            seen[int(number)] = gpt2.decode(ids[1:])
            assert part.last[row] == len(ids) - 1
            assert part.chosen(gpt2, "last")[row].nonzero().tolist() == [[len(ids) - 1]]
            assert part.chosen(gpt2, "0")[row].nonzero().tolist() == [[1]]
            assert part.chosen(gpt2, "mean")[row].sum() == len(ids) - 1
    assert [seen[i] for i in range(len(TEXTS))] == TEXTS
    with pytest.raises(ValueError, match="has no position -30"):
        next(text_batches(gpt2, TEXTS)).chosen(gpt2, "-30")
    with pytest.raises(ValueError, match="At least one text"):
        next(text_batches(gpt2, []))


def test_effects_are_those_of_single_runs(model: ModelHandle) -> None:
    vector = np.full(32, 0.3)
    words = (word_ids(model, [" the", " a"]), word_ids(model, ["o"]))
    site = Site(1, "resid_post")
    found = texts_effect(
        model,
        TEXTS,
        lambda chosen: change_rows(model, site, Shift(vector), chosen),
        words=words,
        sites=[Site(2, "resid_post")],
        batch=4,
    )
    for number, text in enumerate(TEXTS):
        tokens = model.tokens(text)
        before = model.logits(tokens)[0, -1]
        with change_rows(model, site, Shift(vector), "last"), capture(model, "resid_post.2") as taken:
            after = model.logits(tokens)[0, -1]
        assert found.kl[number] == pytest.approx(float(kl_divergence(before, after)), abs=1e-4)
        assert found.top1[number] == (before.argmax() != after.argmax())
        shift = float(preference(after, words) - preference(before, words))
        assert found.preference[number] == pytest.approx(shift, abs=1e-4)
        np.testing.assert_allclose(found.rows[Site(2, "resid_post")][number], taken["resid_post.2"][0, -1], atol=1e-4)
    p = model.logits(model.tokens(TEXTS[0]))[0, -1].double().softmax(-1)
    odds = float(torch.log(p[words[0]].sum() / p[words[1]].sum()))
    assert float(preference(model.logits(model.tokens(TEXTS[0]))[0, -1], words)) == pytest.approx(odds)
    with pytest.raises(ValueError, match="is one token of"):
        word_ids(model, ["a long sentence"])


def test_cost_is_the_difference_of_the_losses(gpt2: ModelHandle) -> None:
    blocks = token_blocks(gpt2, DataSpec(context=16, tokens=160))
    tokens = blocks.tokens.long()
    found = cost(gpt2, blocks, lambda chosen: change_rows(gpt2, "resid_post.1", lambda x: x + 0.5, chosen))
    before = next_token_loss(gpt2.logits(tokens), tokens)
    with change_rows(gpt2, "resid_post.1", lambda x: x + 0.5, ~blocks.bos()):
        after = next_token_loss(gpt2.logits(tokens), tokens)
    assert found["loss_a"] == pytest.approx(float(before.mean()), rel=1e-5)
    assert found["loss_delta"] == pytest.approx(float((after - before).mean()), abs=1e-5)
    still = cost(gpt2, blocks, lambda _: nullcontext())
    assert (still["loss_delta"], still["kl_mean"]) == (0, 0)


def test_the_causal_check(gpt2: ModelHandle) -> None:
    taken = capture_texts(gpt2, TEXTS, ["resid_post.1"])
    x = taken.rows("resid_post.1", "last")
    probe = MassMean(source=taken.source("resid_post.1", "last")).fit(x, LABELS)
    difference = mean_difference(x, LABELS, "b").vector
    words = (word_ids(gpt2, [" the"]), word_ids(gpt2, ["o"]))
    table = causal_check(gpt2, probe, TEXTS, strengths=(0.0, 1.0), difference=difference, nulls=3, words=words)
    rows = table.to_pylist()
    assert [(row["direction"], row["draw"]) for row in rows[::2]] == [
        ("probe", 0), ("mean_difference", 0), ("random", 0), ("random", 1), ("random", 2),
    ]  # fmt: skip
    for row in rows:
        assert row["norm"] == pytest.approx(row["strength"] * np.linalg.norm(difference))
        assert (row["kl"] == 0) == (row["strength"] == 0)
    probe_row, difference_row = rows[1], rows[3]  # of a mass-mean probe both are one direction
    assert probe_row["log_odds"] == pytest.approx(difference_row["log_odds"], abs=1e-5)
    assert probe_row["score"] == pytest.approx(float(difference @ difference))
    by_hand = texts_effect(
        gpt2, TEXTS, lambda chosen: change_rows(gpt2, "resid_post.1", Shift(difference), chosen), words=words
    )
    assert probe_row["log_odds"] == pytest.approx(by_hand.preference.mean(), abs=1e-5)
    assert probe_row["log_odds_se"] == pytest.approx(by_hand.preference.std(ddof=1) / 6**0.5, abs=1e-5)
    assert abs(rows[5]["score"]) < abs(probe_row["score"])
    plain = causal_check(gpt2, probe, TEXTS, target="a", strengths=(1.0,), nulls=0).to_pylist()
    assert [row["log_odds"] for row in plain] == [None]
    assert plain[0]["norm"] == pytest.approx(np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean()), rel=1e-4)
    wrong: list[dict[str, Any]] = [{"strengths": ()}, {"nulls": -1}, {"size": 0.0}]
    for bad in wrong:
        with pytest.raises(ValueError, match="must be"):
            causal_check(gpt2, probe, TEXTS, **bad)


def test_directions_raise_the_score() -> None:
    x, y = planted()
    for k, probe in ((2, RidgeProbe()), (2, LogisticProbe(C=1.0)), (3, LogisticProbe(C=1.0))):
        labels = y if k == 2 else np.arange(len(x)) % 3
        probe.fit(x, labels)
        for target in range(k):
            step = x + score_direction(probe, target)
            before, after = (np.atleast_2d(probe.decision_function(z).T).T for z in (x, step))
            sign = 1 if k > 2 or target == 1 else -1
            column = target if k > 2 else 0
            assert (sign * (after - before)[:, column] > 0).all()
    flat = RidgeProbe().fit(x, y)
    flat.coef_ = np.zeros_like(flat.coef_)
    with pytest.raises(ValueError, match="no direction to move along"):
        score_direction(flat)


def test_edits_and_steering_nest(gpt2: ModelHandle) -> None:
    taken = capture_texts(gpt2, TEXTS, ["resid_post.1"])
    probe = LogisticProbe(C=1.0, source=taken.source("resid_post.1", "last"))
    probe.fit(taken.rows("resid_post.1", "last"), LABELS)
    vectors = mean_differences(gpt2, TEXTS, LABELS, "b", ["resid_post.0"])
    tokens = gpt2.tokens(TEXTS[0])
    with steer_along(gpt2, vectors, -3.0), edit(gpt2, probe, "b", 0.9) as done:
        gpt2.logits(tokens)
    assert done.table().to_pylist()[0]["after"] >= 0.9 - 1e-5
