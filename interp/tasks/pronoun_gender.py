"""Pronoun gender: a woman or a man is named, and the next clause begins with a pronoun.

clean     The old woman was tired because     -> she, not he
corrupt   The old man was tired because       -> he
"""

from __future__ import annotations

import random

from interp.tasks.templates import Drawn, TemplateTask, Words

WOMEN = ("woman", "lady", "girl", "mother", "sister", "aunt", "wife", "queen", "daughter", "nurse", "mom")
MEN = ("man", "gentleman", "boy", "father", "brother", "uncle", "husband", "king", "son", "sailor", "captain", "priest")
MOODS = ("tired", "glad", "sad", "afraid", "happy", "angry", "silent", "quiet", "sorry", "ashamed", "pleased")
TEMPLATES = (
    "The {person} was {mood} because",
    "The {person} looked {mood} when",
    "The {person} felt {mood} and",
    "That {person} was {mood} because",
)


def draw(source: random.Random, words: Words) -> Drawn:
    """Return a pair about a woman and a man, either of them in the clean prompt."""
    people = [source.choice(list(words["women"])), source.choice(list(words["men"]))]
    pronouns = [" she", " he"]
    if source.random() < 0.5:
        people.reverse()
        pronouns.reverse()
    mood = {"mood": source.choice(list(words["moods"]))}
    return Drawn(mood | {"person": people[0]}, mood | {"person": people[1]}, (pronouns[0],), (pronouns[1],))


PRONOUN_GENDER = TemplateTask(
    "pronoun_gender", "she or he?", TEMPLATES, {"women": WOMEN, "men": MEN, "moods": MOODS}, draw
)

NAMED_WOMEN = (
    "Lily", "Mary", "Emma", "Alice", "Anna", "Sara", "Lucy", "Jane", "Emily", "Nancy", "Rachel", "Elizabeth", "mom",
)  # fmt: skip
NAMED_MEN = ("Tim", "Timmy", "Tom", "Ben", "Jack", "John", "Peter", "Henry", "Robert", "Frank", "Jim", "Bill", "Dick")
NAME_TEMPLATES = tuple(
    f"{start} {{person}} was very {mood} {then}"
    for start in ("One day,", "Then")
    for mood in ("happy", "sad", "tired", "glad")
    for then in ("because", "when", "and")
)


def draw_named(source: random.Random, words: Words) -> Drawn:
    """Return a pair about two names."""
    drawn = draw(source, {**words, "moods": ("",)})
    person, other = drawn.clean["person"], drawn.corrupt["person"]
    return Drawn({"person": person}, {"person": other}, drawn.correct, drawn.wrong)


PRONOUN_NAME = TemplateTask(
    "pronoun_name",
    "she or he, after a name?",
    NAME_TEMPLATES,
    {"women": NAMED_WOMEN, "men": NAMED_MEN},
    draw_named,
)
