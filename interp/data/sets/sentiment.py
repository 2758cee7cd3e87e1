"""Sentiment: something good or bad is said of somebody, in a quarter of the texts by denying the opposite.

    The captain was kind to everybody.            positive
    The captain was cruel to everybody.           negative
    The captain was not cruel to everybody.       positive

A good and a bad adjective are a group (kind and cruel) and have the same frames and people: a probe meets adjectives
that it was not fitted on, and what stands around them tells nothing. `not` and `never` tell nothing by themselves.
"""

from __future__ import annotations

from interp.data.labelled import Labelled

CLASSES = ("negative", "positive")
GOOD = (
    "good", "happy", "beautiful", "kind", "brave", "gentle", "honest", "pleasant", "noble", "splendid", "wonderful",
    "clever", "cheerful", "lovely", "excellent", "sweet", "bright", "charming", "tender", "friendly", "delightful",
    "generous", "faithful", "wise", "merry", "graceful", "agreeable", "admirable", "loyal", "polite", "sensible",
    "amiable", "handsome", "patient", "true", "strong", "elegant", "amusing", "worthy", "courageous",
)  # fmt: skip
BAD = (
    "bad", "sad", "ugly", "cruel", "cowardly", "savage", "false", "unpleasant", "wicked", "wretched", "horrible",
    "stupid", "miserable", "hideous", "terrible", "bitter", "dull", "hateful", "harsh", "rude", "dreadful",
    "selfish", "treacherous", "foolish", "gloomy", "clumsy", "disagreeable", "vile", "deceitful", "vulgar", "absurd",
    "spiteful", "nasty", "violent", "mean", "weak", "coarse", "tedious", "worthless", "greedy",
)  # fmt: skip
PEOPLE = (
    "The captain", "The old man", "The young lady", "Her sister", "His brother", "The doctor", "Their master",
    "My uncle", "The stranger", "The girl", "His friend", "The servant",
)  # fmt: skip
PLAIN = (
    "{person} was {what}.",
    "{person} was {what} to everybody.",
    "{person} seemed {what} to me.",
    "{person} had always been {what}.",
    "{person} looked {what} that evening.",
    "I thought that {person} was {what}.",
    "They said that {person} was {what} indeed.",
    "{person} was very {what} in those days.",
    "We all knew that {person} could be {what}.",
)
DENIED = (
    "{person} was not {what} to everybody.",
    "{person} had never been {what}.",
    "I thought that {person} was not {what}.",
)


def make() -> Labelled:
    """Return twelve texts for each adjective, three of them denials."""
    rows = []
    for number, pair in enumerate(zip(GOOD, BAD, strict=True)):
        for place, frame in enumerate(PLAIN + DENIED):
            person = PEOPLE[(number + place) % len(PEOPLE)]
            if not frame.startswith("{person}"):
                person = person[0].lower() + person[1:]
            for good, what in zip((True, False), pair, strict=True):
                label = CLASSES[good != (frame in DENIED)]
                rows.append((frame.format(person=person, what=what), label, "|".join(pair)))
    return Labelled(*zip(*rows, strict=True))
