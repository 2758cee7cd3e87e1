"""How much a block turns the residual stream: block influence, LIM, and the angle over several blocks.

    BI_l       = 1 - mean over tokens of cos(h_l, h_{l+1})        ShortGPT (Men et al. 2024)
    LIM_l      = - mean over tokens of cos(h_l, h_{l+1})          Dumitru et al. 2024; BI_l - 1, so the same order
    d(l, n)    = mean over tokens of arccos(cos(h_l, h_{l+n})) / pi      Gromov et al. 2024, on last tokens there

h_l is the stream before block l. All are between directions: none sees the length of the stream, nor whether anything
later reads what was turned. ZD is about weights alone (Dumitru et al. 2024): the share of a block's weights that lie
more than one standard deviation above their mean. They call blocks with SMALLER shares more important; the threshold 1
could not be checked in their code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.layers.stream import cosine
from interp.layers.weights import block_matrices
from interp.models.handle import ModelHandle

THRESHOLD = 1.0
"""Standard deviations above the mean from which a weight counts for ZD."""


class Influence:
    """Cosines of the streams at all pairs of layers, summed by sequence; position 0 apart."""

    def __init__(self) -> None:
        """Begin without tokens."""
        self._sums: list[Tensor] = []
        self._first: list[Tensor] = []
        self._last: list[Tensor] = []

    def update(self, stream: Sequence[Float[Tensor, "batch pos d"]], keep: Bool[Tensor, "batch pos"]) -> None:
        """Add a batch: the stream before each block and after the last, and which tokens count."""
        pairs = [(i, j) for i in range(len(stream)) for j in range(i + 1, len(stream))]
        cosines = torch.stack([cosine(stream[i], stream[j]) for i, j in pairs], -1)  # [batch pos pair]
        values = torch.stack([cosines, cosines.clamp(-1, 1).arccos() / math.pi], -1)
        usable = torch.isfinite(values).flatten(2).all(-1)
        later = usable & keep.cpu()
        later[:, 0] = False
        self.layers = len(stream) - 1
        values = torch.nan_to_num(values)
        count = later.sum(1)[:, None, None].expand(-1, len(pairs), 1)
        self._sums.append(torch.cat([(values * later[..., None, None]).sum(1), count.double()], -1))
        self._first.append(values[:, 0][usable[:, 0]])
        ends = torch.where(later.any(1), later.shape[1] - 1 - later.flip(1).int().argmax(1), -1)
        some = ends >= 0
        self._last.append(values[some, ends[some]])

    def sequences(self) -> tuple[Float[Tensor, "seq layer"], Float[Tensor, " seq"]]:
        """Return the sums over the tokens of each sequence of 1 - cos(h_l, h_{l+1}), and its tokens."""
        sums = torch.cat(self._sums)[:, self._adjacent()]
        return sums[..., 2] - sums[..., 0], sums[:, 0, 2]

    def block_influence(self) -> Float[Tensor, " layer"]:
        """Return BI; NaN where no token counts."""
        sums, tokens = self.sequences()
        return sums.sum(0) / tokens.sum()

    def lim(self) -> Float[Tensor, " layer"]:
        """Return LIM, minus the mean cosine: BI less 1, and the same order."""
        return self.block_influence() - 1

    def first(self) -> Float[Tensor, " layer"]:
        """Return BI at position 0."""
        return 1 - torch.cat(self._first)[:, self._adjacent(), 0].mean(0)

    def angles(self, *, last: bool = False) -> Float[Tensor, "start length"]:
        """Return d(l, n) for all l and n = 1 .. L (column n - 1), NaN where the blocks end; `last`: of last tokens."""
        sums = torch.cat(self._sums).sum(0)
        values = torch.cat(self._last)[..., 1].mean(0) if last else sums[:, 1] / sums[:, 2]
        found = torch.full((self.layers, self.layers), math.nan, dtype=torch.float64)
        for (i, j), value in zip(self._pairs(), values, strict=True):
            found[i, j - i - 1] = value
        return found

    def _pairs(self) -> list[tuple[int, int]]:
        return [(i, j) for i in range(self.layers + 1) for j in range(i + 1, self.layers + 1)]

    def _adjacent(self) -> list[int]:
        return [number for number, (i, j) in enumerate(self._pairs()) if j == i + 1]


def weight_outliers(handle: ModelHandle, threshold: float = THRESHOLD) -> Float[Tensor, " layer"]:
    """Return ZD: for each block, the share of its matrices' weights with (w - mean) / std above `threshold`.

    Mean and standard deviation are those of all the block's matrices together.

    Raises:
        ValueError: weights that cannot be read.
    """
    weights: list[list[Tensor]] = [[] for _ in range(handle.n_layers)]
    for one in block_matrices(handle):
        weights[one.layer].append(one.matrix.detach().double().flatten().cpu())
    found = []
    for parts in weights:
        whole = torch.cat(parts)
        found.append(((whole - whole.mean()) > threshold * whole.std(correction=0)).double().mean())
    return torch.stack(found)
