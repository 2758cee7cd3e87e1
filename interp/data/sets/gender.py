"""Gender: a woman or a man does something; a name or a noun says who, and no pronoun does.

    Alice walked to the garden.           woman
    Henry walked to the garden.           man

A woman's word and a man's make a group (queen and king, Alice and Henry) and stand in the same sentences: the words of
the other groups, which a probe is fitted on, are others.
"""

from __future__ import annotations

from interp.data.labelled import Labelled

CLASSES = ("man", "woman")
NOUNS = (
    ("woman", "man"), ("lady", "gentleman"), ("girl", "boy"), ("mother", "father"), ("sister", "brother"),
    ("aunt", "uncle"), ("wife", "husband"), ("queen", "king"), ("daughter", "son"), ("princess", "prince"),
    ("widow", "lord"), ("niece", "nephew"), ("bride", "monk"), ("actress", "actor"), ("nun", "priest"),
    ("duchess", "duke"), ("grandmother", "grandfather"), ("lass", "lad"),
)  # fmt: skip
NAMES = (
    ("Mary", "John"), ("Alice", "Henry"), ("Anna", "Peter"), ("Jane", "Tom"), ("Emily", "Jack"), ("Margaret", "George"),
    ("Elizabeth", "William"), ("Lucy", "Robert"), ("Helen", "Richard"), ("Ellen", "Charles"), ("Emma", "Edward"),
    ("Catherine", "Philip"), ("Julia", "Paul"), ("Sarah", "James"), ("Nancy", "Frank"), ("Martha", "Arthur"),
    ("Laura", "Harry"), ("Clara", "Walter"),
)  # fmt: skip
FRAMES = (
    "{who} walked to the garden.",
    "{who} came into the room.",
    "{who} sat down by the fire.",
    "{who} looked at the sea.",
    "{who} went to the window.",
    "Then {who} stood still.",
    "In the morning {who} was tired.",
    "At last {who} began to speak.",
    "After dinner {who} went to the town.",
    "We saw {who} at the door of the house.",
    "The letter was from {who} in the country.",
    "They were talking of {who} all day.",
)


def make() -> Labelled:
    """Return all frames with all words."""
    rows = []
    for noun, pairs in ((True, NOUNS), (False, NAMES)):
        for pair in pairs:
            for frame in FRAMES:
                for label, word in zip(("woman", "man"), pair, strict=True):
                    article = ("The " if frame.startswith("{who}") else "the ") if noun else ""
                    rows.append((frame.format(who=article + word), label, "|".join(pair)))
    return Labelled(*zip(*rows, strict=True))
