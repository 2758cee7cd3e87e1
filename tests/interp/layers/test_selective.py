"""Selective components: found where they were written by hand, not where there are none, and judged as defined."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from interp.attribution.patching.measure import measure_cells
from interp.data import Blocks
from interp.layers.dissociation import dissociation, knock_outs, matched_sets
from interp.layers.families.selective import SelectiveFamily
from interp.layers.profile import profile
from interp.layers.selective import SelectiveConfig, choose, find_selective, jaccard
from interp.layers.task_effects import permutation_p, task_effects
from interp.models import ModelHandle, load_model
from interp.models.compiled.blank import blank, selection, write_head
from interp.sites import Cell
from interp.tasks.pairs import Pairs

TOKENS, ASK_FIRST, ASK_SECOND = 12, 13, 14
"""Ordinary tokens are 1..12; the last two ask for the token at position 1 and at position 2."""
FIRST, SECOND = Cell("head_out", 1, head=2), Cell("head_out", 1, head=0)
"""The heads that answer."""


@pytest.fixture(scope="module")
def two_tasks() -> ModelHandle:
    """A model with a head for each of two tasks; all other heads look everywhere and write nothing."""
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 80, "n_inner": 4, "vocab_size": 15, "n_positions": 6}
    module = blank(sizes | {"activation_function": "relu", "bos_token_id": 0})
    token, out, place = selection(80, range(15)), selection(80, range(15, 30)), selection(80, range(30, 36))
    module.transformer.wte.weight.copy_(token.T)
    module.transformer.wpe.weight.copy_(place.T)
    module.lm_head.weight.copy_(5 * out.T)
    for layer in range(2):
        for head in range(4):
            write_head(module, layer, head, v=token)
    value = token.clone()
    value[0] = 0  # BOS, where a head rests that is not asked, says nothing
    for cell, ask, position in ((FIRST, ASK_FIRST, 1), (SECOND, ASK_SECOND, 2)):
        # score(i, j) = 40 [token i asks and j is the position] + 20 [j = 0]
        q = torch.stack([40 * token[:, ask], torch.zeros(80)], 1)
        k = torch.stack([place[:, position], place[:, 0]], 1)
        assert cell.head is not None
        write_head(module, 1, cell.head, q=q, k=k, q_bias=torch.tensor([0.0, 20.0]), v=value, o=out.T)
    return load_model(module)


def asked(ask: int, n: int, seed: int) -> Pairs:
    """BOS a b c ask -> a or b; corrupted: another token there."""
    rng, place = np.random.default_rng([seed, ask]), 1 if ask == ASK_FIRST else 2
    rows = np.stack([rng.permutation(np.arange(1, TOKENS + 1))[:4] for _ in range(n)])
    clean = np.column_stack([np.zeros(n, int), rows[:, :3], np.full(n, ask)])
    corrupt = clean.copy()
    corrupt[:, place] = rows[:, 3]
    clean, corrupt = torch.from_numpy(clean), torch.from_numpy(corrupt)
    return Pairs(f"ask{ask}", clean, corrupt, clean[:, place, None], corrupt[:, place, None])


def test_the_head_of_each_task_is_found(two_tasks: ModelHandle) -> None:
    config = SelectiveConfig(k=1, permutations=200, draws=100, baseline="corrupt")
    found = find_selective(two_tasks, asked(ASK_FIRST, 24, 0), asked(ASK_SECOND, 20, 0), config)
    assert found.chosen == ((FIRST,), (SECOND,))
    rows = {Cell.of(row): row for row in found.components.to_pylist()}
    assert rows[FIRST]["first"] == pytest.approx(1, abs=1e-6)  # it alone carries the whole effect
    assert rows[FIRST]["second"] == pytest.approx(0, abs=1e-6)
    assert rows[SECOND]["difference"] == pytest.approx(-1, abs=1e-6)
    assert rows[SECOND]["selectivity"] == pytest.approx(-1, abs=1e-6)
    assert all(row["difference"] == pytest.approx(0, abs=1e-6) for cell, row in rows.items() if not row["chosen"])
    assert found.summary["dissociation"] == pytest.approx(2, abs=1e-6)  # each set costs its task all, the other nothing
    assert found.summary["jaccard"] == 0
    sets = {(row["set"], row["task"]): row for row in found.sets.to_pylist()}
    assert sets["first", "ask13"]["accuracy_drop"] == 1
    assert sets["first", "ask14"]["accuracy_drop"] == 0
    # Of the random pairs of different heads of layer 1, one in twelve is the true one.
    null = np.array(found.draws["dissociation"].to_pylist())
    assert found.summary["p"] == pytest.approx((1 + np.isclose(null, 2).sum()) / 101)
    assert 0 < np.isclose(null, 2).mean() < 0.25


def test_a_shared_circuit_gives_no_dissociation(two_tasks: ModelHandle) -> None:
    tasks = asked(ASK_FIRST, 24, 1), asked(ASK_FIRST, 24, 2)
    found = find_selective(two_tasks, *tasks, SelectiveConfig(k=1, permutations=200, draws=10))
    assert found.summary["jaccard"] == 1
    assert found.chosen == ((), ())
    assert found.summary["dissociation"] is None
    assert found.sets.num_rows == found.draws.num_rows == 0
    assert found.summary["selective"] == 0


def test_p_values_are_uniform_where_tasks_do_not_differ() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(400, 20)), rng.normal(size=(400, 30))
    p, p_any = permutation_p(first, second, permutations=400, seed=1)
    assert kstest(p, "uniform").pvalue > 0.01
    assert (p_any >= p).all()
    families = [
        permutation_p(*np.split(rng.normal(size=(8, 30)), 2, axis=1), permutations=200)[1].min() for _ in range(200)
    ]
    assert np.mean(np.array(families) <= 0.05) < 0.1  # any of 8 components, at a level of 5 %
    shifted = permutation_p(first + 3.0, second, permutations=400)[0]
    assert (shifted == 1 / 401).all()
    assert (permutation_p(np.ones((2, 5)), np.ones((2, 5)), permutations=50)[0] == 1).all()


def test_p_values_are_those_of_all_permutations() -> None:
    from itertools import combinations

    effects = np.random.default_rng(3).normal(size=7)
    splits = [(list(a), [i for i in range(7) if i not in a]) for a in combinations(range(7), 3)]
    all_of = np.array([abs(effects[a].mean() - effects[b].mean()) for a, b in splits])
    exact = (all_of >= abs(effects[:3].mean() - effects[3:].mean()) - 1e-12).mean()
    p, _ = permutation_p(effects[None, :3], effects[None, 3:], permutations=4000)
    assert p[0] == pytest.approx(exact, abs=0.03)


def test_estimates_and_neurons_have_effects_too(gpt2: ModelHandle) -> None:
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 300, (2, 6, 5), generator=g)
    best = gpt2.logits(tokens[0])[:, -1].argmax(-1, keepdim=True)
    pairs = Pairs("top", tokens[0], tokens[1], best, (best + 1) % 300)
    cells, (effects,) = task_effects(gpt2, [pairs], neurons=3)
    assert len(cells) == 3 * 4 + 3 + 3
    exact = measure_cells(gpt2, pairs, cells)
    scale = float((exact.clean - exact.corrupt).mean())
    assert np.allclose(effects, exact.per_prompt / scale, atol=1e-5)
    same, (estimated,) = task_effects(gpt2, [pairs], method="atp", neurons=3)
    assert same == cells
    assert estimated.shape == effects.shape
    assert not np.allclose(estimated, effects, atol=1e-3)


def test_knock_outs_are_drops_of_the_metric_and_of_right_answers(two_tasks: ModelHandle) -> None:
    pairs, other = asked(ASK_FIRST, 6, 4), asked(ASK_FIRST, 9, 5)
    sets = [((FIRST,), (SECOND,)), ((SECOND,), (FIRST, SECOND))]
    found = knock_outs(two_tasks, pairs, sets, reference=other.clean)
    every = [(FIRST,), (SECOND,), (FIRST, SECOND)]
    exact = measure_cells(two_tasks, pairs, every, baseline="mean", reference=other.clean)
    drops = exact.per_prompt / (exact.clean - exact.corrupt).mean()
    assert np.allclose(found, drops[[[0, 1], [1, 2]]], atol=1e-6)
    right = knock_outs(two_tasks, pairs, sets, baseline="corrupt", right=True)
    assert right[:, :, 0].tolist() == [[1, 0], [0, 1]]  # the head of the corrupted prompt gives the wrong answer
    assert (right == right[:, :, :1]).all()


def test_the_index_is_the_sum_of_both_advantages() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(5, 2, 7)), rng.normal(size=(5, 2, 9))
    found, (low, high) = dissociation([first, second])
    for i in range(5):
        r = first[i, 0].mean() - second[i, 0].mean()
        s = second[i, 1].mean() - first[i, 1].mean()
        assert found[i] == pytest.approx(r + s)
    assert low < found[0] < high


def test_random_sets_match_size_kind_and_layer(two_tasks: ModelHandle) -> None:
    sets = (
        (Cell("head_out", 1, head=0), Cell("head_out", 0, head=1), Cell("mlp_out", 1)),
        (Cell("head_out", 1, head=2), Cell("head_out", 1, head=3), Cell("mlp_act", 1, neuron=0)),
    )
    rng, seen = np.random.default_rng(0), set()
    for _ in range(40):
        drawn = matched_sets(two_tasks, sets, rng)
        assert not set(drawn[0]) & set(drawn[1])
        for wanted, got in zip(sets, drawn, strict=True):
            places = [sorted((c.kind, c.layer if c.kind != "mlp_out" else 0) for c in part) for part in (wanted, got)]
            places[0] = sorted((kind, 0 if kind == "mlp_out" else layer) for kind, layer in places[0])
            assert places[0] == places[1]
        seen |= set(drawn[0])
    assert {cell.layer for cell in seen if cell.kind == "mlp_out"} == {0, 1}
    assert {cell.head for cell in seen if cell.kind == "head_out" and cell.layer == 1} == {0, 1, 2, 3}


def test_only_components_that_differ_are_chosen() -> None:
    cells = [Cell("head_out", 0, head=i) for i in range(5)]
    sets = choose(cells, np.array([0.5, -0.2, 0.4, 0.1, -0.9]), np.array([0.01, 0.2, 0.06, 0.02, 0.001]), 2)
    assert sets == ((cells[0], cells[3]), (cells[4],))
    assert jaccard(np.array([3.0, 2, 1, 0]), np.array([0.0, 2, 3, 1]), 2) == pytest.approx(1 / 3)


def test_what_cannot_be_compared_is_refused(two_tasks: ModelHandle) -> None:
    able, unable = asked(ASK_FIRST, 8, 0), asked(ASK_FIRST, 8, 0).swapped()
    wrong = Pairs("wrong", able.clean, able.corrupt, able.wrong, able.correct)
    with pytest.raises(ValueError, match="does not do the task 'wrong': 0% right"):
        find_selective(two_tasks, able, wrong)
    with pytest.raises(ValueError, match="needs 4 pairs or more"):
        find_selective(two_tasks, able, able.take([0, 1, 2]))
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.5, half of 10 components, got 6"):
        find_selective(two_tasks, able, unable, SelectiveConfig(k=6))
    with pytest.raises(ValueError, match="no larger on clean prompts"):
        task_effects(two_tasks, [Pairs("flat", able.clean, able.clean, able.correct, able.wrong)])
    with pytest.raises(ValueError, match="did you mean 'patching'"):
        SelectiveConfig(method="patchin")
    with pytest.raises(ValueError, match="did you mean 'agreement'"):
        SelectiveFamily(first="agrement")


def test_the_family_refuses_a_model_whose_tokens_do_not_allow_the_task(gpt2: ModelHandle) -> None:
    tokens = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="token"):
        profile(gpt2, [SelectiveFamily()], blocks=Blocks(tokens, tokens == 0, 1, True, 0))


@pytest.mark.slow
def test_the_embedded_model_agrees_and_names_gender_with_other_parts() -> None:
    handle = load_model("tiny")
    tokens = torch.zeros(2, 4, dtype=torch.long)
    found = profile(handle, [SelectiveFamily()], blocks=Blocks(tokens, tokens == 0, 1, True, 0)).results["selective"]
    assert float(found.summary["low"] or 0) > 0.3
    assert float(found.summary["p"] or 1) <= 0.05
    rows = {(row["layer"], row["measure"], row["part"]): row["value"] for row in found.layers.to_pylist()}
    assert sum(rows[layer, "chosen", "agreement"] for layer in range(4)) == found.summary["chosen_first"]
    assert found.tables["components"].num_rows == found.summary["components"] == 28
