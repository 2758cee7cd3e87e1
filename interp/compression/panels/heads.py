"""Heads: whether induction, previous-token and duplicate-token heads of a are still there in b.

Scores are those of `interp.layers.heads`, on repeated random tokens that both models read through the bridge after the
text; `pattern_kl` is KL(A_a || A_b) of a head's attention, averaged over queries and sequences, in nats. A head counts
as one of a kind from the score `threshold` on, and as survived when it does in both models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp.compression.panel import Pair, PanelResult
from interp.layers.heads import HeadScores, ScoreSums, check_half, layer_patterns, portions, repeated_tokens
from interp.sites import Site

if TYPE_CHECKING:
    from interp.data import Blocks
    from interp.models import ModelHandle

SCORES = ("induction", "previous", "duplicate")


class Heads:
    """Scores of every head in both models, and the divergence of their patterns."""

    name = "heads"

    def __init__(self, threshold: float = 0.4, sequences: int = 32, half: int | None = None, seed: int = 0) -> None:
        """Repeat `half` tokens (None: 100, or as many as fit) in `sequences` sequences drawn from `seed`."""
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], got {threshold}.")
        if sequences < 1:
            raise ValueError(f"sequences must be 1 or more, got {sequences}.")
        self.threshold, self.sequences, self.half, self.seed = threshold, sequences, half, seed

    def sites(self, a: ModelHandle) -> tuple[Site, ...]:  # noqa: ARG002
        """Return no site: patterns come from the bridge."""
        return ()

    def begin(self, a: ModelHandle, b: ModelHandle, blocks: Blocks) -> None:  # noqa: ARG002
        """Begin; both models must have the same heads."""
        shapes = [(model.n_layers, model.n_heads) for model in (a, b)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"heads compares head by head, but a has {shapes[0][0]} layers of {shapes[0][1]} heads and b "
                f"{shapes[1][0]} of {shapes[1][1]}. Leave it out."
            )
        self._half = min(check_half(model, self.half) for model in (a, b))
        self._models = a, b

    def update(self, pair: Pair) -> None:
        """Do nothing: the text is not read."""

    def finish(self) -> PanelResult:
        """Score the heads; return how many of each kind there are, and the table `heads`."""
        import pyarrow as pa

        scores, divergence = self._measure()
        a, b = scores
        layers, heads = (
            places.flatten().tolist() for places in torch.meshgrid(*map(torch.arange, a.induction.shape), indexing="ij")
        )
        columns = {"layer": pa.array(layers, pa.int32()), "head": pa.array(heads, pa.int32())}
        for name in SCORES:
            for side, found in zip("ab", scores, strict=True):
                columns[f"{name}_{side}"] = pa.array(getattr(found, name).double().flatten().numpy())
        columns["pattern_kl"] = pa.array(divergence.flatten().numpy())
        summary: dict[str, int | float | str | None] = {"threshold": self.threshold}
        for name in SCORES:
            of_a, of_b = (getattr(found, name) >= self.threshold for found in (a, b))
            summary |= {
                f"{name}_heads_a": int(of_a.sum()),
                f"{name}_heads_b": int(of_b.sum()),
                f"{name}_survived": int((of_a & of_b).sum()),
                f"{name}_best_a": a.best(name)[2],
                f"{name}_best_b": b.best(name)[2],
            }
        summary |= {
            "pattern_kl_mean": float(divergence.mean()),
            "pattern_kl_max": float(divergence.max()),
            "copy_gain_a": a.loss_first - a.loss_second,
            "copy_gain_b": b.loss_first - b.loss_second,
        }
        return PanelResult(summary, {"heads": pa.table(columns)})

    def _measure(self) -> tuple[tuple[HeadScores, HeadScores], Float[Tensor, "layer head"]]:
        a, b = self._models
        tokens = repeated_tokens(a.d_vocab, a.bos_id, sequences=self.sequences, half=self._half, seed=self.seed)
        sums = ScoreSums(self._half), ScoreSums(self._half)
        divergence = torch.zeros(a.n_layers, a.n_heads, dtype=torch.float64)
        for part in portions(a, tokens):
            patterns = []
            for model, total in zip((a, b), sums, strict=True):
                found, logits = layer_patterns(model, part)
                total.add(found, logits, part)
                patterns.append(found)
            for layer, (of_a, of_b) in enumerate(zip(*patterns, strict=True)):
                divergence[layer] += pattern_kl(of_a, of_b.to(of_a.device)).double().sum(0).cpu()
        return (sums[0].scores(), sums[1].scores()), divergence / self.sequences


def pattern_kl(
    a: Float[Tensor, "sequence head query key"], b: Float[Tensor, "sequence head query key"]
) -> Float[Tensor, "sequence head"]:
    """Return KL(a || b) of attention distributions, averaged over queries."""
    least = torch.finfo(a.dtype).tiny  # what is masked has probability 0 in both
    return (a * (a.clamp_min(least).log() - b.clamp_min(least).log())).sum(-1).mean(-1)
