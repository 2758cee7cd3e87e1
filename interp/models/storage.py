"""What a model takes to store: each module at the bits that the steps of its recipe left it, the rest as it came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from interp.models.taps import BLOCKS
from interp.types import Change, StepReport


@dataclass(frozen=True)
class ModuleStorage:
    """What one module takes: its matrix, and the rest (biases, gains of norms), which no step changes."""

    module: str
    """Its name in the Hugging Face model."""
    parameters: int
    """Numbers of its matrix; 0 where it has none."""
    stored: int
    """Numbers that have to be kept of them."""
    bits: int
    """Bits that these take, with scales, zero points and masks."""
    eligible: bool
    """Whether the matrix lies in a block, or a step acted on it."""
    changed: int
    """Numbers of the matrix that a step acted on."""
    rest: int
    """Numbers of the other parameters."""
    rest_bits: int
    """Bits that these take."""

    @property
    def bits_per_parameter(self) -> float | None:
        """Bits for each number of the matrix; None where there is none."""
        return self.bits / self.parameters if self.parameters else None


@dataclass(frozen=True)
class Storage:
    """What a model takes, module by module; a tensor that two modules share is counted at the first."""

    modules: tuple[ModuleStorage, ...]
    """Those with parameters of their own, in the model's order."""

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return sum(one.parameters + one.rest for one in self.modules)

    @property
    def stored(self) -> int:
        """Numbers that have to be kept of them."""
        return sum(one.stored + (one.rest if one.rest_bits else 0) for one in self.modules)

    @property
    def bits(self) -> int:
        """Bits of the whole model."""
        return sum(one.bits + one.rest_bits for one in self.modules)

    @property
    def bits_per_parameter(self) -> float:
        """Bits for each parameter of the whole model, embeddings, biases and norms included."""
        return self.bits / self.parameters

    @property
    def matrix_bits(self) -> float:
        """Bits for each number of the matrices that steps may act on: those of the blocks, unless more was asked."""
        found = [one for one in self.modules if one.eligible]
        return sum(one.bits for one in found) / max(1, sum(one.parameters for one in found))

    @property
    def coverage(self) -> float:
        """Share of the numbers of these matrices that a step acted on."""
        found = [one for one in self.modules if one.eligible]
        return sum(one.changed for one in found) / max(1, sum(one.parameters for one in found))


def measure(module: Any, reports: Sequence[StepReport]) -> Storage:
    """Return what the Hugging Face `module` takes after the steps that wrote `reports`."""
    latest: dict[str, Change] = {}
    for report in reports:
        for change in report.changes:
            if change.module not in latest or latest[change.module].bits:  # a skipped block stays at nothing
                latest[change.module] = change
    prefix = BLOCKS[module.config.model_type] + "."
    seen: set[int] = set()
    found = []
    for name, leaf in module.named_modules():
        own = [p for p in leaf.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        if own:
            found.append(_module(name, own, latest.get(name), name.startswith(prefix)))
    return Storage(tuple(found))


def _module(name: str, own: Sequence[Tensor], change: Change | None, in_block: bool) -> ModuleStorage:
    matrices = [p for p in own if p.ndim >= 2]
    numbers, rest = sum(p.numel() for p in matrices), sum(p.numel() for p in own if p.ndim < 2)
    stored, bits = numbers, sum(_width(p) * p.numel() for p in matrices)
    rest_bits = sum(_width(p) * p.numel() for p in own if p.ndim < 2)
    if change is not None:
        stored, bits = change.stored, change.bits
        rest_bits = rest_bits if bits else 0
    changed = 0 if change is None else change.parameters
    eligible = bool(matrices) and (in_block or change is not None)
    return ModuleStorage(name, numbers, stored, bits, eligible, changed, rest, rest_bits)


def _width(parameter: Tensor) -> int:
    """Return the bits of one number."""
    return 8 * parameter.element_size()
