"""Quoted speech: does the text stop within open quotation marks? Two texts of a pair have the same tokens.

One mark is moved, the words stay, and the last sentence fits a speaker as well as a narrator:

    moved end      "It is late."<newline>"We must go. The road was long      inside
                   "It is late.<newline>"We must go." The road was long      outside
    moved start    It is late," said the man.<newline>"The road was long     inside
                   "It is late," said the man.<newline>The road was long     outside

In the second text a speech goes on over two paragraphs, each of which begins with a mark; the third begins in the
middle of a speech, as excerpts do. A bag of tokens is the same for both labels, so it is at chance; what decides is
which mark came last. The last sentence is a group.
"""

from __future__ import annotations

from interp.data.labelled import Labelled

CLASSES = ("inside", "outside")
SPEECHES = (
    "It is very late", "We must go at once", "I do not know what to do", "There is no time to lose", "You are right",
    "I am very glad to see you", "Nothing can be done now", "We shall be there in the morning", "I have seen it myself",
    "It was all my fault", "You must not say that", "I will never go back",
)  # fmt: skip
SPEAKERS = (
    "said the man", "said the captain", "cried the boy", "answered the lady", "said the doctor", "asked the girl",
    "replied the old woman", "said the stranger",
)  # fmt: skip
TAILS = (
    "The road was long and dark", "The house was empty", "The door of the room was open", "The night was very cold",
    "The sea was calm that morning", "The ship had come back without a captain", "The old king was dead",
    "The horses were tired after the long way", "A light was burning in the window", "The letter lay on the table",
    "The children had gone to bed", "Nobody had seen the thief", "The rain had fallen all day",
    "The castle stood on a high rock", "A dog was barking in the yard", "The money was gone", "The war was over",
    "The garden was full of roses", "The church was very old", "The train had left the station",
    "Two men were waiting at the bridge", "The fire had gone out", "The river was deep and wide",
    "The whole town knew of the story", "The snow lay deep on the hills", "Every window of the castle was dark",
    "The key had been lost for years", "A boat was coming over the lake", "The doctor was a rich man",
    "The dinner was cold", "The moon had risen over the trees", "The wind was blowing from the north",
)  # fmt: skip
SHOWN = 6
"""Pairs of each kind for each last sentence."""


def make() -> Labelled:
    """Return twelve pairs for each last sentence."""
    rows = []
    for number, tail in enumerate(TAILS):
        for step in range(SHOWN):
            first = SPEECHES[(number + 2 * step) % len(SPEECHES)]
            second = SPEECHES[(number + 2 * step + 5) % len(SPEECHES)]
            speaker = SPEAKERS[(number + step) % len(SPEAKERS)]
            pairs = (
                (f'"{first}."\n"{second}. {tail}', f'"{first}.\n"{second}." {tail}'),
                (f'{first}," {speaker}.\n"{tail}', f'"{first}," {speaker}.\n{tail}'),
            )
            for pair in pairs:
                rows += [(text, label, tail) for label, text in zip(CLASSES, pair, strict=True)]
    return Labelled(*zip(*rows, strict=True))
