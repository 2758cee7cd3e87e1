"""The tasks: pairs that are aligned in every family of models, words that are single tokens, and who can do them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp.models import ModelHandle, load_model
from interp.tasks import (
    NOTHING,
    TASKS,
    Drawn,
    Induction,
    Pairs,
    TemplateTask,
    check_accuracy,
    task,
    task_table,
    usable,
)
from interp.tasks.greater_than import YEARS
from interp.tasks.templates import TooFewPairs
from interp.tasks.words import keep_single, piece_id

LANGUAGE = sorted(name for name, one in TASKS.items() if isinstance(one, TemplateTask))


@pytest.fixture(scope="module")
def words_tokenizer():
    """A byte-level tokenizer trained on nothing but the tasks' own prompts, so that their words are single tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(r"\d\d| ?\w+|[.!?,)]+\"?| ?[^\w\s]+|\s"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    texts = [" ".join(words) for one in TASKS.values() if isinstance(one, TemplateTask) for words in one.words.values()]
    texts = [f" {text}" for text in texts] + [template for name in LANGUAGE for template in templates(name)]
    texts += [' she he was were She He They The ( -- : " ." !" ?" ), ). ;', *YEARS]
    trainer = trainers.BpeTrainer(
        vocab_size=2500,
        special_tokens=["<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<bos>")


def templates(name: str) -> tuple[str, ...]:
    one = TASKS[name]
    assert isinstance(one, TemplateTask)
    return one.templates


@pytest.fixture(scope="module", params=["gpt2", "neox", "llama"])
def reader(request: pytest.FixtureRequest, make_model: Callable[..., ModelHandle], words_tokenizer) -> ModelHandle:
    size = len(words_tokenizer)
    return make_model(
        request.param,
        words_tokenizer,
        vocab_size=size,
        **({"n_positions": 128} if request.param == "gpt2" else {"max_position_embeddings": 128}),
    )


def check_pairs(handle: ModelHandle, pairs: Pairs, n: int) -> None:
    """Assert what holds for the pairs of every task."""
    assert pairs.clean.shape == pairs.corrupt.shape
    assert len(pairs) == n == len(set(map(tuple, pairs.clean.tolist())))
    assert len(pairs.roles) == pairs.n_pos
    assert (pairs.clean != pairs.corrupt).any(1).all()
    assert (pairs.clean[:, 0] == handle.bos_id).all()
    for ids in (pairs.correct, pairs.wrong):
        assert ((ids == NOTHING) | ((ids >= 0) & (ids < handle.d_vocab))).all()
        assert (ids != NOTHING).any(1).all()
    for right, wrong in zip(pairs.correct.tolist(), pairs.wrong.tolist(), strict=True):
        assert not (set(right) & set(wrong)) - {NOTHING}


@pytest.mark.parametrize("name", LANGUAGE)
def test_pairs_are_aligned_in_every_family(name: str, reader: ModelHandle) -> None:
    pairs = TASKS[name].pairs(reader, 12, 3)
    check_pairs(reader, pairs, 12)
    slots = {slot.partition("}")[0] for template in templates(name) for slot in template.split("{")[1:]}
    assert slots <= set(pairs.roles) | {"end"}
    for position, role in enumerate(pairs.roles):
        column, other = pairs.clean[:, position], pairs.corrupt[:, position]
        if role not in slots:
            assert torch.equal(column, other), f"{role!r} is no slot and differs"
        if role and role not in slots | {"bos", "end"}:  # it names the token, which is the same everywhere
            assert set(reader.token_strings(column.tolist())) == {role}
    assert torch.isfinite(reader.logits(pairs.clean)).all()
    again, other = TASKS[name].pairs(reader, 12, 3), TASKS[name].pairs(reader, 12, 4)
    assert torch.equal(pairs.clean, again.clean)
    assert torch.equal(pairs.corrupt, again.corrupt)
    assert not torch.equal(pairs.clean, other.clean)


@pytest.mark.parametrize("half", [5, 12, 40])
def test_induction_needs_a_vocabulary_only(model: ModelHandle, half: int) -> None:
    pairs = Induction(half=half).pairs(model, 20, half)
    check_pairs(model, pairs, 20)
    length = min(half, 31)
    start = [pairs.roles.index(role) for role in ("a", "b (answer)", "c", "d (wrong)")]
    for clean, corrupt, right, wrong in zip(pairs.clean, pairs.corrupt, pairs.correct, pairs.wrong, strict=True):
        first = clean[1 : 1 + length].tolist()
        assert len(set(first)) == length
        assert model.bos_id not in first
        a, b, c, d = (int(clean[i]) for i in start)
        assert (int(right[0]), int(wrong[0]), int(clean[-1])) == (b, d, a)
        assert clean[1 + length :].tolist() == first[: start[0]]
        swapped = clean.clone()
        swapped[start[0]], swapped[start[2]] = c, a
        assert torch.equal(corrupt, swapped)


def test_what_a_random_model_does_is_chance_and_what_it_cannot_is_refused(gpt2: ModelHandle) -> None:
    pairs = Induction().pairs(gpt2, 200, 0)
    assert 0.35 < check_accuracy(gpt2, pairs) < 0.65
    assert not usable(gpt2, pairs)
    with pytest.raises(ValueError, match=r"'pronoun_gender' needs at least 2 words of its list 'women' .* 1 of 11 are"):
        TASKS["pronoun_gender"].pairs(gpt2, 4, 0)


def test_accuracy_is_counted_as_it_is_said(gpt2: ModelHandle) -> None:
    """Against a loop over prompts, with several answers of unequal number."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(1, 300, (9, 6), generator=generator)
    correct, wrong = (
        torch.randint(1, 300, (9, 3), generator=generator),
        torch.randint(1, 300, (9, 2), generator=generator),
    )
    correct[::2, 1:] = NOTHING
    pairs = Pairs("random", clean, clean, correct, wrong)
    right = 0
    for i in range(9):
        logits = gpt2.logits(clean[i])[0, -1]
        best = max(float(logits[j]) for j in correct[i].tolist() if j != NOTHING)
        right += best > max(float(logits[j]) for j in wrong[i].tolist())
    assert 0 < right < 9
    for batch in (1, 4, 64):
        assert check_accuracy(gpt2, pairs, batch=batch) == pytest.approx(right / 9)


def test_ioi_is_who_was_given_it(reader: ModelHandle) -> None:
    for name in ("ioi", "ioi_s2"):
        pairs = TASKS[name].pairs(reader, 30, 0)
        at = {role: i for i, role in enumerate(pairs.roles)}
        orders = set()
        for clean, corrupt, right, wrong in zip(pairs.clean, pairs.corrupt, pairs.correct, pairs.wrong, strict=True):
            two = {int(clean[at["first"]]), int(clean[at["second"]])}
            assert int(wrong[0]) == int(clean[at["subject"]])
            assert two == {int(right[0]), int(wrong[0])}
            orders.add(int(clean[at["first"]]) == int(wrong[0]))
            names = [int(corrupt[at[slot]]) for slot in ("first", "second", "subject")]
            if name == "ioi":
                assert len(set(names)) == 3
                assert not two & set(names)
            else:
                assert names == [int(clean[at["first"]]), int(clean[at["second"]]), int(right[0])]
        assert orders == {True, False}  # ABBA and BABA


def test_greater_than_counts_years(reader: ModelHandle) -> None:
    pairs = TASKS["greater_than"].pairs(reader, 10, 0)
    assert pairs.metric == "probability_diff"
    for clean, corrupt, right, wrong in zip(pairs.clean, pairs.corrupt, pairs.correct, pairs.wrong, strict=True):
        year = int(reader.token_strings([clean[pairs.roles.index("year")]])[0])
        later = {int(text) for text in reader.token_strings(right[right != NOTHING])}
        others = {int(text) for text in reader.token_strings(wrong[wrong != NOTHING])}
        assert later == set(range(year + 1, 100))
        assert others == set(range(year + 1))
        assert reader.token_strings([corrupt[pairs.roles.index("year")]]) == ["01"]


def test_words_are_kept_where_they_are_one_token(gpt2: ModelHandle, reader: ModelHandle) -> None:
    kept = keep_single(reader, ["Mary", "garden", "antidisestablishment", "Mary"])
    assert kept.words == ("Mary", "garden")
    assert kept.dropped == 1
    assert piece_id(gpt2, " the") == gpt2.tokens(" the", bos=False)[0, 0]
    assert piece_id(gpt2, " garden") is None


def test_a_task_of_ones_own(reader: ModelHandle) -> None:
    def draw(source: random.Random, words) -> Drawn:
        day, night = (source.choice(list(words[name])) for name in ("light", "dark"))
        return Drawn({"word": day}, {"word": night}, (" was",), (" were",))

    own = TemplateTask(
        "own", "", ("The {word}", "But the {word}"), {"light": ("garden", "sea"), "dark": ("room",) * 2}, draw
    )
    with pytest.raises(ValueError, match="needs at least 2 words of its list 'dark'.*1 of 1 are"):
        own.pairs(reader, 2, 0)
    own = dataclasses.replace(own, words={"light": ("garden", "sea"), "dark": ("room", "door")})
    pairs = own.pairs(reader, 2, 0)  # the templates differ in length: one of them is used
    assert pairs.n_pos == 3
    with pytest.raises(TooFewPairs, match="has only 2 different prompts"):
        own.pairs(reader, 3, 0)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        own.pairs(reader, 0, 0)
    strange = dataclasses.replace(
        own, draw=lambda source, words: dataclasses.replace(draw(source, words), wrong=(" zzqx",))
    )
    with pytest.raises(ValueError, match="Only 1 of 2 answers of the task 'own' are single tokens"):
        strange.pairs(reader, 2, 0)


def test_the_table_says_who_cannot(gpt2: ModelHandle) -> None:
    handle = load_model("compiled/additive", device="cpu")
    rows = {row["task"]: row for row in task_table(handle, ["compiled", "ioi", "induction"], n=40).to_pylist()}
    assert rows["compiled"]["accuracy"] == 1.0
    assert rows["compiled"]["usable"]
    assert rows["ioi"]["accuracy"] is None
    assert "no tokenizer" in rows["ioi"]["note"]
    table = task_table(gpt2, ["induction", "agreement"], n=200)
    rows = {row["task"]: row for row in table.to_pylist()}
    assert rows["induction"]["note"].startswith("this model cannot do it (")
    assert not rows["induction"]["usable"]
    assert rows["agreement"]["dropped"] == 55
    with pytest.raises(ValueError, match="Unknown task 'iou'; did you mean 'ioi'"):
        task_table(gpt2, ["iou"])
    with pytest.raises(ValueError, match="did you mean 'quotes'"):
        task("quote")
    with pytest.raises(ValueError, match="'compiled' is for compiled/induction"):
        TASKS["compiled"].pairs(gpt2, 4, 0)


def test_compiled_models_do_induction_as_the_task_has_it() -> None:
    for name in ("compiled/induction", "compiled/distractors"):
        handle = load_model(name, device="cpu")
        for seed in (0, 1):
            assert check_accuracy(handle, TASKS["induction"].pairs(handle, 64, seed)) == 1.0


def test_tiny_can_do_at_least_three_tasks() -> None:
    rows = {row["task"]: row for row in task_table(load_model("tiny", device="cpu"), n=48).to_pylist()}
    can = {name for name, row in rows.items() if row["usable"]}
    assert can >= {"pronoun_gender", "pronoun_name", "agreement", "quotes", "brackets"}
    assert not rows["ioi"]["usable"]  # too small a model for it: it says the name that came twice


@pytest.mark.data
def test_stories_can_do_what_its_512_tokens_allow(data_dir: Path) -> None:
    handle = load_model(str(data_dir / "models" / "stories260K"), device="cpu")
    rows = {row["task"]: row for row in task_table(handle, n=48).to_pylist()}
    assert {name for name, row in rows.items() if row["usable"]} == {"pronoun_name", "quotes_stop"}
    assert rows["ioi"]["accuracy"] is None
