"""Subject-verb agreement in the past tense of fiction: was or were?

    agreement            clean    At last the boys                 -> were, not was
                         corrupt  At last the boy                  -> was
    agreement_attractor  clean    The boys near the tree           -> were, not was
                         corrupt  The boy near the tree            -> was

In the second another noun stands between (the attractor; Linzen et al. 2016), singular or plural by chance and the
same in both prompts: a model that goes by the last noun has half of them wrong.
"""

from __future__ import annotations

import random

from interp.tasks.templates import Drawn, TemplateTask, Words

SUBJECTS = (
    "man men", "woman women", "boy boys", "girl girls", "friend friends", "child children", "soldier soldiers",
    "servant servants", "lady ladies", "animal animals", "bird birds", "dog dogs", "horse horses", "house houses",
    "room rooms", "door doors", "chair chairs", "book books", "letter letters", "picture pictures", "flower flowers",
    "stone stones", "ship ships", "light lights", "paper papers", "voice voices", "wall walls", "window windows",
)  # fmt: skip
NEARBY = (
    "tree", "trees", "river", "house", "houses", "window", "windows", "door", "doors", "table", "wall", "walls", "fire",
    "garden", "gate", "road", "church", "stairs", "bed", "sea", "stone", "stones", "hill", "forest",
)  # fmt: skip
TEMPLATES = ("At last the {subject}", "And so the {subject}", "After that the {subject}", "But now the {subject}")
ATTRACTED = tuple(f"The {{subject}} {where} the {{nearby}}" for where in ("near", "by", "behind", "beside", "beyond"))


_SUBJECTS = {
    "singular": tuple(pair.split()[0] for pair in SUBJECTS),
    "plural": tuple(pair.split()[1] for pair in SUBJECTS),
}


def _subject(source: random.Random, words: Words) -> tuple[list[str], list[str]]:
    """Return (subject of the clean prompt, that of the corrupted one), and the verbs that go with them."""
    left = set(words["singular"]) & {one for one, many in map(str.split, SUBJECTS) if many in words["plural"]}
    nouns: list[str] = list(source.choice([pair.split() for pair in SUBJECTS if pair.split()[0] in left]))
    verbs: list[str] = [" was", " were"]
    return (nouns, verbs) if source.random() < 0.5 else (nouns[::-1], verbs[::-1])


def draw(source: random.Random, words: Words) -> Drawn:
    """Return a pair whose clean subject is singular or plural by chance."""
    nouns, verbs = _subject(source, words)
    return Drawn({"subject": nouns[0]}, {"subject": nouns[1]}, (verbs[0],), (verbs[1],))


def draw_attracted(source: random.Random, words: Words) -> Drawn:
    """Return such a pair with another noun behind the subject."""
    nouns, verbs = _subject(source, words)
    nearby = {"nearby": source.choice([word for word in words["nearby"] if word not in nouns])}
    return Drawn(nearby | {"subject": nouns[0]}, nearby | {"subject": nouns[1]}, (verbs[0],), (verbs[1],))


AGREEMENT = TemplateTask("agreement", "was or were?", TEMPLATES, _SUBJECTS, draw)
AGREEMENT_ATTRACTOR = TemplateTask(
    "agreement_attractor",
    "was or were, past a noun in between?",
    ATTRACTED,
    _SUBJECTS | {"nearby": NEARBY},
    draw_attracted,
)
