"""The shipped labelled sets: balanced in every group, no text twice, and nothing for a bag of tokens."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from interp.data.sets import SETS, labelled_set
from interp.models import load_model

NAMES = sorted(SETS)


@pytest.mark.parametrize("name", NAMES)
def test_every_group_holds_each_label_equally_often(name: str) -> None:
    found = labelled_set(name)
    assert 400 <= len(found) <= 2000
    assert len(set(found.groups)) >= 20
    assert found.classes == SETS[name].classes
    by_group: dict[str, Counter[str]] = {group: Counter() for group in found.groups}
    for label, group in zip(found.labels, found.groups, strict=True):
        by_group[group][label] += 1
    for group, counts in by_group.items():
        assert counts == dict.fromkeys(found.classes, counts[found.classes[0]]), group


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_distinct_and_the_same_each_time(name: str) -> None:
    found = labelled_set(name)
    plain = [" ".join(text.lower().split()) for text in found.texts]
    assert len(set(plain)) == len(plain)
    assert all(text == text.strip() and "  " not in text and "{" not in text for text in found.texts)
    assert labelled_set(name) == found


@pytest.mark.parametrize("name", NAMES)
def test_a_draw_is_balanced_and_is_part_of_the_set(name: str) -> None:
    whole, found = labelled_set(name), labelled_set(name, 101, seed=3)
    assert Counter(found.labels) == dict.fromkeys(whole.classes, 50)
    rows = dict(zip(whole.texts, zip(whole.labels, whole.groups, strict=True), strict=True))
    assert all(rows[t] == (a, g) for t, a, g in zip(found.texts, found.labels, found.groups, strict=True))
    assert found == labelled_set(name, 101, seed=3) != labelled_set(name, 101, seed=4)
    assert labelled_set(name, 10**6) == whole


def test_bad_requests_are_named() -> None:
    with pytest.raises(ValueError, match="Unknown labelled set 'sentimnt'; did you mean 'sentiment'"):
        labelled_set("sentimnt")
    with pytest.raises(ValueError, match="n must be 2 or more, one text for each label of tense, got 1"):
        labelled_set("tense", 1)


def _counts(ids: list[list[int]]) -> np.ndarray:
    found = np.zeros((len(ids), 1 + max(map(max, ids))))
    for row, one in enumerate(ids):
        np.add.at(found[row], one, 1)
    return found


def _bag_accuracy(name: str) -> float:
    """Return the accuracy of a regression on counts of tiny's tokens, on groups that it was not fitted on."""
    from sklearn.linear_model import RidgeClassifier

    found = labelled_set(name)
    handle = load_model("tiny")
    x = _counts([handle.tokens(text)[0].tolist() for text in found.texts])
    y, train = np.array(found.labels), found.split(0.3, seed=0)
    return RidgeClassifier(alpha=1.0).fit(x[train], y[train]).score(x[~train], y[~train])


def test_pairs_of_quoted_speech_have_the_same_tokens() -> None:
    found = labelled_set("quoted_speech")
    handle = load_model("tiny")
    bags = [Counter(handle.tokens(text)[0].tolist()) for text in found.texts]
    assert found.labels[:4] == ("inside", "outside", "inside", "outside")
    assert bags[::2] == bags[1::2]
    assert [handle.tokens(t)[0][-1] for t in found.texts[::2]] == [handle.tokens(t)[0][-1] for t in found.texts[1::2]]


@pytest.mark.parametrize("name", NAMES)
def test_a_bag_of_tokens_is_near_chance(name: str) -> None:
    # Tense and gender hold odd pieces of words that two groups share; about 300 rows are measured on.
    assert abs(_bag_accuracy(name) - 0.5) < 0.1


def test_the_state_of_quoted_speech_is_what_the_last_mark_says() -> None:
    """A reader who looks at the last mark alone is right: an opening one is followed by a letter."""
    found = labelled_set("quoted_speech")
    for text, label in zip(found.texts, found.labels, strict=True):
        after = text[text.rindex('"') + 1]
        assert (label == "inside") == after.isalpha()


def test_true_statements_about_numbers_are_true() -> None:
    words = (
        "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
        "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty", "fifty",
        "sixty", "ninety", "a hundred", "a thousand",
    )  # fmt: skip
    size = {word: number for number, word in enumerate(words)}
    found, seen = labelled_set("true_false"), 0
    for text, label in zip(found.texts, found.labels, strict=True):
        if " than " not in text:
            continue
        left, _, rest = text.lower().rstrip(".").partition(" is ")
        relation, _, right = rest.rpartition(" than ")
        truth = (size[left] > size[right]) == relation.endswith("more")
        assert (label == "true") == (truth != relation.startswith("not")), text
        seen += 1
    assert seen == 216


def test_no_word_of_a_group_is_in_another() -> None:
    """The words that make a group must not be known from other groups: gender, sentiment and tense."""
    for name in ("gender", "sentiment"):
        words = [word for group in set(labelled_set(name).groups) for word in group.split("|")]
        assert len(set(words)) == len(words), name
