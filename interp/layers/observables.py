"""Observable propagation: which direction of the stream, layers back, moves a chosen combination of logits.

An observable n weights the logits (Dunefsky and Cohan 2023). What reads it off the stream before the final norm is
y = centre(gain * W_U^T n); through a head, with its attention held, and through an MLP to first order at x0,

    head   y' = centre(gain * W_V^T W_O^T y)            mlp   y' = gradient of y · MLP(norm(x)) at x0

A norm's scale is a positive factor for each token: it changes the length of what it multiplies, not the direction.

    coupling C(y1, y2) = y1 · y2 / ||y1||^2     the mean of x · y2 over inputs with x · y1 = 1, if these are isotropic

which is not symmetric. Trap: activations are far from isotropic, so that C is a statement about weights;
`coupling_check` sets it beside the slope on real ones. A gradient at one x0 holds near that x0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.layers.head_weights import head_weights
from interp.layers.norms import IN_BLOCK, final_norm
from interp.models.handle import ModelHandle
from interp.models.taps import BLOCKS


class HeadStep(NamedTuple):
    """Backwards through a head's output and value matrices."""

    layer: int
    """Block."""
    head: int
    """Head."""


class MlpStep(NamedTuple):
    """Backwards through an MLP and the norm it reads through, to first order."""

    layer: int
    """Block."""
    at: Float[Tensor, " d_model"]
    """The stream that the norm reads, where the gradient is taken."""


def observable(handle: ModelHandle, weights: Float[Tensor, " d_vocab"]) -> Float[Tensor, " d_model"]:
    """Return y with weights · logits = y · h / scale(h) + a constant, h being the stream before the final norm."""
    n = weights.double().to(handle.unembed().device)
    return final_norm(handle).pull_back(handle.unembed().detach().double().T @ n)


def propagate(
    handle: ModelHandle, y: Float[Tensor, " d_model"], path: Sequence[HeadStep | MlpStep]
) -> Float[Tensor, " d_model"]:
    """Return what reads the observable off the stream before the last step of `path`, which leads backwards.

    Raises:
        ValueError: a path that does not lead backwards, or a head that is not there.
    """
    before = (handle.n_layers, False)
    for step in path:
        place = (step.layer, isinstance(step, MlpStep))  # within a block the MLP comes after the heads
        if step.layer < 0 or place >= before:
            raise ValueError(
                f"A path leads backwards from layer {handle.n_layers - 1}, each step before the last; got "
                f"{type(step).__name__} at layer {step.layer} after layer {before[0]}."
            )
        y = _through_head(handle, y, step) if isinstance(step, HeadStep) else _through_mlp(handle, y, step)
        before = place
    return y


def _through_head(handle: ModelHandle, y: Tensor, step: HeadStep) -> Tensor:
    circuit = head_weights(handle, step.layer, centred=False).circuit(step.head, "ov")  # y may read the mean
    return circuit.right.T @ (circuit.left @ y.double())


def _through_mlp(handle: ModelHandle, y: Tensor, step: MlpStep) -> Tensor:
    block = handle.module.get_submodule(f"{BLOCKS[handle.family]}.{step.layer}")
    norm = block.get_submodule(IN_BLOCK[handle.family]["mlp"])
    with torch.enable_grad():
        x = step.at.detach().to(handle.unembed()).clone().requires_grad_()
        out = block.mlp(norm(x[None, None]))[0, 0]
        (slope,) = torch.autograd.grad((out.double() * y.double()).sum(), x)
    return slope.double()


def coupling(one: Float[Tensor, " d"], other: Float[Tensor, " d"]) -> float:
    """Return C(one, other) = one · other / ||one||^2; NaN where `one` is 0."""
    square = float(one.double().square().sum())
    return float(one.double() @ other.double()) / square if square > 0 else math.nan


class CouplingCheck(NamedTuple):
    """A coupling by weights, and what activations say."""

    predicted: float
    """C(one, other)."""
    slope: float
    """Slope of x · other on x · one over activations."""
    correlation: float
    """Their correlation."""
    cosine: float
    """Cosine of the two directions."""


def coupling_check(x: Float[Tensor, "row d"], one: Float[Tensor, " d"], other: Float[Tensor, " d"]) -> CouplingCheck:
    """Return the coupling of two directions beside what rows of activations show.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(x) < 2:
        raise ValueError(f"A slope needs two rows of activations or more, got {len(x)}.")
    x, one, other = x.double(), one.double(), other.double()
    a, b = (values - values.mean() for values in (x @ one, x @ other))
    square, both = float(a.square().sum()), float((a * b).sum())
    sizes = math.sqrt(square * float(b.square().sum()))
    lengths = float(one.norm() * other.norm())
    return CouplingCheck(
        coupling(one, other),
        both / square if square > 0 else math.nan,
        both / sizes if sizes > 0 else math.nan,
        float(one @ other) / lengths if lengths > 0 else math.nan,
    )


def swap_along(
    x: Float[Tensor, "*batch d"], source: Float[Tensor, "*batch d"], y: Float[Tensor, " d"]
) -> Float[Tensor, "*batch d"]:
    """Return x with its coordinate along y taken from `source`: x + ((source - x) · y) y / ||y||^2."""
    along = (source - x) @ y.to(x) / y.square().sum().to(x)
    return x + along[..., None] * y.to(x)
