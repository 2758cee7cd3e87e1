"""The weights that steps of a recipe act on: which there are, which a pattern means, how one is read and written.

Eligible are the matrices of the transformer blocks. Embeddings and the unembedding count only where a pattern means
them and no block, such as `lm_head`; where the two share a tensor, it is split first. Rows are outputs: GPT-2's Conv1D
stores its weight [in out], and is read transposed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.compression.storage import Part, dense
from interp.models.taps import BLOCKS
from interp.names import unknown
from interp.types import Change

_STATE = "mechscope_stored"  # attribute of a module: how its weight is stored, for the steps that come later


@dataclass(frozen=True)
class Piece:
    """A matrix as a step sees it: a weight, or one of the two low-rank factors that it is the product of."""

    name: str
    """Of the module."""
    matrix: Float[Tensor, "out in"]
    """In float32 at least; a step returns another one and leaves this as it is."""
    part: Part
    """How it is stored."""


@dataclass(frozen=True)
class Weight:
    """The matrix of one module."""

    name: str
    """Name of the module."""
    leaf: Any
    """The module, with the matrix as `weight`."""
    transposed: bool
    """Whether the module stores it [in out]."""

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        """A view of the weight."""
        weight = self.leaf.weight.detach()
        return weight.T if self.transposed else weight

    def base(self) -> Part:
        """Return how it is stored as the model came."""
        return dense(self.leaf.weight.numel(), 8 * self.leaf.weight.dtype.itemsize)

    def pieces(self) -> list[Piece]:
        """Return the matrix, or the two factors [out rank], [rank in] that a step before left.

        Raises:
            ValueError: the weights are on no device, or hold NaN or infinity.
        """
        matrix = self.matrix
        if matrix.is_meta:
            raise ValueError(f"The weights of {self.name} are offloaded; load the model on a device that holds it.")
        if not torch.isfinite(matrix).all():
            raise ValueError(f"{self.name} holds weights that are not finite; a recipe cannot act on them.")
        state = getattr(self.leaf, _STATE, None)
        if state is None:
            return [Piece(self.name, wide(matrix).contiguous(), self.base())]
        factors, parts = state
        matrices = [wide(matrix).contiguous()] if factors is None else [wide(factor) for factor in factors]
        return [Piece(self.name, one, part) for one, part in zip(matrices, parts, strict=True)]

    def write(self, matrices: Sequence[Tensor], parts: Sequence[Part]) -> Change:
        """Put a matrix, or the product of two factors, in place, and say what that changed."""
        before = wide(self.matrix).clone()
        dtype = self.leaf.weight.dtype
        narrow = [one.to(dtype) for one in matrices]  # what is stored is what is computed with
        product = narrow[0] if len(narrow) == 1 else (wide(narrow[0]) @ wide(narrow[1])).to(dtype)
        with torch.no_grad():
            self.matrix.copy_(product)
        setattr(self.leaf, _STATE, (None if len(narrow) == 1 else tuple(narrow), tuple(parts)))
        size = float(torch.linalg.norm(before))
        error = float(torch.linalg.norm(wide(self.matrix) - before)) / size if size else 0.0
        stored, bits = sum(part.kept for part in parts), sum(part.bits for part in parts)
        return Change(self.name, before.numel(), stored, bits, error)

    def edit(self, change: Callable[[Piece], tuple[Tensor, Part]]) -> Change:
        """Replace the matrix, or each of its factors, by what `change` makes of it."""
        changed = [change(piece) for piece in self.pieces()]
        return self.write([matrix for matrix, _ in changed], [part for _, part in changed])


def wide(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 at least."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass
class Choice:
    """The weights that the patterns of a step mean."""

    weights: list[Weight]
    """Those that a step can act on."""
    eligible: int
    """Parameters of the blocks' matrices and of what was asked for beside them."""
    asked: int
    """Parameters that the patterns mean."""
    refused: list[str] = field(default_factory=list)
    """Modules that the patterns mean and no step can act on, with their class."""
    notes: list[str] = field(default_factory=list)
    """What was done to make it possible."""

    def require(self, least: float | None, who: str) -> None:
        """Refuse a choice that reaches less than was asked for, or than the share `least` of what is eligible.

        Raises:
            ValueError: with both numbers.
        """
        reached = sum(weight.leaf.weight.numel() for weight in self.weights)
        wanted = self.asked if least is None else least * self.eligible
        if reached < wanted:
            why = f"; no step can act on {', '.join(self.refused[:3])}" if self.refused else ""
            remedy = "Widen include, " if not self.refused else "Exclude these, "
            raise ValueError(
                f"{who} reaches {reached:,} of {self.eligible:,} eligible parameters ({reached / self.eligible:.1%}), "
                f"and {wanted:,.0f} ({wanted / self.eligible:.1%}) were wanted{why}. {remedy}or lower least_coverage."
            )


def choose(module: Any, include: Sequence[str], exclude: Sequence[str]) -> Choice:
    """Return the weights of the Hugging Face `module` that match `include` (none: all of the blocks) and not `exclude`.

    Raises:
        ValueError: a pattern matches nothing (with the nearest one that would), or all of it together does.
    """
    blocks, ends = matrices(module)
    wanted: dict[str, nn.Module] = {} if include else dict(blocks)
    for pattern in include:
        inside = {name: leaf for name, leaf in blocks.items() if fnmatchcase(name, pattern)}
        found = inside or {name: leaf for name, leaf in ends.items() if fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(unknown("module or pattern (it matches nothing)", pattern, _patterns({**blocks, **ends})))
        wanted |= found
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in (*blocks, *ends)):
            raise ValueError(unknown("module or pattern (it matches nothing)", pattern, _patterns({**blocks, **ends})))
        wanted = {name: leaf for name, leaf in wanted.items() if not fnmatchcase(name, pattern)}
    if not wanted:
        raise ValueError(f"exclude={list(exclude)} leaves nothing of what include={list(include)} means.")
    eligible = {**blocks, **wanted}
    choice = Choice([], sum(map(count, eligible.values())), sum(map(count, wanted.values())))
    if any(name in ends for name in wanted):
        choice.notes += untie(module)
    for name, leaf in wanted.items():
        if readable(leaf):
            choice.weights.append(Weight(name, leaf, is_conv1d(leaf)))
        else:
            choice.refused.append(f"{name} ({type(leaf).__name__})")
    return choice


def matrices(module: Any) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Return {name: module} of those with a matrix of their own, inside the blocks and outside of them."""
    prefix = BLOCKS[module.config.model_type] + "."
    blocks, ends = {}, {}
    for name, leaf in module.named_modules():
        if any(parameter.ndim >= 2 for parameter in leaf.parameters(recurse=False)):
            (blocks if name.startswith(prefix) else ends)[name] = leaf
    return blocks, ends


def readable(leaf: nn.Module) -> bool:
    """Return whether steps know how the weight of `leaf` is laid out."""
    return isinstance(leaf, nn.Linear | nn.Embedding) or is_conv1d(leaf)


def is_conv1d(leaf: nn.Module) -> bool:
    """Return whether `leaf` is GPT-2's linear layer, which stores [in out]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(leaf, Conv1D)


def count(leaf: nn.Module) -> int:
    """Return the numbers of the matrices of `leaf` itself; biases are none."""
    return sum(parameter.numel() for parameter in leaf.parameters(recurse=False) if parameter.ndim >= 2)


def _patterns(names: dict[str, nn.Module]) -> list[str]:
    """Return the names with the block's number as a wildcard: `transformer.h.*.mlp.c_fc`."""
    return sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})


def untie(module: Any) -> list[str]:
    """Give the unembedding a copy of its own if it shares the embedding's tensor; say so in a list of notes."""
    head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return []
    head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    module.config.tie_word_embeddings = False  # a saved copy must not tie them again
    return [f"embedding and unembedding were one tensor and are two now: {head.weight.numel():,} parameters more"]
