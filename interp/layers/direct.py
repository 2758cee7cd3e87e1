"""Direct logit attribution that adds up: what embedding, heads, MLPs and biases contribute to a logit.

The stream before the final norm is a sum of parts c, and with the norm's scale held at what it is, so is a logit:

    u · norm(h) + b = sum over parts of u' · c / scale(h)  +  u · bias  +  b        u' = centre(gain * u)

with u a row of the unembedding or a difference of two. The sum is exact; `DirectLogits.error` says to what precision.

Trap: a contribution is not what is lost when the part is removed, for then the scale changes too (Baroni et al. 2025
find errors of about half the effect in GPT-2). `removal=True` computes that loss beside it, u' · h / scale(h) - u' ·
(h - c) / scale(h - c); without a norm the two agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks import capture
from interp.layers.norms import NormParts, final_norm
from interp.layers.weights import layer_bias, layer_matrices
from interp.models.handle import ModelHandle
from interp.sites import Site

CONSTANT = ("attn_bias", "mlp_bias", "norm_bias", "unembed_bias")
"""Kinds of parts that are the same for every token but for the norm's scale."""


class Part(NamedTuple):
    """One summand of a logit."""

    kind: str
    """`embed`, `pos`, `head`, `mlp`, `neuron`, or one of `CONSTANT`."""
    layer: int
    """Block; -1 for the embeddings, the number of blocks for what comes after them."""
    index: int | None = None
    """Head or neuron."""


@dataclass(frozen=True, eq=False)
class DirectLogits:
    """Contributions to the logits (or differences of logits) of some rows, in float64."""

    parts: tuple[Part, ...]
    """The summands."""
    values: Float[Tensor, "row part"]
    """What each contributes."""
    logits: Float[Tensor, " row"]
    """What the model says; the sum over parts, but for rounding."""
    removed: Float[Tensor, "row part"] | None = None
    """What each row loses when the part is taken out of the last stream; NaN for `norm_bias` and `unembed_bias`."""

    @property
    def error(self) -> Float[Tensor, " row"]:
        """Sum of the parts less the logit."""
        return self.values.sum(1) - self.logits

    def columns(self, kind: str, layer: int | None = None) -> list[int]:
        """Return the places of the parts of a kind, of one layer or of all."""
        return [i for i, part in enumerate(self.parts) if part.kind == kind and layer in (None, part.layer)]

    def removal_error(self) -> float:
        """Return mean |value - removed| / mean |removed| over heads and MLPs; NaN where removal was not computed."""
        places = [i for i, part in enumerate(self.parts) if part.kind in ("head", "mlp", "neuron")]
        if self.removed is None or not places:
            return math.nan
        lost = self.removed[:, places]
        return float((self.values[:, places] - lost).abs().mean() / lost.abs().mean())


def direct_sites(handle: ModelHandle, *, neurons: bool = False) -> tuple[Site, ...]:
    """Return the sites that are read."""
    last = handle.n_layers - 1
    kinds = ("head_out", "mlp_act") if neurons else ("head_out", "mlp_out")
    each = [Site(layer, kind) for layer in range(handle.n_layers) for kind in kinds]
    return (Site(0, "resid_pre"), *each, Site(last, "resid_post"))


@torch.no_grad()
def direct_logits(
    handle: ModelHandle,
    tokens: Int[Tensor, "batch pos"],
    targets: Int[Tensor, " row"],
    *,
    against: Int[Tensor, " row"] | None = None,
    where: Bool[Tensor, "batch pos"] | None = None,
    neurons: bool = False,
    removal: bool = False,
) -> DirectLogits:
    """Return the contributions to the logit of each row's target.

    Args:
        handle: the model.
        tokens: what it reads.
        targets: token of each row whose logit is taken apart.
        against: token of each row whose logit is subtracted; None: nothing is. -1 stands for the mean over all tokens.
        where: the positions that are rows, in order; None: the last position of each sequence.
        neurons: the MLPs' neurons one by one.
        removal: also what is lost when a part is removed.

    Raises:
        ValueError: not one target (and one `against`) for each row, a norm of another kind, or packed weights.
    """
    if where is None:
        where = torch.zeros(tokens.shape, dtype=torch.bool)
        where[:, -1] = True
    with capture(handle, direct_sites(handle, neurons=neurons)) as acts:
        logits = handle.logits(tokens)
    flat = {site: x.flatten(2) for site, x in acts.items()}
    return from_activations(
        handle, flat, tokens, logits, targets, against=against, where=where, neurons=neurons, removal=removal
    )


@torch.no_grad()
def from_activations(
    handle: ModelHandle,
    acts: Mapping[Site, Float[Tensor, "batch pos _"]],
    tokens: Int[Tensor, "batch pos"],
    logits: Float[Tensor, "batch pos d_vocab"],
    targets: Int[Tensor, " row"],
    *,
    against: Int[Tensor, " row"] | None = None,
    where: Bool[Tensor, "batch pos"],
    neurons: bool = False,
    removal: bool = False,
) -> DirectLogits:
    """Return what `direct_logits` does, from activations (heads flattened) and logits that are there already."""
    rows = int(where.sum())
    for name, ids in (("targets", targets), ("against", against)):
        if ids is not None and len(ids) != rows:
            raise ValueError(f"{name} must hold one token for each of the {rows} rows, got {len(ids)}.")
    norm, where = final_norm(handle), where.to(logits.device)
    u, bias, found = _question(handle, logits[where].double(), targets, against)
    stream = norm.centre(acts[Site(handle.n_layers - 1, "resid_post")][where].double())
    probe = _Probe(norm, norm.pull_back(u), stream, removal)
    parts, values, lost = [], [], []
    for names, direct, gone in _stream_parts(handle, acts, tokens, where, probe, neurons):
        parts += names
        values.append(direct)
        lost.append(gone)
    end = handle.n_layers
    parts += [Part("norm_bias", end), Part("unembed_bias", end)]
    values.append(torch.stack([u @ norm.bias, bias], 1))
    lost.append(torch.full_like(values[-1], math.nan))
    removed = torch.cat([*lost], 1) if removal else None
    return DirectLogits(tuple(parts), torch.cat(values, 1), found, removed)


def _question(
    handle: ModelHandle, logits: Tensor, targets: Tensor, against: Tensor | None
) -> tuple[Float[Tensor, "row d"], Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Return (direction in the normalised stream, bias, what the model says) of each row."""
    weight = handle.unembed().detach()
    own = getattr(handle.module.get_output_embeddings(), "bias", None)
    bias = own.detach().double() if isinstance(own, Tensor) else torch.zeros(len(weight), dtype=torch.float64)
    bias = bias.to(weight.device)

    def pick(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ids = ids.to(weight.device, torch.long)
        return weight[ids].double(), bias[ids], logits.gather(1, ids[:, None])[:, 0]

    u, b, found = pick(targets)
    if against is None:
        return u, b, found
    u2, b2, found2 = pick(against.clamp_min(0))
    mean = (against < 0).to(weight.device)
    u2 = torch.where(mean[:, None], weight.mean(0, dtype=torch.float64), u2)
    b2, found2 = torch.where(mean, bias.mean(), b2), torch.where(mean, logits.mean(1), found2)
    return u - u2, b - b2, found - found2


class _Probe:
    """Dot products of parts with the reading direction and with the stream."""

    def __init__(self, norm: NormParts, u: Tensor, stream: Tensor, removal: bool) -> None:
        self.norm, self.u, self.stream, self.removal = norm, u, stream, removal
        self.scale = norm.scale(stream)[:, None]
        self.whole = (u * stream).sum(1, keepdim=True)

    def vectors(self, c: Float[Tensor, "row d"]) -> tuple[Tensor, Tensor]:
        """Return (contribution, loss on removal), [row 1], of one vector for each row."""
        c = self.norm.centre(c.double())
        sums = [(x * c).sum(1, keepdim=True) for x in (self.u, self.stream, c)]
        return self._finish(*sums)

    def columns(self, a: Tensor, matrix: Float[Tensor, "d n"], size: int) -> tuple[Tensor, Tensor]:
        """Return the same, [row n / size], of sums of `size` columns with the coefficients a [row n]."""
        a, matrix = a.double(), self.norm.centre(matrix.detach().double().T).T
        direct, along = ((a * (x @ matrix)).unflatten(1, (-1, size)).sum(2) for x in (self.u, self.stream))
        if not self.removal:
            return self._finish(direct, along, along)
        blocks = matrix.T.unflatten(0, (-1, size))
        gram = blocks @ blocks.transpose(1, 2)
        coded = a.unflatten(1, (-1, size))
        return self._finish(direct, along, (torch.einsum("rni,nij->rnj", coded, gram) * coded).sum(2))

    def _finish(self, direct: Tensor, along: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        if not self.removal:
            return direct / self.scale, direct
        if self.norm.eps is None:
            return direct / self.scale, direct
        d = self.stream.shape[1]
        rest = self.stream.square().sum(1, keepdim=True) - 2 * along + square
        without = (rest.clamp_min(0) / d + self.norm.eps).sqrt()
        return direct / self.scale, self.whole / self.scale - (self.whole - direct) / without


def _stream_parts(
    handle: ModelHandle,
    acts: Mapping[Site, Tensor],
    tokens: Tensor,
    where: Tensor,
    probe: _Probe,
    neurons: bool,
) -> Iterator[tuple[list[Part], Tensor, Tensor]]:
    """Yield (parts, contributions [row n], losses on removal [row n]) whose vectors add up to the stream."""
    start = acts[Site(0, "resid_pre")][where].double()
    embedded = handle.module.get_input_embeddings()(tokens.to(handle.device, torch.long)[where]).double()
    yield [Part("embed", -1)], *probe.vectors(embedded)
    if handle.family == "gpt2":
        yield [Part("pos", -1)], *probe.vectors(start - embedded)
    for layer in range(handle.n_layers):
        matrices = layer_matrices(handle, layer)
        heads = [Part("head", layer, i) for i in range(handle.n_heads)]
        yield heads, *probe.columns(acts[Site(layer, "head_out")][where], matrices["o"], handle.d_head)
        biases = {name: layer_bias(handle, layer, name) for name in ("o", "mlp_out")}
        if biases["o"] is not None:
            yield [Part("attn_bias", layer)], *probe.vectors(biases["o"].expand(len(start), -1))
        if neurons:
            act = acts[Site(layer, "mlp_act")][where]
            names = [Part("neuron", layer, i) for i in range(act.shape[1])]
            yield names, *probe.columns(act, matrices["mlp_out"], 1)
        else:
            out = acts[Site(layer, "mlp_out")][where].double()
            yield [Part("mlp", layer)], *probe.vectors(out if biases["mlp_out"] is None else out - biases["mlp_out"])
        if biases["mlp_out"] is not None:
            yield [Part("mlp_bias", layer)], *probe.vectors(biases["mlp_out"].expand(len(start), -1))
