"""What leaving blocks out, or scaling what they add, does to the loss: the measure that others are held against.

    dCE(S)   = CE without the blocks of S - CE, in nats per token
    kl(S)    = mean KL(p || p without S),    top1(S) = share of tokens whose likeliest next token stays
    S_l      = CE with c_l scaled by beta - CE     (importance-aware sparse tuning; Yao et al. 2024, no code was public)

Blocks are left out at every position, BOS included, as they are when they are removed: `skip_layers` of a recipe does
the same. The loss of several blocks is not the sum of theirs (they may stand in for each other): `greedy_order` removes
one after the other, each time the one whose loss is then least.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.layers.lens import Prediction, lens_logits, row_chunk
from interp.layers.suffix import Base, Suffix
from interp.models.handle import ModelHandle

Blockset = tuple[int, ...]
"""Blocks, ascending."""
MEASURES = ("loss", "kl", "top1")
"""Rise of the loss, KL to the unchanged model, agreement of the likeliest token."""
HELD_FLOATS = 1 << 25
"""Unchanged log-probabilities that are kept, in floats (128 MiB); those of more text are made anew each time."""


@dataclass(frozen=True, eq=False)
class _Batch:
    tokens: Int[Tensor, "batch pos"]
    stream: list[Float[Tensor, "batch pos d"]]
    where: Bool[Tensor, "batch pos"]
    targets: Int[Tensor, " row"]
    held: list[Prediction] | None


class SkipLoss:
    """A text and a model, asked again and again what leaving out a set of blocks does; answers are kept."""

    def __init__(self, handle: ModelHandle) -> None:
        """Begin without text."""
        self.handle = handle
        self._batches: list[_Batch] = []
        self._suffix: Suffix | None = None
        self._found: dict[tuple[Blockset, float], Tensor] = {}
        self._loss: list[Tensor] = []

    @torch.no_grad()
    def add(
        self,
        tokens: Int[Tensor, "batch pos"],
        real: Bool[Tensor, "batch pos"] | None = None,
        base: Base | None = None,
    ) -> Base:
        """Add texts of one length, padding at the end (`real` is False there); return what the model makes of them.

        The unchanged stream of all texts is kept, and the output of as many as `HELD_FLOATS` allows.
        """
        self._suffix = Suffix(self.handle, tokens) if self._suffix is None else self._suffix
        base = self._suffix.base(tokens) if base is None else base
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
        where = torch.zeros_like(real)
        where[:, :-1] = real[:, :-1] & real[:, 1:]
        where = where.to(base.logits.device)
        targets = torch.roll(tokens, -1, 1).to(where.device, torch.long)[where]
        clean = _predictions(base.logits, where)
        self._loss.append(_by_sequence(where, torch.cat([p.loss(t) for p, t in _paired(clean, targets)])))
        held = base.logits.numel() * (len(self._batches) + 1) <= HELD_FLOATS
        self._batches.append(_Batch(tokens, base.stream, where, targets, clean if held else None))
        self._found.clear()
        return base

    @property
    def tokens(self) -> Float[Tensor, " seq"]:
        """Predicted tokens of each sequence."""
        return torch.cat([batch.where.sum(1).cpu().double() for batch in self._batches])

    @property
    def losses(self) -> Float[Tensor, " seq"]:
        """Sums of the unchanged loss over the tokens of each sequence."""
        return torch.cat(self._loss)

    @torch.no_grad()
    def sums(self, blocks: Collection[int], scale: float = 0.0) -> Float[Tensor, "seq measure"]:
        """Return the sums over the tokens of each sequence of `MEASURES` with what these blocks add times `scale`.

        Raises:
            ValueError: a block that the model lacks, or no text.
        """
        chosen = tuple(sorted(set(blocks)))
        if not chosen or not 0 <= chosen[0] <= chosen[-1] < self.handle.n_layers:
            raise ValueError(f"blocks must lie in 0..{self.handle.n_layers - 1}, at least one; got {list(blocks)}.")
        if not self._batches:
            raise ValueError("A loss needs text, got none: call add() first.")
        if (chosen, scale) not in self._found:
            self._found[chosen, scale] = torch.cat([self._measure(batch, chosen, scale) for batch in self._batches])
        return self._found[chosen, scale]

    def means(self, blocks: Collection[int], scale: float = 0.0) -> dict[str, float]:
        """Return `MEASURES` per token."""
        found = self.sums(blocks, scale).sum(0) / self.tokens.sum()
        return dict(zip(MEASURES, found.tolist(), strict=True))

    def _measure(self, batch: _Batch, chosen: Blockset, scale: float) -> Float[Tensor, "seq measure"]:
        clean = batch.held
        if clean is None:
            clean = _predictions(lens_logits(self.handle, batch.stream[-1]), batch.where)
        changed = _predictions(self._logits(batch, chosen, scale), batch.where)
        columns = []
        for (before, targets), after in zip(_paired(clean, batch.targets), changed, strict=True):
            rise = after.loss(targets) - before.loss(targets)
            columns.append(torch.stack([rise, before.kl_to(after).clamp_min(0), (before.top == after.top).to(rise)]))
        return torch.stack([_by_sequence(batch.where, row) for row in torch.cat(columns, 1)], 1)

    def _logits(self, batch: _Batch, chosen: Blockset, scale: float) -> Tensor:
        """Return the output with the chosen blocks scaled: only what lies above the first of them is run."""
        suffix, layers = self._suffix, self.handle.n_layers
        if suffix is None:
            raise ValueError("A loss needs text, got none: call add() first.")
        layer = chosen[0]
        x = batch.stream[layer]
        if scale:  # 0 times what overflowed is no number
            x = x + scale * (batch.stream[layer + 1] - x)
        for layer in range(chosen[0] + 1, chosen[-1] + 1):
            if layer in chosen and scale == 0:
                continue
            after = suffix.run(x, layer, batch.tokens, last=layer).stream[0]
            x = x + scale * (after - x) if layer in chosen else after
        found = suffix.run(x, min(chosen[-1] + 1, layers), batch.tokens).logits
        if found is None:
            raise ValueError("A hook ended the forward before the output; close it first.")
        return found


def _predictions(logits: Float[Tensor, "batch pos d_vocab"], where: Bool[Tensor, "batch pos"]) -> list[Prediction]:
    """Return the distributions at the positions that predict, in parts."""
    rows = logits[where]
    return [Prediction(part) for part in rows.split(row_chunk(rows.shape[-1], rows.device))]


def _paired(parts: list[Prediction], targets: Int[Tensor, " row"]) -> list[tuple[Prediction, Tensor]]:
    return list(zip(parts, targets.split([len(one.top) for one in parts]), strict=True))


def _by_sequence(where: Bool[Tensor, "batch pos"], values: Float[Tensor, " row"]) -> Float[Tensor, " batch"]:
    """Return the sums of values over the positions of each sequence."""
    whole = torch.zeros(where.shape, dtype=torch.float64, device=values.device)
    whole[where] = values.double()
    return whole.sum(1).cpu()


def greedy_order(
    loss: SkipLoss, most: int | None = None, first: Mapping[int, float] | None = None
) -> list[tuple[int, dict[str, float]]]:
    """Return (block, measures of all removed so far) step by step, each time removing the block that costs least.

    Args:
        loss: text and model.
        most: blocks that are removed; None: all but one.
        first: loss of each single block where it is known; None measures it.
    """
    layers = loss.handle.n_layers
    single = {layer: loss.means((layer,))["loss"] for layer in range(layers)} if first is None else first
    gone: list[int] = []
    steps = []
    for _ in range(min(layers - 1 if most is None else most, layers)):
        rest = [layer for layer in range(layers) if layer not in gone]
        costs = {layer: loss.means((*gone, layer))["loss"] if gone else single[layer] for layer in rest}
        gone.append(min(rest, key=costs.__getitem__))
        steps.append((gone[-1], loss.means(gone)))
    return steps
