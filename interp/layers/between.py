"""Linear maps between the layers of two models that may differ in depth (Csordas, Manning and Potts 2025).

For each layer i of model a and j of model b, the best affine map from a's stream to b's on the same tokens, in closed
form from streamed moments (`interp.layers.ridge_map`), fitted on every other sequence and judged on the rest:

    fvu(i, j)        sum |y - y_hat|^2 / sum |y - mean|^2
    relative(i, j)   mean over tokens of |y - y_hat| / |y|, the published figure

Layer 0 is the embeddings, layer l the stream after l blocks. With `diff_only` what each block adds is mapped instead
(block l, from 0), since the streams of all layers share most of what they hold. If a deeper model stretches the same
computation, the source that maps best to j lies at the same relative depth, i / L_a = j / L_b: `depth_gap` says how far
off it lies, beside what sources drawn at random would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks import capture
from interp.layers.erasure import stream_sites
from interp.layers.moments import Moments
from interp.layers.ridge_map import PENALTY, LinearMap, fit_map, relative_errors
from interp.layers.sampling import kept_positions
from interp.layers.suffix import wide
from interp.models.handle import ModelHandle
from interp.models.vocabulary import check_same_vocabulary

if TYPE_CHECKING:
    from interp.data import Blocks

Streams = Sequence[Float[Tensor, "batch pos _"]]
"""Activations of one model, one tensor for each layer; widths may differ."""


@dataclass(frozen=True, eq=False)
class MapMatrix:
    """How well each layer of b follows from each of a."""

    fvu: Float[Tensor, "layer_a layer_b"]
    """Share of the variance that the map leaves, on held-out sequences."""
    relative: Float[Tensor, "layer_a layer_b"]
    """Mean relative error per token there, the published figure."""
    fitted: int
    """Tokens that the maps were fitted on."""
    judged: int
    """Tokens of the errors."""
    diff_only: bool
    """Whether what blocks add was mapped, not the stream."""

    @property
    def best(self) -> Int[Tensor, " layer_b"]:
        """The layer of a from which each layer of b follows best."""
        return self.fvu.argmin(0)

    def depths(self, side: int) -> Float[Tensor, " layer"]:
        """Return the relative depth, 0 to 1, of the layers of a (side 0) or of b (side 1)."""
        count = self.fvu.shape[side]
        if self.diff_only:
            return (torch.arange(count) + 0.5) / count
        return torch.arange(count) / max(count - 1, 1)

    def depth_gap(self) -> tuple[float, float]:
        """Return mean over b's layers of |depth of the best source - own depth|, and that of sources drawn evenly."""
        a, b = self.depths(0), self.depths(1)
        gaps = (a[:, None] - b[None]).abs()
        return float(gaps.gather(0, self.best[None]).mean()), float(gaps.mean())


class LayerMaps:
    """Moments from which all maps follow; a second look at the same text gives the published errors."""

    def __init__(self, *, penalty: float = PENALTY) -> None:
        """Begin without tokens; `penalty` is that of the ridge, in mean variances of a dimension."""
        self.penalty, self._sequences = penalty, 0
        self._moments: dict[tuple[tuple[int, int], tuple[int, int], int], Moments] = {}
        self._maps: dict[tuple[int, int], LinearMap] = {}

    def update(self, a: Streams, b: Streams, keep: Bool[Tensor, "batch pos"]) -> None:
        """Add a batch of the same tokens of both models; `keep`: which of them count, position 0 never does."""
        usable, half = self._usable(a, b, keep)
        rows = {(0, i): x[usable].double().cpu() for i, x in enumerate(a)}
        rows |= {(1, j): y[usable].double().cpu() for j, y in enumerate(b)}
        own = [(key, key) for key in rows]
        for left, right in [*own, *(((0, i), (1, j)) for i in range(len(a)) for j in range(len(b)))]:
            for part in (0, 1):
                found = self._moments.setdefault((left, right, part), Moments())
                found.update(rows[left][half == part], rows[right][half == part])
        self.shape = len(a), len(b)

    def _usable(self, a: Streams, b: Streams, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Return (tokens that count, 0 or 1 for each of them: fitted on or judged)."""
        usable = torch.stack([torch.isfinite(x).all(-1) for x in (*a, *b)]).all(0) & keep.to(a[0].device)
        usable[:, 0] = False
        half = ((torch.arange(len(usable)) + self._sequences) % 2)[:, None].expand(usable.shape)
        self._sequences += len(usable)
        return usable, half[usable.cpu()]

    def rows(self, part: int) -> int:
        """Return the tokens that the maps are fitted on (part 0) or judged on (1)."""
        found = self._moments.get(((0, 0), (0, 0), part))
        return 0 if found is None else found.rows

    def fit(self) -> Float[Tensor, "layer_a layer_b"]:
        """Return the FVU of every map on the tokens that it was not fitted on.

        Raises:
            ValueError: fewer than two sequences with tokens that count, or a layer that does not vary.
        """
        if self.rows(0) < 2 or self.rows(1) < 2:
            raise ValueError(
                f"Maps are fitted on every other sequence and judged on the rest: give two or more, got "
                f"{self._sequences} with {self.rows(0)} and {self.rows(1)} tokens that count."
            )
        found = torch.zeros(self.shape, dtype=torch.float64)
        for i in range(self.shape[0]):
            for j in range(self.shape[1]):
                keys = ((0, i), (1, j)), ((0, i), (0, i)), ((1, j), (1, j))
                fit, test = ([self._moments[(*key, part)] for key in keys] for part in (0, 1))
                self._maps[i, j] = fit_map(fit[0], fit[1], self.penalty)
                found[i, j] = self._maps[i, j].error(*test)
        self._sequences = 0
        self._sums, self._count = torch.zeros(self.shape, dtype=torch.float64), torch.zeros(self.shape)
        return found

    def judge(self, a: Streams, b: Streams, keep: Bool[Tensor, "batch pos"]) -> None:
        """Add the relative errors of a batch, in the order of `update`; call `fit` first."""
        usable, half = self._usable(a, b, keep)
        for (i, j), one in self._maps.items():
            x, y = (z[usable][half.to(z.device) == 1].double().cpu() for z in (a[i], b[j]))
            errors = relative_errors(one(x), y)
            self._sums[i, j] += errors.nansum()
            self._count[i, j] += torch.isfinite(errors).sum()

    @property
    def relative(self) -> Float[Tensor, "layer_a layer_b"]:
        """The mean relative errors of all batches that were judged."""
        return self._sums / self._count


def map_layers(
    a: ModelHandle,
    b: ModelHandle,
    blocks: Blocks,
    *,
    diff_only: bool = False,
    batch: int = 4,
    penalty: float = PENALTY,
) -> MapMatrix:
    """Return how well each layer of `b` follows from each of `a` by a linear map, from two passes over `blocks`.

    Raises:
        ValueError: other vocabularies, a text too short for two halves, or too long for a model.
    """
    check_same_vocabulary(a, b)
    kept, maps = kept_positions(blocks), LayerMaps(penalty=penalty)

    def streams(model: ModelHandle, tokens: Tensor) -> Streams:
        with capture(model, stream_sites(model), stop=True) as acts:
            model.forward(tokens)
        found = [acts[site] for site in stream_sites(model)]
        if not diff_only:
            return found
        return [wide(after) - wide(before) for before, after in pairwise(found)]

    fvu = None
    for step in (maps.update, maps.judge):
        for tokens, keep in zip(blocks.tokens.split(batch), kept.split(batch), strict=True):
            step(streams(a, tokens), streams(b, tokens), keep)
        fvu = maps.fit() if fvu is None else fvu
    if fvu is None:
        raise ValueError("Maps between models need text, got none.")
    return MapMatrix(fvu, maps.relative, maps.rows(0), maps.rows(1), diff_only)
