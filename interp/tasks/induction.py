"""Induction on random tokens: what came after this token the last time? It needs a vocabulary and nothing else.

    clean     [BOS] x_1 .. a b .. c d .. x_T   x_1 .. a      -> b
    corrupt   [BOS] x_1 .. c b .. a d .. x_T   x_1 .. a      -> d

The tokens of a prompt are all different. The two prompts differ in which token stands before b and which before d,
so that both halves of the mechanism matter: a head that notes the token before (at b and d), and one that looks for
the note that equals the last token (Elhage et al. 2021; Olsson et al. 2022).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from interp.tasks.pairs import Pairs

if TYPE_CHECKING:
    from interp.models.handle import ModelHandle

SHORTEST = 5
"""Fewest tokens to repeat: two pairs with something between them."""


@dataclass(frozen=True)
class Induction:
    """The task: random tokens repeated up to one that occurred before."""

    half: int = 16
    """Random tokens before the repetition, if the context and the vocabulary have room for them."""
    name: str = "induction"
    """Name of the task."""
    summary: str = "random tokens, repeated: which one followed this one before?"
    """What is asked, for tables."""

    def pairs(self, handle: ModelHandle, n: int = 32, seed: int = 0) -> Pairs:
        """Return `n` pairs of random tokens of this model, BOS first if it has one.

        Raises:
            ValueError: the context or the vocabulary is too small.
        """
        special = set(getattr(handle.tokenizer, "all_special_ids", None) or []) | {handle.bos_id}
        allowed = [i for i in range(handle.d_vocab) if i not in special]
        half = min(self.half, (handle.n_ctx - (handle.bos_id is not None)) // 2, len(allowed))
        return repeated_pairs(allowed, handle.bos_id, n, half, seed)


def repeated_pairs(allowed: Sequence[int], bos_id: int | None, n: int, half: int, seed: int) -> Pairs:
    """Return `n` pairs of `half` different tokens out of `allowed`, repeated up to one of them.

    The places of a, b, c and d are drawn once, so that every position plays the same part in all prompts.

    Raises:
        ValueError: `n` is below 1, `half` below 5, or there are fewer tokens than `half`.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    if half < SHORTEST or len(allowed) < half:
        raise ValueError(
            f"Induction needs at least {SHORTEST} different tokens to repeat, and room for them twice; this model "
            f"leaves {half} of {len(allowed)} tokens."
        )
    source = random.Random(seed)
    a = source.randrange(half // 4, half // 2)
    c = source.randrange(a + 2, half - 1)
    clean, corrupt, answers = [], [], []
    seen: set[tuple[int, ...]] = set()
    for _ in range(100 * n):
        first = source.sample(allowed, half)
        if tuple(first) in seen:
            continue
        seen.add(tuple(first))
        changed = list(first)
        changed[a], changed[c] = first[c], first[a]
        again = first[: a + 1]
        start = [] if bos_id is None else [bos_id]
        clean.append([*start, *first, *again])
        corrupt.append([*start, *changed, *again])
        answers.append((first[a + 1], first[c + 1]))
        if len(clean) == n:
            break
    if len(clean) < n:
        raise ValueError(f"There are only {len(clean)} different prompts of {half} of {len(allowed)} tokens, not {n}.")
    ids = torch.tensor(answers)
    roles = _roles(half, a, c, bos_id is not None)
    return Pairs(
        "induction", torch.tensor(clean), torch.tensor(corrupt), ids[:, :1], ids[:, 1:], "logit_diff", tuple(roles)
    )


def _roles(half: int, a: int, c: int, bos: bool) -> list[str]:
    """Return what stands at each position."""
    named = {a: "a", a + 1: "b (answer)", c: "c", c + 1: "d (wrong)"}
    first = [named.get(i, f"x{i + 1}") for i in range(half)]
    return [*(["bos"] if bos else []), *first, *(f"x{i + 1} again" for i in range(a)), "end (a again)"]
