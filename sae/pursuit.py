"""Matching pursuit: a row's code is looked for step by step, each on what the steps before it left.

    i = argmax_j <d_j, r>,   v = max(<d_i, r>, 0),   z_i += v,   r -= v d_i          (Mallat and Zhang 1993)

Atoms have length 1 (at most: ||r||^2 falls by v^2 (2 - ||d_i||^2) in a step). A step costs one product r D^T; where the
Gram matrix G = D D^T is worth its price, it is one product in all and then <D, r> -= v G[i] in each step. Nothing here
keeps a graph but `unrolled`, whose gradient runs the loop backwards on the chosen atoms alone. (`sae.greedy`: pursuits
that fit all coefficients again.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae.code import Code
from sae.sparse import bag

GRAM_LATENTS = 8192
"""Largest dictionary whose Gram matrix is held (256 MiB in float32)."""
PIECE_FLOATS = 1 << 23
"""Most correlations held at once, in floats."""
CACHED_FLOATS = 1 << 19
"""Correlations that a CPU's cache holds from one step to the next, in floats."""
SLOT_FLOATS = 1 << 24
"""Most floats of [rows, steps, d_in] held at once."""
GRAM_BLOCK = 512
"""Rows of the Gram matrix that are computed at once."""
STRIP = 64
"""Entries of a strip in `best`."""

Steps = tuple[Int[Tensor, "batch k"], Float[Tensor, "batch k"]]
"""Atom and coefficient of each step; a step that was not taken has coefficient 0."""


@torch.no_grad()
def matching_pursuit(
    x: Float[Tensor, "batch d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    k: int,
    *,
    residual: float = 0.0,
    until_repeat: bool = False,
) -> Steps:
    """Return the steps of matching pursuit on centred rows, without a graph; an atom may come up more than once.

    Args:
        x: rows.
        atoms: of length 1.
        k: steps at most.
        residual: a row is done when what is left of it is at most this share of its norm.
        until_repeat: a row is done before it would take an atom a second time.
    """
    indices = x.new_zeros(len(x), k, dtype=torch.long)
    values = x.new_zeros(len(x), k)
    gram = gram_matrix(atoms) if _gram_pays(len(x), len(atoms), k) else None
    gains = 2 - atoms.square().sum(1)
    for piece in pieces(len(x), len(atoms), PIECE_FLOATS):
        rows = x[piece]
        scores = rows @ atoms.t() if gram is not None else None
        cached = CACHED_FLOATS if x.device.type == "cpu" and gram is not None else PIECE_FLOATS
        for part in pieces(len(rows), len(atoms), cached):
            chase = _Chase(rows[part], atoms, gram, None if scores is None else scores[part], gains)
            chase.run(indices[piece][part], values[piece][part], residual, until_repeat)
    return indices, values


def _gram_pays(batch: int, d_sae: int, k: int) -> bool:
    """Return whether the Gram matrix (half of d_sae / batch products like the encoder's) and cheap steps beat k."""
    return d_sae <= GRAM_LATENTS and 0.6 * d_sae / max(1, batch) + 1 + 0.1 * k < k


def gram_matrix(atoms: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_sae"]:
    """Return D D^T; on a CPU its upper half is computed and the lower copied."""
    if atoms.device.type != "cpu":
        return atoms @ atoms.t()
    gram = atoms.new_empty(len(atoms), len(atoms))
    for piece in pieces(len(atoms), 1, GRAM_BLOCK):
        rows, rest = gram[piece, piece.start :], slice(piece.stop, None)
        torch.mm(atoms[piece], atoms[piece.start :].t(), out=rows)
        gram[rest, piece] = gram[piece, rest].t()
    return gram


def pieces(rows: int, width: int, floats: int) -> Iterator[slice]:
    """Return slices over `rows` of at most `floats` numbers, `width` of them in each row."""
    step = max(1, floats // max(1, width))
    return (slice(start, start + step) for start in range(0, rows, step))


class _Chase:
    """Matching pursuit of a few rows, with their correlations kept up to date by one of the two ways."""

    def __init__(self, rows: Tensor, atoms: Tensor, gram: Tensor | None, scores: Tensor | None, gains: Tensor) -> None:
        self.atoms, self.gram = atoms, gram
        self.left = rows if gram is not None else rows.clone()
        self.scores = self.left @ atoms.t() if scores is None else scores
        self.square = self.whole = rows.square().sum(1)
        self.gains = gains

    def run(self, indices: Tensor, values: Tensor, residual: float, until_repeat: bool) -> None:
        """Fill in the steps; those that are not taken keep the coefficient 0."""
        k = indices.shape[1]
        for step in range(k):
            value, index = best(self.scores)
            value = value.relu()
            if residual:
                value = torch.where(self.square <= residual**2 * self.whole, 0.0, value)
            if until_repeat and step:
                again = ((indices[:, :step] == index.unsqueeze(1)) & (values[:, :step] != 0)).any(1)
                value = torch.where(again, 0.0, value)
            indices[:, step], values[:, step] = index, value
            if step + 1 == k or not value.count_nonzero():
                return
            self._take(index, value)

    def _take(self, index: Tensor, value: Tensor) -> None:
        self.square = self.square - value.square() * self.gains.index_select(0, index)
        if self.gram is not None:
            self.scores.addcmul_(value.unsqueeze(1), self.gram.index_select(0, index), value=-1)
        else:
            self.left.addcmul_(value.unsqueeze(1), self.atoms.index_select(0, index), value=-1)
            torch.mm(self.left, self.atoms.t(), out=self.scores)


def best(scores: Float[Tensor, "batch n"]) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
    """Return (value, index) of each row's largest entry: what `max` does, in a fraction of its time on a CPU."""
    batch, n = scores.shape
    if scores.device.type != "cpu" or n % STRIP or n < STRIP**2 // 4 or not scores.is_contiguous():
        value, index = scores.max(1)
        return value, index
    strips = scores.view(batch, n // STRIP, STRIP)
    strip = strips.amax(2).argmax(1)
    value, within = strips[torch.arange(batch), strip].max(1)
    return value, strip * STRIP + within


class _Unrolled(torch.autograd.Function):
    """The already known coefficients of matching pursuit, with the exact gradient of the loop at fixed choices.

    With a the adjoint of the residual after step t (0 after the last) and g_t that of v_t, backwards through
    v_t = <d, r>, r' = r - v_t d:   s = g_t - <a, d>,   d's gradient += s r - v_t a,   a += s d.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, atoms: Tensor, indices: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(x, atoms, indices, values)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, atoms, indices, values = ctx.saved_tensors
        k = indices.shape[1]
        grad_x, grad_atoms = torch.empty_like(x), torch.zeros_like(atoms)
        for piece in pieces(len(x), k * x.shape[1], SLOT_FLOATS):
            slots, v, g = indices[piece], values[piece], grad[piece]
            offsets = torch.arange(0, slots.numel(), k, device=x.device)
            left = x[piece] - bag(atoms, slots.flatten(), offsets, v.flatten())
            pull = torch.zeros_like(left)
            parts = left.new_empty(k, len(left), left.shape[1])
            for t in reversed(range(k)):
                d, value = atoms.index_select(0, slots[:, t]), v[:, t, None]
                slope = torch.where(value != 0, g[:, t, None] - (pull * d).sum(1, keepdim=True), 0.0)
                left.addcmul_(value, d)
                torch.mul(left, slope, out=parts[t]).addcmul_(value, pull, value=-1)
                pull.addcmul_(slope, d)
            grad_x[piece] = pull
            by_latent = Code(slots.t(), v.t(), len(atoms)).by_latent
            flat = parts.view(-1, parts.shape[2])
            grad_atoms += bag(flat, by_latent.order, by_latent.offsets, flat.new_ones(len(flat)))
        return grad_x, grad_atoms, None, None


def unrolled(x: Float[Tensor, "batch d_in"], atoms: Float[Tensor, "d_sae d_in"], steps: Steps) -> Steps:
    """Return the steps of matching pursuit attached to the graph of `x` and `atoms`."""
    indices, values = steps
    if torch.is_grad_enabled():
        values = _Unrolled.apply(x, atoms, indices, values)
    return indices, values  # type: ignore[return-value]


def merged(steps: Steps, d_sae: int) -> Code:
    """Return the CSR code of steps: those of one atom are added, those that were not taken are left out."""
    indices, values = steps
    rows = torch.arange(len(indices), device=indices.device).unsqueeze(1)
    taken = (values != 0).flatten().nonzero().squeeze(1)
    places, slot = (rows * d_sae + indices).flatten()[taken].unique(return_inverse=True)
    summed = values.new_zeros(len(places)).index_add(0, slot, values.flatten().index_select(0, taken))
    starts = torch.arange(0, (len(indices) + 1) * d_sae, d_sae, device=indices.device)
    return Code(places % d_sae, summed, d_sae, torch.searchsorted(places, starts))
