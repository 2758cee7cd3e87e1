"""Indirect object identification (Wang et al. 2023): who was given something, if not the one who gave it?

    clean     When Mary and John went to the garden, John gave a book to       -> Mary, not John

Names come in both orders (ABBA and BABA). Two corruptions:

    ioi       three other names, A B C for A B B: nothing is left of who is who (p_ABC)
    ioi_s2    the second subject is the other name: ... Mary gave a book to     -> John
"""

from __future__ import annotations

import random

from interp.tasks.templates import Drawn, TemplateTask, Words

NAMES = (
    "Alice", "Amy", "Anna", "Anne", "Arthur", "Ben", "Bill", "Bob", "Charles", "David", "Dick", "Dora", "Dorothy",
    "Edward", "Elizabeth", "Ellen", "Emily", "Emma", "Frank", "Fred", "George", "Grace", "Harry", "Helen", "Henry",
    "Jack", "James", "Jane", "Jim", "Joe", "John", "Kate", "Laura", "Lily", "Lucy", "Mark", "Martin", "Mary", "Max",
    "Meg", "Nancy", "Oliver", "Paul", "Peter", "Polly", "Rachel", "Robert", "Rose", "Ruth", "Sam", "Sara", "Simon",
    "Sue", "Thomas", "Tim", "Timmy", "Tom", "Walter", "Will",
)  # fmt: skip
PLACES = (
    "garden", "river", "house", "station", "church", "village", "forest", "market", "school", "kitchen", "island",
    "library", "town", "shop", "beach", "castle",
)  # fmt: skip
OBJECTS = (
    "book", "letter", "flower", "ring", "hat", "candle", "key", "watch", "knife", "picture", "ball", "paper", "horse",
    "basket", "coin", "cup",
)  # fmt: skip
TEMPLATES = (
    "When {first} and {second} went to the {place}, {subject} gave a {object} to",
    "When {first} and {second} came to the {place}, {subject} gave the {object} to",
    "After {first} and {second} went to the {place}, {subject} brought a {object} to",
    "While {first} and {second} were at the {place}, {subject} handed a {object} to",
    "Then {first} and {second} walked to the {place}, and {subject} gave a {object} to",
)
_WORDS = {"names": NAMES, "places": PLACES, "objects": OBJECTS}


def _two(source: random.Random, words: Words) -> tuple[dict[str, str], str, str]:
    """Return (what fills the slots, the one who is given something, the one who gives)."""
    other, subject = source.sample(list(words["names"]), 2)
    first, second = (other, subject) if source.random() < 0.5 else (subject, other)
    scene = {"place": source.choice(list(words["places"])), "object": source.choice(list(words["objects"]))}
    return scene | {"first": first, "second": second, "subject": subject}, other, subject


def draw_abc(source: random.Random, words: Words) -> Drawn:
    """Return a pair whose corrupted prompt has three names that the clean one has not."""
    clean, other, subject = _two(source, words)
    free = [name for name in words["names"] if name not in (other, subject)]
    three = dict(zip(("first", "second", "subject"), source.sample(free, 3), strict=True))
    return Drawn(clean, clean | three, (f" {other}",), (f" {subject}",))


def draw_s2(source: random.Random, words: Words) -> Drawn:
    """Return a pair whose corrupted prompt has the other one give."""
    clean, other, subject = _two(source, words)
    return Drawn(clean, clean | {"subject": other}, (f" {other}",), (f" {subject}",))


IOI = TemplateTask(
    "ioi", "who was given it? (corrupted: three other names)", TEMPLATES, _WORDS, draw_abc, least={"names": 5}
)
IOI_S2 = TemplateTask("ioi_s2", "who was given it? (corrupted: the other one gives)", TEMPLATES, _WORDS, draw_s2)
