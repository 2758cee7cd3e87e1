"""Gradients by layer: against autograd on the weights themselves, on all three families; examples and controls."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from interp.data import Labelled
from interp.layers.gradient_curves import contrast, mean_step, relative_difference
from interp.layers.gradient_data import (
    Example,
    answer_examples,
    labelled_pairs,
    match_lengths,
    shuffled_answers,
    text_examples,
)
from interp.layers.gradients import SHAPES, SIZES, example_gradients, layer_gradients
from interp.layers.weights import NAMES, split_qkv
from interp.models import ModelHandle
from interp.models.taps import BLOCKS

PAIRS = [
    ("the cat sat on", " the mat"),
    ("the king and the", " queen of the land"),
    ("the sea", " was calm; the dog sat"),
]


def example(length: int, start: int, seed: int = 0) -> Example:
    ids = torch.randint(1, 300, (length,), generator=torch.Generator().manual_seed(seed))
    return Example(tuple(ids.tolist()), start)


def dense_gradients(handle: ModelHandle, one: Example) -> tuple[float, dict[tuple[int, str], Tensor]]:
    """Return the loss and each matrix's gradient [out in], from autograd on the weights."""
    labels = torch.tensor([one.tokens])
    weights = {}
    for layer in range(handle.n_layers):
        for path, names in NAMES[handle.family].items():
            module = handle.module.get_submodule(f"{BLOCKS[handle.family]}.{layer}.{path}")
            weights[layer, names] = module.weight.requires_grad_()
    try:
        logits = handle.module(labels).logits[0]
        losses = [-logits[t - 1].log_softmax(-1)[one.tokens[t]] for t in range(one.start, len(one.tokens))]
        loss = torch.stack(losses).mean()
        found = torch.autograd.grad(loss, list(weights.values()))
    finally:
        handle.module.requires_grad_(False)
    parts = {}
    for (layer, names), gradient in zip(weights, found, strict=True):
        rows = gradient.T if handle.family == "gpt2" else gradient
        parts |= {(layer, name): part for name, part in split_qkv(handle, names, rows)}
    return float(loss.detach()), parts


@pytest.mark.parametrize(("length", "start"), [(9, 6), (50, 1)])
def test_gradients_are_those_of_autograd(model: ModelHandle, length: int, start: int) -> None:
    one = example(length, start)
    loss, found = example_gradients(model, one)
    slow_loss, dense = dense_gradients(model, one)
    assert loss == pytest.approx(slow_loss, rel=1e-5)
    assert found.keys() == dense.keys()
    for key, gradient in dense.items():
        assert torch.allclose(found[key].dense.float(), gradient, atol=2e-6, rtol=1e-3), key
        values = torch.linalg.svdvals(gradient.double())
        assert torch.allclose(found[key].values, values[: len(found[key].values)], atol=1e-5 * float(values[0]))
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_norms_are_ordered_and_the_rank_is_bounded_by_the_tokens(model: ModelHandle) -> None:
    found = layer_gradients(model, [example(7, 4, seed) for seed in range(3)])
    nuclear, frobenius, spectral = (found.each(name) for name in SIZES)
    assert (nuclear >= frobenius * (1 - 1e-12)).all()
    assert (frobenius >= spectral * (1 - 1e-12)).all()
    assert (found.each("effective_rank") <= 6).all()  # the last of 7 tokens predicts nothing
    assert (found.each("ratio") <= math.sqrt(6)).all()
    # in the last block q, o and the MLP see a gradient at the three positions that predict the answer only
    last = found.each("effective_rank")[:, -1]
    for i, name in enumerate(found.names):
        assert (last[:, i] <= (6 if name in "kv" else 3) + 1e-9).all(), name


def test_cosines_are_those_of_the_matrices(llama: ModelHandle) -> None:
    one = example(12, 5)
    found = layer_gradients(llama, [one])
    _, dense = dense_gradients(llama, one)

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))

    for i, name in enumerate(found.names):
        for a in range(3):
            for b in range(3):
                expected = cosine(dense[a, name], dense[b, name])
                assert float(found.layer_cosine[i, a, b]) == pytest.approx(expected, abs=1e-5)
        for j, other in enumerate(found.names):
            same = dense[1, name].shape == dense[1, other].shape
            value = float(found.name_cosine[1, i, j])
            assert value == pytest.approx(cosine(dense[1, name], dense[1, other]), abs=1e-5) if same else value != value


def test_the_summed_loss_scales_norms_by_the_scored_tokens_and_nothing_else(gpt2: ModelHandle) -> None:
    found = layer_gradients(gpt2, [example(12, 4), example(9, 8)])
    assert found.scored.tolist() == [8, 1]
    for name in SIZES:
        assert torch.allclose(found.each(name, "sum")[0], 8 * found.each(name)[0])
        assert torch.equal(found.each(name, "sum")[1], found.each(name)[1])
    for name in SHAPES:
        assert torch.equal(found.each(name, "sum"), found.each(name))
    assert torch.allclose(found.curve("nuclear"), found.each("nuclear").mean(0))
    with pytest.raises(ValueError, match="nuclear"):
        found.each("nuclaer")


def test_examples_that_are_not_finite_are_dropped_and_counted(make_model) -> None:
    handle = make_model("gpt2")
    clean = layer_gradients(handle, [example(8, 2)])
    with torch.no_grad():
        handle.module.transformer.wte.weight[250] = torch.nan
    # a tied unembedding would spoil every loss
    handle.module.lm_head.weight = torch.nn.Parameter(handle.module.lm_head.weight.nan_to_num(), requires_grad=False)
    spoiled = Example((5, 250, 7), 1)
    found = layer_gradients(handle, [spoiled, example(8, 2)])
    assert found.dropped == 1
    assert len(found.losses) == 1
    assert clean.dropped == 0
    with pytest.raises(ValueError, match="all 1 examples"):
        layer_gradients(handle, [spoiled])
    with pytest.raises(ValueError, match="at least one"):
        layer_gradients(handle, [])


def test_only_the_answer_is_scored_and_a_token_across_the_boundary_belongs_to_it(gpt2: ModelHandle) -> None:
    for (prompt, answer), one in zip(PAIRS, answer_examples(gpt2, PAIRS), strict=True):
        assert gpt2.decode(one.tokens[1:]) == prompt + answer
        assert gpt2.decode(one.tokens[one.start :]) == answer
        assert not one.across
    words = gpt2.token_strings(gpt2.tokens("the mat", bos=False)[0])
    cut = len(words[0]) - 1  # inside the first token
    assert cut >= 1
    (inside,) = answer_examples(gpt2, [("the mat"[:cut], "the mat"[cut:])])
    assert inside.start == 1
    assert inside.across
    prompt_alone = len(gpt2.tokens("the mat"[:cut])[0])
    assert inside.start != prompt_alone  # what counting the prompt's own tokens would have said


def test_pairs_without_anything_to_score_are_refused(gpt2: ModelHandle, make_model) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        answer_examples(gpt2, [("the", "")])
    with pytest.raises(ValueError, match="n_ctx=64"):
        answer_examples(gpt2, [("z" * 70, "the")])
    with pytest.raises(ValueError, match="fast tokenizer"):
        answer_examples(make_model("gpt2"), PAIRS)
    with pytest.raises(ValueError, match="start must lie in 1..2"):
        Example((1, 2, 3), 3)


def test_texts_and_labelled_texts_become_examples() -> None:
    assert text_examples(torch.tensor([[1, 2, 3]])) == [Example((1, 2, 3), 1)]
    data = Labelled(("good film", "bad film"), ("yes", "no"), ("a", "b"))
    assert labelled_pairs(data) == [("good film", " yes"), ("bad film", " no")]


@pytest.mark.parametrize("count", [2, 3, 17])
def test_shuffled_answers_are_the_same_answers_and_none_stays(count: int) -> None:
    pairs = [(f"p{i}", f"a{i}") for i in range(count)]
    shuffled = shuffled_answers(pairs, seed=count)
    assert [prompt for prompt, _ in shuffled] == [prompt for prompt, _ in pairs]
    assert sorted(answer for _, answer in shuffled) == sorted(answer for _, answer in pairs)
    assert all(one[1] != other[1] for one, other in zip(pairs, shuffled, strict=True))
    with pytest.raises(ValueError, match="two pairs"):
        shuffled_answers(pairs[:1])


def test_matched_sets_have_the_same_answer_lengths() -> None:
    one = [example(20, 20 - n, seed=n) for n in (9, 2, 5, 7)]
    other = [example(12, 12 - n, seed=n) for n in (3, 1, 8)]
    a, b = match_lengths(one, other)
    assert [x.scored for x in a] == [x.scored for x in b] == [1, 3, 7]
    for matched, source in ((a, one), (b, other)):
        for x in matched:
            assert any(x.tokens == y.tokens[: len(x.tokens)] and x.start == y.start for y in source)


def test_curves_are_compared_by_their_definitions() -> None:
    curve = torch.tensor([1.0, 2.0, 4.0, 4.0, 3.0, 9.0, 0.0])
    steps = mean_step(curve)
    assert float(steps["all"]) == pytest.approx((1 + 2 + 0 + 1 + 6 + 9) / 6)
    assert [float(steps[name]) for name in ("early", "middle", "late")] == [1.0, 0.0, 7.5]
    assert math.isnan(float(mean_step(curve[:4])["early"]))
    found = relative_difference(curve, 2 * curve)
    assert found.each.tolist() == [1.0] * 6 + [0.0]
    assert found.mean == pytest.approx(6 / 7)
    assert relative_difference(torch.zeros(1), torch.ones(1)).mean == pytest.approx(1e10)
    assert relative_difference(torch.ones(3), torch.tensor([1.0, 3.0, 2.0])).top == [1, 2, 0]
    with pytest.raises(ValueError, match="equally many"):
        relative_difference(curve, curve[:3])


def test_a_set_does_not_differ_from_itself_and_a_longer_answer_differs_more_under_the_sum(gpt2: ModelHandle) -> None:
    short, long = (layer_gradients(gpt2, [example(40, start, seed) for seed in range(2)]) for start in (38, 5))
    rows = contrast(short, short)
    assert len(rows) == len(short.names) * (2 * len(SIZES) + len(SHAPES))
    assert all(row["difference"] == 0 for row in rows)
    found = {(row["name"], row["measure"], row["loss"]): row for row in contrast(short, long)}
    for name in short.names:
        mean, total = found[name, "frobenius", "mean"], found[name, "frobenius", "sum"]
        assert mean["second"] < mean["first"]  # the mean over more tokens cancels
        assert total["second"] > total["first"]
        assert found[name, "effective_rank", "mean"]["second"] > found[name, "effective_rank", "mean"]["first"]
