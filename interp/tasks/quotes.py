"""Closing what was opened: quotation marks after direct speech, and a bracket.

    quotes       clean    The captain smiled and said "You must go to bed   -> ." or !" or ?", not . or ! or ?
                 corrupt  The captain smiled and said--You must go to bed
    quotes_stop  clean    Then Tim said "I want to play with you.           -> ", not She, He, They, The
                 corrupt  Then Tim said:I want to play with you.
    brackets     clean    The captain (who had been at sea                  -> ) or ), or )., not , or . or -- or ;
                 corrupt  The captain--who had been at sea

The second is for tokenizers that keep the full stop and the quotation mark apart. One token differs: what opens, or
a dash or colon in its place. The metric is the probability of all right answers minus that of all wrong ones.
"""

from __future__ import annotations

import random

from interp.tasks.templates import Drawn, TemplateTask, Words

PEOPLE = (
    "captain", "man", "woman", "boy", "girl", "doctor", "lady", "king", "queen", "sailor", "priest", "soldier", "nurse",
    "servant", "mother", "father", "friend",
)  # fmt: skip
SPEECHES = (
    "You must go to bed",
    "I am very glad to see you",
    "I do not know what to do",
    "It is time to go home",
    "You have been very good to me",
    "I will come back in the morning",
    "There is no one in the house",
    "I want to go with you",
)
INSERTED = (
    "who had been at sea",
    "who was very old",
    "for it was late",
    "who was a good friend",
    "and this was strange",
    "who had come from the town",
)
NAMES = (
    "Tim", "Timmy", "Tom", "Lily", "mom", "Mary", "John", "Jack", "Ben", "Anna", "Sara", "Peter", "Emma", "Alice",
)  # fmt: skip
SENTENCES = (
    "I want to play with you.",
    "I want to play with her.",
    "I want to play with it.",
    "I want to be with you.",
    "You and I want to play.",
    "I am very happy to go.",
    "I am so happy for you.",
    "You can play with me.",
)
CLOSING, PLAIN = ('."', '!"', '?"'), (".", "!", "?")
CLOSING_ALONE, NEXT = ('"',), (" She", " He", " They", " The")
BRACKETED, UNBRACKETED = (")", "),", ")."), (",", ".", "--", ";")


def _opened(person: str, mark: str, instead: str, right: tuple[str, ...], wrong: tuple[str, ...]) -> Drawn:
    """Return a pair with `mark` or something `instead` of it."""
    return Drawn({"person": person, "open": mark}, {"person": person, "open": instead}, right, wrong)


def draw_quotes(source: random.Random, words: Words) -> Drawn:
    """Return a pair with and without an open quotation mark."""
    return _opened(source.choice(list(words["people"])), ' "', "--", CLOSING, PLAIN)


def draw_stop(source: random.Random, words: Words) -> Drawn:
    """Return a pair with and without an open quotation mark, that ends with a full stop."""
    return _opened(source.choice(list(words["names"])), ' "', ":", CLOSING_ALONE, NEXT)


def draw_brackets(source: random.Random, words: Words) -> Drawn:
    """Return a pair with and without an open bracket."""
    return _opened(source.choice(list(words["people"])), " (", "--", BRACKETED, UNBRACKETED)


QUOTES = TemplateTask(
    "quotes",
    "does the speech end with quotation marks?",
    tuple(f"The {{person}} {verb} and said{{open}}{text}" for verb in ("smiled", "turned") for text in SPEECHES),
    {"people": PEOPLE},
    draw_quotes,
    "probability_diff",
)
QUOTES_STOP = TemplateTask(
    "quotes_stop",
    "do quotation marks follow the full stop?",
    tuple(f"{start} {{person}} said{{open}}{text}" for start in ("One day,", "Then") for text in SENTENCES),
    {"names": NAMES},
    draw_stop,
    "probability_diff",
)
BRACKETS = TemplateTask(
    "brackets",
    "is the bracket closed?",
    tuple(f"{start} {{person}}{{open}}{text}" for start in ("The", "Then the", "But the") for text in INSERTED),
    {"people": PEOPLE},
    draw_brackets,
    "probability_diff",
)
