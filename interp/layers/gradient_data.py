"""Examples whose loss is differentiated: which tokens are read, which are scored; controls for the length of answers.

An answer is scored, its prompt is not. Tokens are those of prompt and answer joined, as the model meets them; a token
belongs to the answer if any of its characters does, by the tokenizer's own offsets. Counting the prompt's tokens by
themselves is off by one wherever a token reaches across the boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from torch import Tensor

from interp.names import shorten

if TYPE_CHECKING:
    from interp.data import Labelled
    from interp.models.handle import ModelHandle

Pair = tuple[str, str]
"""A prompt and its answer."""


@dataclass(frozen=True)
class Example:
    """Tokens of one example."""

    tokens: tuple[int, ...]
    """Ids, BOS included."""
    start: int
    """First scored token; all after it are scored too."""
    across: bool = False
    """Whether the first scored token also holds characters of the prompt."""

    def __post_init__(self) -> None:
        if not 1 <= self.start < len(self.tokens):
            raise ValueError(
                f"start must lie in 1..{len(self.tokens) - 1} (a token before the first scored one, and one to score), "
                f"got {self.start}."
            )

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return len(self.tokens) - self.start


def answer_examples(handle: ModelHandle, pairs: Sequence[Pair]) -> list[Example]:
    """Return the examples of prompts and answers, only the answers scored.

    Raises:
        ValueError: no tokenizer or one without offsets, an answer without tokens, an empty prompt without a BOS, or
            more tokens than the model reads.
    """
    tokenizer = handle.tokenizer
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        raise ValueError("Prompts and answers need a fast tokenizer, which says where each token lies in the text.")
    first = () if handle.bos_id is None else (handle.bos_id,)
    found = []
    for prompt, answer in pairs:
        coded = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = coded["offset_mapping"]
        start = next((i for i, (_, end) in enumerate(spans) if end > len(prompt)), len(spans))
        where = f"the pair {shorten(prompt + answer)!r}"
        if start == len(spans):
            raise ValueError(f"The answer of {where} has no tokens; there is nothing to score.")
        if len(first) + len(spans) > handle.n_ctx:
            raise ValueError(
                f"{where} has {len(first) + len(spans)} tokens, and the model reads n_ctx={handle.n_ctx}; shorten it."
            )
        if start + len(first) == 0:
            raise ValueError(f"{where} has no token before its answer; give it a prompt.")
        tokens = first + tuple(coded["input_ids"])
        found.append(Example(tokens, len(first) + start, across=spans[start][0] < len(prompt)))
    return found


def text_examples(tokens: Int[Tensor, "example pos"]) -> list[Example]:
    """Return plain texts as examples: every token after the first is scored."""
    return [Example(tuple(row), 1) for row in tokens.tolist()]


def labelled_pairs(data: Labelled, between: str = " ") -> list[Pair]:
    """Return each labelled text as a prompt, with its label after `between` as the answer."""
    return [(text, between + label) for text, label in zip(data.texts, data.labels, strict=True)]


def shuffled_answers(pairs: Sequence[Pair], seed: int = 0) -> list[Pair]:
    """Return the prompts with each other's answers, none with its own: a control whose answers have the same lengths.

    Raises:
        ValueError: fewer than two pairs.
    """
    if len(pairs) < 2:
        raise ValueError(f"Answers can be exchanged among two pairs or more, got {len(pairs)}.")
    order = np.random.default_rng(seed).permutation(len(pairs))
    giver = np.empty_like(order)
    giver[order] = np.roll(order, 1)  # one cycle through all pairs has no fixed point
    return [(pair[0], pairs[i][1]) for pair, i in zip(pairs, giver, strict=True)]


def match_lengths(one: Sequence[Example], other: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Return as many examples of both, with the same numbers of scored tokens.

    Both sets are ordered by length and paired; the longer answer of a pair loses its end. Where one set is larger,
    evenly spaced ones of it are taken. The prompts, which decide the rank for k and v too, stay as they are.
    """
    count = min(len(one), len(other))
    cut: tuple[list[Example], list[Example]] = ([], [])
    for a, b in zip(_spread(one, count), _spread(other, count), strict=True):
        length = min(a.scored, b.scored)
        for side, example in zip(cut, (a, b), strict=True):
            side.append(replace(example, tokens=example.tokens[: example.start + length]))
    return cut


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    ordered = sorted(examples, key=lambda example: example.scored)
    return [ordered[i * len(ordered) // count] for i in range(count)]
