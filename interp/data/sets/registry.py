"""The sets by name, and how some texts of one are drawn.

A set is the same each time and holds no text twice. In each group (two adjectives, two words for people, a verb, a
sentence, an entity) each label is equally frequent: to know the group is to know nothing, and a probe has to be right
about words that it was not fitted on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from interp.data.labelled import Labelled
from interp.data.sets import gender, quoted_speech, sentiment, tense, true_false
from interp.names import unknown


@dataclass(frozen=True)
class LabelledSet:
    """A set that is made when it is asked for."""

    description: str
    """What is asked of a text."""
    classes: tuple[str, ...]
    """The labels, sorted."""
    make: Callable[[], Labelled]
    """Makes all texts."""


SETS: dict[str, LabelledSet] = {
    "gender": LabelledSet("is the person a woman or a man?", gender.CLASSES, gender.make),
    "quoted_speech": LabelledSet(
        "does the last token stand within open quotation marks?", quoted_speech.CLASSES, quoted_speech.make
    ),
    "sentiment": LabelledSet("is what is said of somebody good or bad?", sentiment.CLASSES, sentiment.make),
    "tense": LabelledSet("does it happen now or did it happen before?", tense.CLASSES, tense.make),
    "true_false": LabelledSet("is the statement true?", true_false.CLASSES, true_false.make),
}
"""Name -> set."""


def labelled_set(name: str, n: int | None = None, seed: int = 0) -> Labelled:
    """Return a shipped set, in the order in which it is made.

    Args:
        name: a key of `SETS`.
        n: number of texts to draw, as many of each label (what does not divide is left out); None, or more than there
            are, gives all.
        seed: of the draw.

    Raises:
        ValueError: an unknown name, or fewer texts than labels.
    """
    if name not in SETS:
        raise ValueError(unknown("labelled set", name, SETS))
    found = SETS[name].make()
    if n is None or n >= len(found):
        return found
    share = n // len(found.classes)
    if share < 1:
        raise ValueError(f"n must be {len(found.classes)} or more, one text for each label of {name}, got {n}.")
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(found.is_class(one)))[:share] for one in found.classes]
    chosen = np.sort(np.concatenate(drawn))
    return Labelled(*(tuple(part[row] for row in chosen) for part in (found.texts, found.labels, found.groups)))
