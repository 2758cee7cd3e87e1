"""What steps share: their JSON form, the patterns of those that change weights, checks of numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from interp.config import to_json
from interp.types import StepReport

if TYPE_CHECKING:
    from torch import Tensor, nn

    from interp.compression.storage import Part
    from interp.compression.walk import Piece, Weight
    from interp.types import Change


@dataclass(frozen=True)
class NamedStep:
    """A step that a recipe file can name."""

    name: ClassVar[str]
    """What recipes call it."""

    def __to_json__(self) -> dict[str, Any]:
        """Return the step as in a recipe: its name and every field."""
        fields = {f.name: to_json(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"step": self.name, **fields}

    @property
    def is_nothing(self) -> bool:
        """Whether the step has no strength, and leaves the model as it is to the bit."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return the step in a few characters, for names of runs: `rtn-4bit-g64`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class MatrixStep(NamedStep):
    """A step that changes matrices one by one."""

    include: tuple[str, ...] = ()
    """Shell patterns of names of modules, such as `*.mlp.*`; none means every matrix of the blocks."""
    exclude: tuple[str, ...] = ()
    """Patterns of modules to leave as they are."""
    least_coverage: float | None = None
    """Smallest share of the eligible parameters that is accepted; None: everything that the patterns mean."""

    def __post_init__(self) -> None:
        if self.least_coverage is not None:
            share("least_coverage", self.least_coverage)

    def apply(self, module: nn.Module) -> StepReport:
        """Change the weights of `module` in place and return what that did.

        Raises:
            ValueError: a pattern matches nothing, too little is reached, or the matrices do not fit the step.
        """
        from interp.compression.walk import choose

        if self.is_nothing:
            return StepReport(self.describe())
        choice = choose(module, self.include, self.exclude)
        choice.require(self.least_coverage, self.describe())
        self.check(choice.weights)
        changes = tuple(self.rewrite(choice.weights))
        return StepReport(self.describe(), choice.eligible, changes, tuple(choice.notes))

    def check(self, weights: Sequence[Weight]) -> None:
        """Raise ValueError if the step cannot act on `weights`; called before any of them is changed."""

    def rewrite(self, weights: Sequence[Weight]) -> list[Change]:
        """Change all of `weights`."""
        return [weight.edit(self.change) for weight in weights]

    def change(self, piece: Piece) -> tuple[Tensor, Part]:
        """Return what a matrix becomes, and how it is stored then."""
        raise NotImplementedError


def share(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in 0..1, got {value!r}.")


def whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ValueError unless `value` is a whole number from `least` (to `most`)."""
    inside = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not inside or (most is not None and isinstance(value, int) and value > most):
        wanted = f"lie in {least}..{most}" if most is not None else f"be a whole number from {least} on"
        raise ValueError(f"{name} must {wanted}, got {value!r}.")


def strength(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a finite number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number from 0 on, got {value!r}.")


def percent(value: float) -> str:
    """Return a share as `30%` or `12.5%`."""
    return f"{100 * value:.4g}%"


def where(include: Sequence[str], exclude: Sequence[str]) -> str:
    """Return what distinguishes a step on some modules from one on all: `@*.mlp.*`."""
    return "".join([*(f"@{one}" for one in include), *(f"-not@{one}" for one in exclude)])
