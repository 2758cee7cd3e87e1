"""What attention heads do on repeated tokens: induction, previous-token and duplicate-token scores.

The text is T random tokens, twice: [BOS] x_1 .. x_T x_1 .. x_T. With A[q, k] the attention from q to k, averaged over
sequences,

    induction   mean of A[q, q - T + 1] over the second half: to the token after the first occurrence
    duplicate   mean of A[q, q - T] over the second half: to the first occurrence itself
    previous    mean of A[q, q - 1] over all q but the first

(Olsson et al. 2022; Wang et al. 2023). Random tokens hold nothing else that could be predicted, so the loss on the
second half, against that on the first, is what the model's copying achieves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks import capture
from interp.metrics import next_token_loss
from interp.models.handle import ModelHandle
from interp.sites import Site

PATTERN_FLOATS = 1 << 24
"""Largest set of patterns held at once, in floats (64 MiB in float32)."""


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Scores of every head of a model, each between 0 and 1."""

    induction: Float[Tensor, "layer head"]
    """Attention to the token after the first occurrence."""
    previous: Float[Tensor, "layer head"]
    """Attention to the token before."""
    duplicate: Float[Tensor, "layer head"]
    """Attention to the first occurrence."""
    loss_first: float
    """Loss on the first T tokens, in nats."""
    loss_second: float
    """Loss on the second T tokens but their first, in nats."""

    def best(self, score: str) -> tuple[int, int, float]:
        """Return (layer, head, value) of the largest `induction`, `previous` or `duplicate`."""
        values: Tensor = getattr(self, score)
        layer, head = divmod(int(values.argmax()), values.shape[1])
        return layer, head, float(values[layer, head])


def repeated_tokens(
    d_vocab: int, bos_id: int | None, *, sequences: int = 32, half: int = 100, seed: int = 0
) -> Int[Tensor, "sequence pos"]:
    """Return `half` random tokens, twice, after BOS where there is one; BOS is not among the random ones."""
    generator = torch.Generator().manual_seed(seed)
    if bos_id is None:
        first = torch.randint(0, d_vocab, (sequences, half), generator=generator)
        return torch.cat([first, first], dim=1)
    first = torch.randint(1, d_vocab, (sequences, half), generator=generator)
    first = torch.where(first <= bos_id, first - 1, first)
    return torch.cat([torch.full((sequences, 1), bos_id), first, first], dim=1)


def longest_half(handle: ModelHandle) -> int:
    """Return the largest T for which BOS and twice T tokens fit into the model's context."""
    return (handle.n_ctx - (handle.bos_id is not None)) // 2


def pattern_scores(patterns: Float[Tensor, "*batch query key"], half: int) -> dict[str, Float[Tensor, "*batch"]]:
    """Return {score: value} of attention patterns on `half` tokens that are repeated once, with or without BOS.

    Raises:
        ValueError: the patterns are of another length.
    """
    length = patterns.shape[-1]
    if length - 2 * half not in (0, 1):
        raise ValueError(f"Patterns of twice {half} tokens have {2 * half} or, with BOS, {2 * half + 1}, got {length}.")
    second, later = torch.arange(length - half, length), torch.arange(1, length)
    places = {
        "induction": (second, second - half + 1),
        "previous": (later, later - 1),
        "duplicate": (second, second - half),
    }
    return {name: patterns[..., query, key].mean(-1) for name, (query, key) in places.items()}


def layer_patterns(
    handle: ModelHandle, tokens: Int[Tensor, "sequence pos"]
) -> tuple[list[Float[Tensor, "sequence head query key"]], Float[Tensor, "sequence pos d_vocab"]]:
    """Return (the attention patterns of each layer, the logits), read from the bridge."""
    sites = [Site(layer, "pattern") for layer in range(handle.n_layers)]
    with capture(handle, sites, view="bridge") as taken:
        logits = handle.logits(tokens, view="bridge")
    return [taken[site].float() for site in sites], logits


def portions(handle: ModelHandle, tokens: Int[Tensor, "sequence pos"]) -> Iterator[Int[Tensor, "some pos"]]:
    """Yield the sequences, as many at a time as keep patterns and logits of bounded size."""
    pos = tokens.shape[1]
    floats = max(handle.n_layers * handle.n_heads * pos * pos, pos * handle.d_vocab)
    yield from tokens.split(max(1, PATTERN_FLOATS // floats))


class ScoreSums:
    """Sums over sequences from which `HeadScores` follow."""

    def __init__(self, half: int) -> None:
        """Begin without sequences of twice `half` tokens."""
        self.half, self.sequences = half, 0
        self._sums: dict[str, Tensor] = {}
        self._losses = [0.0, 0.0]

    def add(
        self,
        patterns: list[Float[Tensor, "sequence head query key"]],
        logits: Float[Tensor, "sequence pos d_vocab"],
        tokens: Int[Tensor, "sequence pos"],
    ) -> None:
        """Add sequences."""
        found = [pattern_scores(pattern, self.half) for pattern in patterns]
        for name in found[0]:
            new = torch.stack([scores[name].double().sum(0) for scores in found])
            self._sums[name] = self._sums[name] + new if name in self._sums else new
        losses = next_token_loss(logits, tokens.to(logits.device)).double()
        bos = losses.shape[1] - 2 * self.half + 1  # 1 where BOS predicts the first token, else 0
        first, second = losses[:, : bos + self.half - 1], losses[:, bos + self.half :]
        self._losses = [
            total + float(part.mean(1).sum()) for total, part in zip(self._losses, (first, second), strict=True)
        ]
        self.sequences += len(tokens)

    def scores(self) -> HeadScores:
        """Return the means."""
        means = {name: (total / self.sequences).float().cpu() for name, total in self._sums.items()}
        first, second = (total / self.sequences for total in self._losses)
        return HeadScores(means["induction"], means["previous"], means["duplicate"], first, second)


@torch.no_grad()
def head_scores(handle: ModelHandle, *, sequences: int = 32, half: int | None = None, seed: int = 0) -> HeadScores:
    """Return the scores of every head.

    Args:
        handle: the model; its bridge is built if need be.
        sequences: random sequences to average over.
        half: random tokens that are repeated; None takes 100, or as many as fit.
        seed: of the tokens.

    Raises:
        ValueError: `half` does not fit into the model's context.
    """
    half = check_half(handle, half)
    tokens = repeated_tokens(handle.d_vocab, handle.bos_id, sequences=sequences, half=half, seed=seed)
    sums = ScoreSums(half)
    for part in portions(handle, tokens):
        patterns, logits = layer_patterns(handle, part)
        sums.add(patterns, logits, part)
    return sums.scores()


def check_half(handle: ModelHandle, half: int | None) -> int:
    """Return `half`, or for None 100 or as many as fit.

    Raises:
        ValueError: it does not fit into the model's context, or is below 2.
    """
    longest = longest_half(handle)
    if half is None:
        return min(100, longest)
    if not 2 <= half <= longest:
        raise ValueError(
            f"half must lie in 2..{longest}: twice as many tokens fit into n_ctx={handle.n_ctx}, got {half}."
        )
    return half
