"""Docstring completion (Heimersheim and Janiak 2023): which argument is described next?

    clean     def f(self, x, A, B, C, y):  ...  :param A: ..  :param B: ..  :param     -> C, not x, A, B, y
    corrupt   other arguments in the definition, and others again in the docstring

Wrong answers are the other arguments of the definition; the metric takes the likeliest of them.
"""

from __future__ import annotations

import random

from interp.tasks.templates import Drawn, TemplateTask, Words

FUNCTIONS = ("load", "run", "open", "read", "write", "get", "set", "make", "find", "update", "build", "check")
ARGUMENTS = (
    "file", "name", "size", "page", "first", "last", "data", "text", "path", "key", "value", "order", "option",
    "result", "message", "table", "line", "start", "end", "count", "index", "user", "group", "type", "time", "image",
    "model", "number", "code", "field",
)  # fmt: skip
NOUNS = (
    "river", "garden", "letter", "bird", "stone", "road", "song", "winter", "house", "story", "light", "paper", "sea",
    "tree", "summer", "bread",
)  # fmt: skip
TEMPLATE = '''
def {function}(self, {before}, {A}, {B}, {C}, {after}):
    """{n1} {n2} {n3}

    :param {A_doc}: {n4} {n5}
    :param {B_doc}: {n6} {n7}
    :param'''
NOUN_SLOTS = tuple(f"n{i}" for i in range(1, 8))


def draw(source: random.Random, words: Words) -> Drawn:
    """Return a pair; no argument of one prompt is in the other's definition."""
    before, a, b, c, after, *others = source.sample(list(words["arguments"]), 12)
    nouns = dict(zip(NOUN_SLOTS, source.choices(list(words["nouns"]), k=len(NOUN_SLOTS)), strict=True))
    same = nouns | {"function": source.choice(list(words["functions"]))}
    clean = {"before": before, "A": a, "B": b, "C": c, "after": after, "A_doc": a, "B_doc": b}
    corrupt = dict(zip(clean, others, strict=True))
    wrong = tuple(f" {name}" for name in (before, a, b, after))
    return Drawn(same | clean, same | corrupt, (f" {c}",), wrong)


DOCSTRING = TemplateTask(
    "docstring",
    "which argument is described next?",
    (TEMPLATE,),
    {"functions": FUNCTIONS, "arguments": ARGUMENTS, "nouns": NOUNS},
    draw,
    least={"arguments": 12},
)
