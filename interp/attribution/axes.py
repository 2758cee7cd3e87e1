"""The axes of an activation that a cell may be a part by, and sums over the others."""

from __future__ import annotations

from jaxtyping import Float, Shaped
from torch import Tensor

from interp.sites import WITH_HEADS


def axis_names(kind: str) -> tuple[str, ...]:
    """Return what the axes of an activation are, after the batch; "" for those that no cell is a part by."""
    if kind in WITH_HEADS:
        return ("pos", "head", "")
    return ("pos", "neuron") if kind == "mlp_act" else ("pos", "")


def parts_of(kind: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of `parts` that an activation of `kind` has, in the order of its axes."""
    return tuple(name for name in axis_names(kind) if name in parts)


def summed(product: Shaped[Tensor, "batch ..."], kind: str, parts: tuple[str, ...]) -> Float[Tensor, "batch ..."]:
    """Return `product`, shaped as an activation of `kind`, summed over all axes but those of `parts`, in float64."""
    if kind == "pattern":  # [batch head query key]: positions are queries
        product = product.transpose(1, 2)
    gone = [axis for axis, name in enumerate(axis_names(kind), 1) if name not in parts]
    return (product.sum(gone) if gone else product).cpu().double()
