"""Puzzles to train a small model on, recall against reasoning: facts kept in its weights, chains read in the prompt.

    prompt   [BOS]  x y  x y  x y  x y  q  marker     links of chains, in random order; chains share no node
    recall   marker R: the fact of q, the same in every prompt                       table[q]
    chain    marker C: where q leads in k steps along the links of this prompt       q -> . -> answer

Both kinds are the same prompt but for its last token, so that neither length nor tokens tell them apart. In the
corrupted prompt of recall q is the beginning of another chain; in that of a chain the first links of two chains have
exchanged their ends. After the puzzles of Fartale et al. (2025), known from the abstract only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.names import unknown
from interp.tasks.pairs import Pairs

PUZZLES = ("recall", "chain")
"""Kinds of puzzles."""
BOS = 0


@dataclass(frozen=True)
class Puzzles:
    """Puzzles over tokens 1..nodes; the markers of recall and chain come after them."""

    nodes: int = 12
    """Tokens that are both what is asked for and the answers."""
    chains: int = 2
    """Chains in a prompt: one is asked for."""
    steps: int = 2
    """Links of a chain."""
    seed: int = 0
    """Of the table of facts."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.chains < 2 or self.nodes < self.chains * (self.steps + 1):
            raise ValueError(
                f"Puzzles need 1 step, 2 chains and chains (steps + 1) nodes or more, got nodes={self.nodes}, "
                f"chains={self.chains}, steps={self.steps}."
            )

    @property
    def d_vocab(self) -> int:
        """Tokens of the vocabulary: BOS, nodes, two markers."""
        return self.nodes + 3

    @property
    def n_pos(self) -> int:
        """Tokens of a prompt."""
        return 2 * self.chains * self.steps + 3

    @property
    def table(self) -> Int[np.ndarray, " node"]:
        """The fact of each token: a cyclic order of the nodes, so that nothing is its own fact; entry 0 is not used."""
        order = np.random.default_rng([self.seed, self.nodes]).permutation(np.arange(1, self.nodes + 1))
        found = np.zeros(self.nodes + 1, dtype=np.int64)
        found[order] = np.roll(order, -1)
        return found

    def draw(
        self, kind: str, n: int, rng: np.random.Generator
    ) -> tuple[Int[Tensor, "puzzle pos"], Int[Tensor, "puzzle pos"], Int[Tensor, "puzzle two"]]:
        """Return (clean prompts, corrupted prompts, right answers of both) of `n` puzzles.

        Raises:
            ValueError: an unknown kind.
        """
        if kind not in PUZZLES:
            raise ValueError(unknown("puzzle", kind, PUZZLES))
        count = self.chains * (self.steps + 1)
        nodes = rng.permuted(np.tile(np.arange(1, self.nodes + 1), (n, 1)), axis=1)[:, :count]
        chains = nodes.reshape(n, self.chains, self.steps + 1)
        links = np.stack([chains[:, :, :-1], chains[:, :, 1:]], -1)
        changed, query = links.copy(), np.repeat(chains[:, :1, 0], 2, axis=1)
        if kind == "recall":
            query[:, 1] = chains[:, 1, 0]
            answers = self.table[query]
        else:
            changed[:, :2, 0, 1] = links[:, 1::-1, 0, 1]
            answers = chains[:, :2, -1]
        order = rng.permuted(np.tile(np.arange(self.chains * self.steps), (n, 1)), axis=1)
        marker = self.nodes + 1 + PUZZLES.index(kind)
        prompts = [_prompts(one, order, query[:, i], marker) for i, one in enumerate((links, changed))]
        return torch.from_numpy(prompts[0]), torch.from_numpy(prompts[1]), torch.from_numpy(answers.copy())

    def pairs(self, kind: str, n: int = 32, seed: int = 0) -> Pairs:
        """Return `n` pairs of one kind.

        Raises:
            ValueError: an unknown kind, or n below 1.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}.")
        clean, corrupt, answers = self.draw(kind, n, np.random.default_rng([seed, 7]))
        roles = ("bos", *(["link", "its end"] * (self.chains * self.steps)), "query", "end")
        return Pairs(kind, clean, corrupt, answers[:, :1], answers[:, 1:], "logit_diff", roles)


def _prompts(
    links: Int[np.ndarray, "puzzle chain step two"],
    order: Int[np.ndarray, "puzzle link"],
    query: Int[np.ndarray, " puzzle"],
    marker: int,
) -> Int[np.ndarray, "puzzle pos"]:
    """Return prompts whose links come in `order`."""
    n = len(links)
    flat = np.take_along_axis(links.reshape(n, -1, 2), order[:, :, None], 1).reshape(n, -1)
    return np.column_stack([np.full(n, BOS), flat, query, np.full(n, marker)])
