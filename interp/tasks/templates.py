"""Prompts from templates: text with slots, every slot one token, all prompts of a batch aligned token by token.

    template   "When {A} and {B} went to the {PLACE}, {S} gave a {OBJECT} to"

The words of a slot come from a list; words that this model cuts into several tokens are dropped. Of several templates
those are used together whose slots stand at the same positions in this model's tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from interp.tasks.pairs import NOTHING, Pairs
from interp.tasks.words import Kept, ids_of, keep_single, piece_id

if TYPE_CHECKING:
    from interp.models.handle import ModelHandle

_SLOT = re.compile(r"\{(\w+)\}")
LEAST_WORDS = 2
"""Fewest words of any list that must remain."""
TRIES = 200
"""Draws without a new prompt (and four more for each that was found) after which there are said to be no more."""


class TooFewPairs(ValueError):
    """A task has fewer different prompts than were asked for; `available` says how many were found."""

    def __init__(self, message: str, available: int) -> None:
        super().__init__(message)
        self.available = available


Words = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Drawn:
    """One pair before it becomes tokens."""

    clean: Mapping[str, str]
    """Slot -> word of the clean prompt; a slot may hold any text that is one token there."""
    corrupt: Mapping[str, str]
    """Slot -> word of the corrupted prompt."""
    correct: tuple[str, ...]
    """What is right after the clean prompt, each with its leading space if it has one."""
    wrong: tuple[str, ...]
    """What is wrong there."""


@dataclass(frozen=True)
class TemplateTask:
    """A task whose prompts are templates filled with words."""

    name: str
    """Name of the task."""
    summary: str
    """What is asked, for tables."""
    templates: tuple[str, ...]
    """Texts with slots."""
    words: Mapping[str, tuple[str, ...]] = field(hash=False)
    """Lists of words by name."""
    draw: Callable[[random.Random, Words], Drawn] = field(hash=False)
    """Draws a pair: (source of randomness, the words that are left) -> what fills the slots."""
    metric: str = "logit_diff"
    """The task's own metric."""
    least: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Fewest words of a list that must remain, where that is more than 2."""

    def kept(self, handle: ModelHandle) -> dict[str, Kept]:
        """Return {list: words that are single tokens of this model, and how many were dropped}."""
        return {name: keep_single(handle, words) for name, words in self.words.items()}

    def pairs(self, handle: ModelHandle, n: int = 32, seed: int = 0) -> Pairs:
        """Return `n` different pairs for this model.

        Raises:
            ValueError: `n` is below 1, the model has no tokenizer, too few words are single tokens of it, or there
                are fewer different prompts than `n`.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}.")
        kept = self.kept(handle)
        for name, found in kept.items():
            least = self.least.get(name, LEAST_WORDS)
            if len(found.words) < least:
                raise ValueError(
                    f"The task {self.name!r} needs at least {least} words of its list {name!r} that are single "
                    f"tokens of {handle.spec.name}; {len(found.words)} of {len(found.words) + found.dropped} are."
                )
        return _filled(self, handle, {name: found.words for name, found in kept.items()}, n, seed)


def _filled(task: TemplateTask, handle: ModelHandle, words: Words, n: int, seed: int) -> Pairs:
    """Return `n` pairs of the templates that are aligned with each other."""
    source = random.Random(seed)
    first = task.draw(random.Random(0), words)
    templates, places, length = _aligned(task, handle, first)
    _answer_ids(task, handle, {*first.correct, *first.wrong})  # refused before anything is drawn
    rows: dict[tuple[int, ...], tuple[list[int], tuple[str, ...], tuple[str, ...]]] = {}
    idle = 0
    while len(rows) < n and idle < TRIES + 4 * len(rows):
        idle += 1
        template, drawn = source.choice(templates), task.draw(source, words)
        clean, corrupt = (ids_of(handle, template.format(**fill)) for fill in (drawn.clean, drawn.corrupt))
        changed = {i for i, (one, other) in enumerate(zip(clean, corrupt, strict=False)) if one != other}
        if {len(clean), len(corrupt)} != {length} or not changed <= set(places.values()) or tuple(clean) in rows:
            continue  # a word that joins with its neighbour here, or a prompt that is there already
        rows[tuple(clean)] = (corrupt, drawn.correct, drawn.wrong)
        idle = 0
    if len(rows) < n:
        raise TooFewPairs(
            f"The task {task.name!r} has only {len(rows)} different prompts in the tokens of {handle.spec.name}, "
            f"{n} were asked for.",
            len(rows),
        )
    bos = [] if handle.bos_id is None else [handle.bos_id]
    clean_ids = torch.tensor([[*bos, *row] for row in rows])
    corrupt_ids = torch.tensor([[*bos, *row] for row, _, _ in rows.values()])
    answers = {piece for _, *both in rows.values() for side in both for piece in side}
    ids = _answer_ids(task, handle, answers)
    found = [[[ids[piece] for piece in side if piece in ids] for side in both] for _, *both in rows.values()]
    lacking = sum(not all(both) for both in found)
    if lacking:
        raise ValueError(
            f"Only {len(ids)} of {len(answers)} answers of the task {task.name!r} are single tokens of "
            f"{handle.spec.name}, so that {lacking} of {n} prompts have no right or no wrong one."
        )
    roles = [*(["bos"] if bos else []), *_roles(handle, list(rows), places)]
    return Pairs(
        task.name,
        clean_ids,
        corrupt_ids,
        padded([row[0] for row in found]),
        padded([row[1] for row in found]),
        task.metric,
        tuple(roles),
    )


def _aligned(task: TemplateTask, handle: ModelHandle, sample: Drawn) -> tuple[list[str], dict[str, int], int]:
    """Return (the largest group of templates whose slots stand at equal positions, these positions, the length)."""
    groups: dict[tuple, list[str]] = {}
    for template in task.templates:
        whole = ids_of(handle, template.format(**sample.clean))
        places = {}
        for slot in _SLOT.finditer(template):
            before = ids_of(handle, template[: slot.end()].format(**sample.clean))
            if whole[: len(before)] == before:
                places[slot[1]] = len(before) - 1
        groups.setdefault((len(whole), tuple(sorted(places.items()))), []).append(template)
    (length, places), templates = max(groups.items(), key=lambda item: len(item[1]))
    return templates, dict(places), length


def _answer_ids(task: TemplateTask, handle: ModelHandle, pieces: set[str]) -> dict[str, int]:
    """Return {answer: id} of the answers that are single tokens."""
    found = {piece: piece_id(handle, piece) for piece in sorted(pieces)}
    ids = {piece: index for piece, index in found.items() if index is not None}
    if not ids:
        raise ValueError(
            f"None of the {len(found)} answers of the task {task.name!r} is a single token of {handle.spec.name}."
        )
    return ids


def padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "prompt alternative"]:
    """Return the rows as one tensor, the shorter ones filled with `NOTHING`."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[NOTHING] * (width - len(row))] for row in rows])


def _roles(handle: ModelHandle, rows: Sequence[Sequence[int]], places: Mapping[str, int]) -> list[str]:
    """Return what stands at each position: the slot, else the token if it is the same in all prompts, else nothing."""
    named = {place: slot for slot, place in places.items()}
    roles = []
    for position, column in enumerate(zip(*rows, strict=True)):
        same = handle.token_strings([column[0]])[0] if len(set(column)) == 1 else ""
        roles.append(named.get(position, same))
    roles[-1] = "end" if len(rows[0]) - 1 not in named else roles[-1]
    return roles
