"""Neurons that set the confidence rather than the order of predictions (Stolfo et al. 2024).

Entropy neurons write much, ||w_out||, but hardly to the logits: they change the scale of the final norm. By weights,

    logit_var  = Var over tokens of cos(w_out, row of W_U)        small
    null_share = share of ||w_out||^2 in the directions that W_U sees least (d / 64 of them)    large

Token-frequency neurons move the logits along the unigram direction f (centred log frequency of tokens, at length 1):
`frequency` is the cosine of what they write with f. By effect, for neurons of the last block, whose only way to the
logits is the final norm, all at their mean in place of their own activation,

    scale_share     = 1 - mean |change of entropy, scale held| / mean |change of entropy|
    frequency_share = 1 - mean |change of loss, logits along f held| / mean |change of loss|

Traps. Directions that the final norm drops (the mean) count for nothing, and are left out of ||w_out||. A share of a
change near 0 means nothing: read `entropy_change` and `loss_change` beside it. Without a norm scale_share is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.layers.neurons import neuron_directions
from interp.layers.norms import final_norm
from interp.models.handle import ModelHandle

PER_NULL_DIRECTION = 64
"""Dimensions of the stream for each direction that counts as unseen: 12 of GPT-2's 768."""

_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class WriteGeometry:
    """What the output weights of a block's neurons say."""

    norm: Float[Tensor, " neuron"]
    """||w_out||, without what the final norm drops."""
    logit_var: Float[Tensor, " neuron"]
    """Variance over tokens of the cosine with the unembedding."""
    null_share: Float[Tensor, " neuron"]
    """Share of the squared norm where the unembedding is smallest."""
    frequency: Float[Tensor, " neuron"]
    """Cosine of the written logits with the unigram direction; NaN without frequencies."""


class Confidence:
    """The unembedding of a model as its last neurons see it."""

    def __init__(self, handle: ModelHandle, counts: Int[Tensor, " d_vocab"] | None = None) -> None:
        """Take the unembedding apart.

        Args:
            handle: the model.
            counts: how often each token occurs in text (1 is added to each); None: nothing is said of frequency.

        Raises:
            ValueError: counts of another vocabulary, or a norm that cannot be taken apart.
        """
        if counts is not None and len(counts) != handle.d_vocab:
            raise ValueError(f"counts must hold one number for each of {handle.d_vocab} tokens, got {len(counts)}.")
        self.handle, self.norm = handle, final_norm(handle)
        self.rows = self.norm.pull_back(handle.unembed().detach())
        own = getattr(handle.module.get_output_embeddings(), "bias", None)
        self.constant = handle.unembed().detach().double() @ self.norm.bias + (0 if own is None else own.double())
        self.direction = None if counts is None else unigram_direction(counts).to(self.rows.device)
        self._gram = self.rows.T @ self.rows
        _, vectors = torch.linalg.eigh(self._gram)
        dropped = int(self.norm.centred)  # the mean is a direction that the norm, not the unembedding, is blind to
        unseen = max(1, handle.d_model // PER_NULL_DIRECTION)
        self._unseen = vectors[:, dropped : dropped + unseen]
        units = self.rows / self.rows.norm(dim=1, keepdim=True).clamp_min(_TINY)
        mean = units.mean(0)
        # Var_t(w . token_t) = w^T Cov(tokens) w: no logits of every neuron are needed
        self._spread = units.T @ units / len(units) - mean[:, None] * mean

    def geometry(self, layer: int) -> WriteGeometry:
        """Return what the output weights of a block say."""
        w = self.norm.centre(neuron_directions(self.handle, layer))
        norm = w.norm(dim=1)
        unit = w / norm[:, None].clamp_min(_TINY)
        logit_var = ((unit @ self._spread) * unit).sum(1).clamp_min(0)
        null_share = (unit @ self._unseen).square().sum(1)
        return WriteGeometry(norm, logit_var, null_share, self._frequency(w))

    def _frequency(self, w: Tensor) -> Tensor:
        if self.direction is None:
            return torch.full((len(w),), torch.nan, dtype=torch.float64)
        mean = self.rows.mean(0)
        centred = self._gram - len(self.rows) * mean[:, None] * mean
        size = ((w @ centred) * w).sum(1).clamp_min(_TINY).sqrt()
        return w @ (self.rows.T @ self.direction) / size  # f is centred, so the rows need not be

    @torch.no_grad()
    def effects(
        self,
        neurons: list[int],
        acts: Float[Tensor, "row d_mlp"],
        stream: Float[Tensor, "row d_model"],
        targets: Int[Tensor, " row"],
    ) -> list[dict[str, float]]:
        """Return what putting each neuron of the last block at its mean does, over rows of a text.

        `loss_change` and `entropy_change` are means in nats, `loss_moved` and `entropy_moved` means of their size;
        `scale_share` and `frequency_share` are as in the module's docstring.

        Args:
            neurons: which, of the last block.
            acts: activations of that block's MLP.
            stream: the stream after that block.
            targets: the next tokens.
        """
        w = neuron_directions(self.handle, self.handle.n_layers - 1)
        x = self.norm.centre(stream.double())
        scale = self.norm.scale(x)[:, None]
        logits = (x @ self.rows.T) / scale + self.constant
        before = _loss_and_entropy(logits, targets)
        found = []
        for neuron in neurons:
            change = (acts[:, neuron].double().mean() - acts[:, neuron].double())[:, None]
            column = self.norm.centre(w[neuron])
            held = logits + change * (self.rows @ column) / scale
            after = self.norm.scale(x + change * column)[:, None]
            total = self.constant + (held - self.constant) * scale / after
            found.append({"neuron": neuron} | self._shares(before, logits, total, held, targets))
        return found

    def _shares(
        self, before: tuple[Tensor, Tensor], logits: Tensor, total: Tensor, held: Tensor, targets: Tensor
    ) -> dict[str, float]:
        loss, entropy = (b - a for a, b in zip(before, _loss_and_entropy(total, targets), strict=True))
        scale_held = _loss_and_entropy(held, targets)[1] - before[1]
        row = {
            "loss_change": float(loss.mean()),
            "entropy_change": float(entropy.mean()),
            "loss_moved": float(loss.abs().mean()),
            "entropy_moved": float(entropy.abs().mean()),
            "scale_share": 1 - float(scale_held.abs().mean() / entropy.abs().mean()),
        }
        if self.direction is not None:
            along = ((logits - total) @ self.direction)[:, None] * self.direction
            left = _loss_and_entropy(total + along, targets)[0] - before[0]
            row["frequency_share"] = 1 - float(left.abs().mean() / loss.abs().mean())
        return row


def unigram_direction(counts: Int[Tensor, " d_vocab"]) -> Float[Tensor, " d_vocab"]:
    """Return the centred log frequency of tokens at length 1; 1 is added to each count."""
    logs = (counts.double() + 1).log()
    logs = logs - logs.mean()
    return logs / logs.norm().clamp_min(_TINY)


def _loss_and_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_p = logits.log_softmax(-1)
    return -log_p.gather(1, targets.to(log_p.device)[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
