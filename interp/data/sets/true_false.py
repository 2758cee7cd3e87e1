"""True and false: simple statements, each of four forms, so that no word of them tells.

    A robin is a bird.  true         A robin is not a bird.  false
    A robin is a fish.  false        A robin is not a fish.  true

Kinds (a robin is a bird), properties (ice is cold), numbers (seven is more than three), days and months (Tuesday comes
after Monday). What is right for one is wrong for another, equally often, and half of all are denials: counting
tokens gives nothing. The entity is a group; numbers are divided into blocks that are compared only within, and the days
are one group, as the months are, since each occurs in the statements about its neighbours.
"""

from __future__ import annotations

from itertools import permutations

from interp.data.labelled import Labelled

CLASSES = ("false", "true")
KINDS = {
    "bird": ("robin", "sparrow", "eagle", "hawk", "crow", "owl", "swallow", "lark", "raven", "swan"),
    "fish": ("salmon", "trout", "cod", "herring", "shark", "pike", "sole", "carp", "mackerel", "sardine"),
    "tree": ("oak", "elm", "pine", "birch", "beech", "willow", "poplar", "cedar", "maple", "fir"),
    "flower": ("rose", "lily", "violet", "daisy", "tulip", "pansy", "poppy", "primrose", "buttercup", "daffodil"),
    "fruit": ("apple", "pear", "plum", "cherry", "peach", "lemon", "grape", "strawberry", "fig", "melon"),
    "tool": ("hammer", "saw", "spade", "axe", "knife", "rake", "chisel", "file", "screwdriver", "pair of scissors"),
}
PROPERTIES = (
    ("cold", "hot", "Ice", "Fire"), ("white", "black", "Snow", "Coal"), ("soft", "hard", "Butter", "Stone"),
    ("dry", "wet", "The desert", "The sea"), ("sweet", "bitter", "Honey", "Medicine"),
    ("light", "heavy", "A feather", "Lead"), ("large", "small", "An elephant", "A mouse"),
    ("fast", "slow", "A train", "A snail"), ("bright", "dark", "The sun", "A cave"),
    ("thin", "thick", "Paper", "A wall"), ("young", "old", "A baby", "A grandmother"),
    ("quiet", "loud", "A whisper", "Thunder"),
)  # fmt: skip
"""(property of the first, property of the second, first, second)."""
NUMBERS = (
    ("one", "eight", "fifteen"), ("two", "nine", "sixteen"), ("three", "ten", "seventeen"),
    ("four", "eleven", "eighteen"), ("five", "twelve", "nineteen"), ("six", "thirteen", "twenty"),
    ("seven", "fourteen", "thirty"), ("forty", "sixty", "a hundred"), ("fifty", "ninety", "a thousand"),
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip

Row = tuple[str, str, str]


def _forms(frame: str, right: str, wrong: str, group: str) -> list[Row]:
    """Return four statements: the slots `no` and `it` of the frame are filled."""
    return [
        (frame.format(it=it, no=no), CLASSES[(it == right) == (no == "")], group)
        for it in (right, wrong)
        for no in ("", " not")
    ]


def _a(word: str) -> str:
    return ("An " if word[0] in "aeiou" else "A ") + word


def _kinds() -> list[Row]:
    rows = []
    names = list(KINDS)
    for kind, (name, members) in enumerate(KINDS.items()):
        for number, member in enumerate(members):
            wrong = names[(kind + 1 + number % (len(names) - 1)) % len(names)]
            rows += _forms(f"{_a(member)} is{{no}} a {{it}}.", name, wrong, member)
            rows += _forms(f"I know that {_a(member).lower()} is{{no}} a {{it}}.", name, wrong, member)
    return rows


def _properties() -> list[Row]:
    rows = []
    for first, second, one, other in PROPERTIES:
        group = f"{one}|{other}"
        for thing, right, wrong in ((one, first, second), (other, second, first)):
            rows += _forms(f"{thing} is{{no}} {{it}}.", right, wrong, group)
            rows += _forms(f"I know that {thing[0].lower()}{thing[1:]} is{{no}} {{it}}.", right, wrong, group)
    return rows


def _numbers() -> list[Row]:
    rows = []
    for block in NUMBERS:
        for left, right in permutations(range(len(block)), 2):
            frame = f"{block[left].capitalize()} is{{no}} {{it}} than {block[right]}."
            more, less = ("more", "less") if left > right else ("less", "more")
            rows += _forms(frame, more, less, "|".join(block))
    return rows


def _calendar(names: tuple[str, ...], group: str) -> list[Row]:
    rows = []
    for number, name in enumerate(names):
        after, other = (names[(number + step) % len(names)] for step in (1, 4))
        rows += _forms(f"The {group} after {name} is{{no}} {{it}}.", after, other, group)
    return rows


def make() -> Labelled:
    """Return all statements."""
    rows = _kinds() + _properties() + _numbers() + _calendar(DAYS, "day") + _calendar(MONTHS, "month")
    return Labelled(*zip(*rows, strict=True))
