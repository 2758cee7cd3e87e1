"""What attention and MLP of each block do to the residual stream: how much they write, and in which direction.

With h the stream before a block, a and m what its attention and its MLP add, h' = h + a + m after it, per token

    attn_share   ||a|| / ||h||           attn_cosine   cos(a, h)
    mlp_share    ||m|| / ||h + a||       mlp_cosine    cos(m, h + a)
    block_share  ||a + m|| / ||h||       block_cosine  cos(a + m, h)       stream_cosine   cos(h', h)

(Csordas, Manning and Potts 2025). A negative cosine erases, one near 0 writes something new, a positive one
strengthens. Where attention and MLP read the stream side by side (GPT-NeoX) the MLP never sees h + a: both its
denominator and its partner are h. All of it supposes that a block adds to the stream; `unexplained`, the size of
h' - (h + a + m) against h', says whether it does, and a model that normalises after adding is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.activations.outliers import norms
from interp.layers.tokens import TokenValues
from interp.models.handle import ModelHandle
from interp.sites import Site

KINDS = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""Kinds of sites that are read at each block."""

MEASURES = (
    "norm", "attn_share", "mlp_share", "block_share", "attn_cosine", "mlp_cosine", "block_cosine", "stream_cosine",
    "unexplained",
)  # fmt: skip
"""Numbers per token and block; `norm` is that of h'."""

TOLERANCE = 0.05
"""Largest mean of `unexplained`: rounding to 8 bits stays below it, a norm after the sum does not."""


def is_parallel(handle: ModelHandle) -> bool:
    """Return whether attention and MLP of a block read the stream side by side."""
    return not handle.sites("resid_mid.*")


class Contributions:
    """Sums over tokens from which a row for each block follows."""

    def __init__(self, layers: int, *, parallel: bool, tolerance: float = TOLERANCE) -> None:
        """Begin without tokens.

        Args:
            layers: blocks of the model.
            parallel: whether attention and MLP read the same stream (`is_parallel`).
            tolerance: largest mean share of h' that h + a + m may leave unexplained.
        """
        self.layers, self.parallel, self.tolerance = layers, parallel, tolerance
        self._values = [{name: TokenValues() for name in MEASURES} for _ in range(layers)]

    @property
    def sites(self) -> list[Site]:
        """The sites that `update` reads."""
        return [Site(layer, kind) for layer in range(self.layers) for kind in KINDS]

    def update(self, acts: Mapping[Site, Tensor], keep: Bool[Tensor, "batch pos"] | None = None) -> None:
        """Add a batch: activations [batch pos d] at all `sites`, and which tokens count (None: all)."""
        for layer, values in enumerate(self._values):
            h, a, m, after = (acts[Site(layer, kind)] for kind in KINDS)
            for name, found in contributions(h, a, m, after, parallel=self.parallel).items():
                values[name].update(found, keep)

    def finish(self) -> list[dict[str, float]]:
        """Return a row for each block: `layer`, and each measure's `_mean`, `_p95`, `_max` and `_first`.

        Raises:
            ValueError: blocks do more than add to the stream, so that these measures do not describe them.
        """
        rows = []
        for layer, values in enumerate(self._values):
            row: dict[str, float] = {"layer": layer, "tokens": len(values["norm"].values)}
            for name in MEASURES:
                row |= values[name].finish(name)
            row["left_out"] = values["norm"].left_out
            if row["unexplained_mean"] > self.tolerance:
                raise ValueError(
                    f"Contributions need blocks that add to the stream, h' = h + attn_out + mlp_out; in block {layer} "
                    f"{row['unexplained_mean']:.0%} of h' is something else, more than tolerance={self.tolerance:g} "
                    "(a norm after the sum, or a recipe that changes the stream). Leave this family out."
                )
            rows.append(row)
        return rows


def contributions(
    h: Float[Tensor, "batch pos d"],
    a: Float[Tensor, "batch pos d"],
    m: Float[Tensor, "batch pos d"],
    after: Float[Tensor, "batch pos d"],
    *,
    parallel: bool,
) -> dict[str, Float[Tensor, "batch pos"]]:
    """Return {measure: value of each token} of one block in float64; NaN where a denominator is 0."""
    h, a, m, after = (x.double() for x in (h, a, m, after))
    before_mlp = h if parallel else h + a
    sizes = {"h": norms(h), "mid": norms(before_mlp), "after": norms(after)}
    return {
        "norm": sizes["after"],
        "attn_share": _ratio(norms(a), sizes["h"]),
        "mlp_share": _ratio(norms(m), sizes["mid"]),
        "block_share": _ratio(norms(a + m), sizes["h"]),
        "attn_cosine": cosine(a, h),
        "mlp_cosine": cosine(m, before_mlp),
        "block_cosine": cosine(a + m, h),
        "stream_cosine": cosine(after, h),
        "unexplained": _ratio(norms(after - h - a - m), sizes["after"]),
    }


def cosine(x: Float[Tensor, "*batch d"], y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """Return the cosines in float64 on the CPU; NaN where a vector is 0."""
    x, y = x.double(), y.double()
    return _ratio((x * y).sum(-1).cpu(), norms(x) * norms(y))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, torch.nan)
