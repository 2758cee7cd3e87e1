"""The gradient of each weight matrix by layer: its norms, its rank, and how alike the gradients of two matrices are.

For one example with T tokens, a module's inputs X [T in] and the gradients D [T out] of the loss by its outputs,

    G = D^T X,   nuclear = sum s,   frobenius = sqrt(sum s^2),   spectral = max s,   effective rank = exp(H(s / sum s))

with s the singular values of G, which follow from X and D without G (`interp.layers.factored`). After "What happened
in LLM layers when trained for fast vs. slow thinking" (Li, Li and Zhou 2024), which reports nuclear norms of q, k, v, o
per layer, the mean difference of neighbouring layers (MAD), and the relative difference of two data sets.

Traps. The mean loss divides by the number of scored tokens, so that long answers have small gradients whatever they
say: see the summed loss and `match_lengths` beside it. The rank of G is at most the number of tokens whose D is not 0:
the effective rank grows with length too. k and v of grouped heads are smaller matrices than q and o.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from interp.layers.factored import Factored
from interp.layers.gradient_data import Example
from interp.layers.weights import NAMES, split_qkv
from interp.models.handle import ModelHandle
from interp.models.taps import BLOCKS
from interp.names import unknown

SIZES = ("nuclear", "frobenius", "spectral")
"""Norms of a gradient: they scale with the loss."""
SHAPES = ("ratio", "spectral_share", "effective_rank")
"""What does not depend on its scale: nuclear / Frobenius, spectral / nuclear, effective rank."""
LOSSES = ("mean", "sum")
"""Losses of an example: nats for each scored token, or all of them added up."""
Gradients = dict[tuple[int, str], Factored]
"""(layer, matrix) -> its gradient."""


def example_gradients(handle: ModelHandle, example: Example) -> tuple[float, Gradients]:
    """Return (loss, gradient of every matrix of every block), of the mean loss over the scored tokens, in nats."""
    tokens = torch.tensor([example.tokens], device=handle.device)
    taken: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
    with handle.lock, _tapped(handle, taken):
        logits = handle.forward(tokens, grad=True)
        if logits is None:
            raise RuntimeError("capture(stop=True) ended the pass before the loss; close it first.")
        wanted = slice(example.start - 1, -1)
        loss = cross_entropy(logits[0, wanted].float(), tokens[0, example.start :])
        outputs = [output for _, output in taken.values()]
        slopes = torch.autograd.grad(loss, outputs, allow_unused=True)
    found: Gradients = {}
    for ((layer, names), (x, output)), slope in zip(taken.items(), slopes, strict=True):
        d = torch.zeros_like(output) if slope is None else slope
        for name, part in split_qkv(handle, names, d[0].T):
            found[layer, name] = Factored(part.T, x[0])
    return float(loss.detach()), found


@contextmanager
def _tapped(handle: ModelHandle, taken: dict[tuple[int, str], tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Keep input and output of every matrix of every block, with a graph from the first block on."""
    with ExitStack() as undo:
        blocks = handle.module.get_submodule(BLOCKS[handle.family])
        undo.callback(blocks[0].register_forward_pre_hook(_begin_graph, with_kwargs=True).remove)
        for layer in range(handle.n_layers):
            for path, names in NAMES[handle.family].items():

                def keep(_module: Any, args: Any, output: Tensor, key: tuple[int, str] = (layer, names)) -> None:
                    taken[key] = args[0].detach(), output

                undo.callback(blocks[layer].get_submodule(path).register_forward_hook(keep).remove)
        yield


def _begin_graph(_module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if args:
        return (args[0].detach().requires_grad_(), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": kwargs["hidden_states"].detach().requires_grad_()}


@dataclass(frozen=True, eq=False)
class LayerGradients:
    """What the gradients of some examples are like; means over examples leave out what is not defined."""

    names: tuple[str, ...]
    """The matrices of a block."""
    values: dict[str, Float[Tensor, "example layer name"]]
    """`SIZES` and `SHAPES`, of the mean loss."""
    losses: Float[Tensor, " example"]
    """Mean loss of each example in nats."""
    scored: Int[Tensor, " example"]
    """Its scored tokens."""
    layer_cosine: Float[Tensor, "name layer layer"]
    """Cosine of the gradients of one matrix in two layers."""
    name_cosine: Float[Tensor, "layer name name"]
    """Cosine of the gradients of two matrices of one layer; NaN where their shapes differ."""
    dropped: int
    """Examples that were left out: their loss or a gradient was not finite."""

    def each(self, measure: str, loss: str = "mean") -> Float[Tensor, "example layer name"]:
        """Return the values of each example, under the mean or the summed loss.

        Raises:
            ValueError: an unknown measure or loss.
        """
        if measure not in self.values:
            raise ValueError(unknown("measure of gradients", measure, self.values))
        if loss not in LOSSES:
            raise ValueError(unknown("loss", loss, LOSSES))
        values = self.values[measure]
        return values * self.scored[:, None, None] if loss == "sum" and measure in SIZES else values

    def curve(self, measure: str, loss: str = "mean") -> Float[Tensor, "layer name"]:
        """Return the mean over examples."""
        return self.each(measure, loss).nanmean(0)


def layer_gradients(handle: ModelHandle, examples: Sequence[Example]) -> LayerGradients:
    """Return what the gradients of `examples` are like, one example at a time.

    Raises:
        ValueError: no example, or none whose gradients are finite.
    """
    if not examples:
        raise ValueError("Gradients need at least one example, got none.")
    sums = GradientSums(handle)
    for example in examples:
        sums.update(example)
    return sums.finish()


class GradientSums:
    """Gradients of one example after the other."""

    def __init__(self, handle: ModelHandle) -> None:
        """Begin without examples."""
        self.handle = handle
        self.names = tuple(name for names in NAMES[handle.family].values() for name in names.split())
        self.dropped = 0
        self._rows: list[Tensor] = []
        self._cosines: list[tuple[Tensor, Tensor]] = []
        self._losses: list[tuple[float, int]] = []

    def update(self, example: Example) -> None:
        """Add an example, or count it as dropped if its loss or a gradient is not finite."""
        loss, found = example_gradients(self.handle, example)
        finite = all(bool(torch.isfinite(g.left).all() and torch.isfinite(g.right).all()) for g in found.values())
        if not finite or loss != loss:
            self.dropped += 1
            return
        layers = range(self.handle.n_layers)
        self._rows.append(_table(found, self.names, layers))
        by_name = [[found[layer, name] for layer in layers] for name in self.names]
        by_layer = [[found[layer, name] for name in self.names] for layer in layers]
        self._cosines.append((_cosines(by_name), _cosines(by_layer)))
        self._losses.append((loss, example.scored))

    def finish(self) -> LayerGradients:
        """Return what was found.

        Raises:
            ValueError: no example is left.
        """
        if not self._rows and not self.dropped:
            raise ValueError("Gradients need a text of two tokens or more, got none.")
        if not self._rows:
            raise ValueError(f"No gradient is finite: all {self.dropped} examples were dropped. Load it in float32.")
        rows = torch.stack(self._rows)
        values = {name: rows[..., i] for i, name in enumerate((*SIZES, *SHAPES))}
        across, within = (torch.stack(found).nanmean(0) for found in zip(*self._cosines, strict=True))
        losses, scored = zip(*self._losses, strict=True)
        return LayerGradients(
            self.names,
            values,
            torch.tensor(losses, dtype=torch.float64),
            torch.tensor(scored),
            across,
            within,
            self.dropped,
        )


def _table(found: Gradients, names: Sequence[str], layers: range) -> Float[Tensor, "layer name measure"]:
    rows = [[_measures(found[layer, name]) for name in names] for layer in layers]
    return torch.tensor(rows, dtype=torch.float64)


def _measures(gradient: Factored) -> list[float]:
    nuclear, frobenius, spectral = gradient.nuclear, gradient.frobenius, gradient.spectral
    if nuclear == 0:
        return [0.0, 0.0, 0.0, torch.nan, torch.nan, torch.nan]
    return [nuclear, frobenius, spectral, nuclear / frobenius, spectral / nuclear, gradient.effective_rank]


def _cosines(groups: list[list[Factored]]) -> Float[Tensor, "group one other"]:
    found = torch.full((len(groups), len(groups[0]), len(groups[0])), torch.nan, dtype=torch.float64)
    for group, gradients in enumerate(groups):
        for i, one in enumerate(gradients):
            for j, other in enumerate(gradients[: i + 1]):
                if one.shape == other.shape:
                    found[group, i, j] = found[group, j, i] = one.cosine(other)
    return found
