"""Greater-than (Hanna et al. 2023): a span of years ends after it began.

    clean     The war lasted from the year 1732 to the year 17     -> 33 to 99, not 00 to 32
    corrupt   The war lasted from the year 1701 to the year 17

The metric is the probability of all later years minus that of all others.
"""

from __future__ import annotations

import random

from interp.tasks.templates import Drawn, TemplateTask, Words

NOUNS = (
    "war", "journey", "marriage", "friendship", "quarrel", "rule", "trial", "work", "search", "illness", "famine",
    "peace", "voyage", "feud", "siege", "trade",
)  # fmt: skip
YEARS = tuple(f"{year:02}" for year in range(100))
CENTURIES = ("11", "12", "13", "14", "15", "16", "17")
TEMPLATES = tuple(f"The {{noun}} lasted from the year {c}{{year}} to the year {c}" for c in CENTURIES)
BEGINNING = "01"
"""Year of the corrupted prompt."""


def draw(source: random.Random, words: Words) -> Drawn:
    """Return a pair; years at the edges are left out, as there every answer or none would be right."""
    year = source.choice(YEARS[2:99])
    clean = {"noun": source.choice(list(words["nouns"])), "year": year}
    later = tuple(other for other in YEARS if other > year)
    return Drawn(clean, clean | {"year": BEGINNING}, later, tuple(other for other in YEARS if other <= year))


GREATER_THAN = TemplateTask(
    "greater_than", "in which year did it end?", TEMPLATES, {"nouns": NOUNS}, draw, "probability_diff"
)
