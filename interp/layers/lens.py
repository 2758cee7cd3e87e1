"""The logit lens: what a model would predict if it stopped at a layer (nostalgebraist 2020).

    lens_l(h) = W_U norm_f(h_l) + b_U

with the model's own final norm and unembedding; after the last block this is the model's output. A `TrainedLens` first
moves h_l to where the last stream would be, by a matrix and a bias for each layer (`interp.layers.tuned_lens`,
`interp.layers.jacobian_lens`). `Prediction` holds the next-token distributions of some rows, and what is measured on
them, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax

from interp.models.handle import ModelHandle
from interp.sites import Site

ROWS_FLOATS = 1 << 20
"""Logits that are worked on at once on a CPU, in floats (4 MiB): what stays in a cache is several times as fast."""


def lens_logits(handle: ModelHandle, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
    """Return the logits that `resid`, taken from the residual stream after any block, would give."""
    return handle.module.get_output_embeddings()(handle.final_norm(resid))


def stream_site(layer: int) -> Site:
    """Return where the stream after block `layer` is read; layer -1 are the embeddings."""
    return Site(0, "resid_pre") if layer == -1 else Site(layer, "resid_post")


@dataclass(frozen=True, eq=False)
class TrainedLens:
    """A lens with a map of its own for each stream but the last: h + delta h + bias, then norm and unembedding."""

    name: str
    """`tuned` or `jacobian`."""
    delta: Float[Tensor, "stream d_model d_model"]
    """What is added to the identity, for the embeddings, the stream after block 0, ..., after the last but one."""
    bias: Float[Tensor, "stream d_model"]
    """What is added to the stream."""
    digest: str | None = None
    """Digest of the weights of the model that it belongs to."""

    def translate(self, layer: int, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return what the lens takes the stream after block `layer` for (-1: the embeddings; the last: itself).

        Raises:
            ValueError: the model of this lens has no such layer.
        """
        last = len(self.delta) - 1
        if not -1 <= layer <= last:
            raise ValueError(f"layer must lie in -1..{last}, got {layer}.")
        if layer == last:
            return resid
        delta, bias = (part[layer + 1].to(resid.device, torch.float32) for part in (self.delta, self.bias))
        wide = resid.float()
        return (wide + (wide @ delta.T + bias)).to(resid.dtype)

    def logits(
        self, handle: ModelHandle, layer: int, resid: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_vocab"]:
        """Return the logits that the lens reads off the stream after block `layer`."""
        return lens_logits(handle, self.translate(layer, resid))


def row_chunk(d_vocab: int, device: torch.device) -> int:
    """Return how many rows of logits are best worked on at once."""
    return max(16, ROWS_FLOATS // d_vocab) if device.type == "cpu" else max(256, 64 * ROWS_FLOATS // d_vocab)


class Prediction:
    """Next-token distributions of some rows."""

    def __init__(self, logits: Float[Tensor, "rows d_vocab"]) -> None:
        """Normalise `logits`."""
        self.top: Int[Tensor, " rows"] = logits.argmax(-1)
        """The likeliest token."""
        self.log_p: Float[Tensor, "rows d_vocab"] = log_softmax(logits.float(), -1)
        self._p: Tensor | None = None

    @property
    def p(self) -> Float[Tensor, "rows d_vocab"]:
        """Probabilities."""
        if self._p is None:
            self._p = self.log_p.exp()
        return self._p

    def loss(self, targets: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Return the cross-entropy of each row's next token."""
        return -self.log_p.gather(1, targets[:, None])[:, 0]

    def entropy(self) -> Float[Tensor, " rows"]:
        """Return the entropy of each row."""
        return -_expectation(self.p, self.log_p)

    def rank(self, tokens: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """Return the rank of a token in each row: 1 for the likeliest, ties counted as ahead of none."""
        return 1 + (self.log_p > self.log_p.gather(1, tokens[:, None])).sum(-1)

    def overlap(self, other: Prediction, k: int) -> Float[Tensor, " rows"]:
        """Return the share of the k likeliest tokens of each row that both have."""
        mine, theirs = (one.log_p.topk(k, dim=-1).indices for one in (self, other))
        return (mine[:, :, None] == theirs[:, None, :]).any(-1).float().mean(-1)

    def kl_to(self, other: Prediction) -> Float[Tensor, " rows"]:
        """Return KL(self || other) of each row: exactly 0 where both are equal bit by bit."""
        return _expectation(self.p, self.log_p - other.log_p)


def _expectation(p: Tensor, value: Tensor) -> Tensor:
    """Return the sum of p times value, where 0 times infinity is 0 (a token that the distribution excludes)."""
    total = torch.linalg.vecdot(p, value)
    if torch.isfinite(total).all():
        return total
    return torch.where(p == 0, 0.0, p * value).sum(-1)
