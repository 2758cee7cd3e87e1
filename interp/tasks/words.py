"""Words that a model reads as one token: only these may stand in a slot of a prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.models.handle import ModelHandle

BEFORE = "So"
"""What a piece is put behind to see its tokens; sentencepiece adds a space of its own at the start of a text."""


@dataclass(frozen=True)
class Kept:
    """The words of a list that are single tokens of a model."""

    words: tuple[str, ...]
    """Those that are, in the list's order."""
    dropped: int
    """Number of those that are not."""


def ids_of(handle: ModelHandle, text: str) -> list[int]:
    """Return the token ids of `text`, without BOS."""
    return handle.tokens(text, bos=False)[0].tolist()


def piece_id(handle: ModelHandle, piece: str) -> int | None:
    """Return the id of `piece` (with its leading space, if it has one) where it is one token, else None."""
    before = ids_of(handle, BEFORE)
    after = ids_of(handle, BEFORE + piece)
    return after[-1] if len(after) == len(before) + 1 and after[: len(before)] == before else None


def keep_single(handle: ModelHandle, words: Iterable[str]) -> Kept:
    """Return the words that are single tokens behind a space."""
    given = tuple(dict.fromkeys(words))
    kept = tuple(word for word in given if piece_id(handle, f" {word}") is not None)
    return Kept(kept, len(given) - len(kept))
