"""What the packages promise each other: protocols, so that `interp` needs no class of `sae` or `probes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn

    from interp.models.handle import ModelHandle


@runtime_checkable
class Dictionary(Protocol):
    """A sparse dictionary of one site: raw activations in, raw activations out; what a code is, is its own affair."""

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        ...

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        ...

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Any:
        """Return the code of `x`."""
        ...

    def decode(self, code: Any) -> Float[Tensor, "batch d_in"]:
        """Return the reconstruction that `code` stands for."""
        ...

    def forward(self, x: Float[Tensor, "batch d_in"]) -> tuple[Float[Tensor, "batch d_in"], Any]:
        """Return (reconstruction, code)."""
        ...


@dataclass(frozen=True)
class Change:
    """What a step of a recipe did to one module."""

    module: str
    """Name of the module within the Hugging Face model."""
    parameters: int
    """Numbers of the weight that the step acted on."""
    stored: int
    """Numbers that have to be kept of them now: nonzero ones of a pruned matrix, those of both low-rank factors."""
    bits: int
    """Bits that these take with scales, zero points and masks, all steps so far together."""
    error: float | None = None
    """Relative error of the step, |after - before| / |before| (Frobenius); None where no weight changed."""


@dataclass(frozen=True)
class StepReport:
    """What a step did to a model."""

    step: str
    """The step, in short."""
    eligible: int = 0
    """Parameters that the step could have acted on: the matrices of the blocks, and what was asked for beside them."""
    changes: tuple[Change, ...] = ()
    """One for each module; none for a step of zero strength."""
    notes: tuple[str, ...] = ()
    """What a reader should know, such as that embeddings were untied."""

    @property
    def parameters(self) -> int:
        """Parameters that the step acted on."""
        return sum(change.parameters for change in self.changes)

    @property
    def coverage(self) -> float:
        """Share of the eligible parameters that the step acted on."""
        return self.parameters / self.eligible if self.eligible else 0.0


@runtime_checkable
class SparseCode(Protocol):
    """A code as `Dictionary.encode` returns it where single latents are looked at: slots of (latent, value) by row.

    A slot whose value is 0 is silent; values may be negative, so "active" is `!= 0`. No latent has two slots in a row.
    """

    @property
    def indices(self) -> Int[Tensor, "*slots"]:
        """Latent of each slot: [batch k], or [nnz] with `pointers`."""
        ...

    @property
    def values(self) -> Float[Tensor, "*slots"]:
        """Value of each slot."""
        ...

    @property
    def pointers(self) -> Int[Tensor, " batch_plus_1"] | None:
        """None for [batch k] slots, else where each row's slots begin."""
        ...


@runtime_checkable
class Probe(Protocol):
    """A fitted linear probe of one site: scores are x coef_^T + intercept_, on raw activations."""

    @property
    def coef_(self) -> Any:
        """Directions, float [output d_in]; one output for two classes."""
        ...

    @property
    def intercept_(self) -> Any:
        """Biases, float [output]."""
        ...

    @property
    def classes_(self) -> Any:
        """Labels, sorted; with one output it is above 0 for the second."""
        ...

    @property
    def link_(self) -> str:
        """What makes probabilities of scores: `sigmoid`, `softmax`, or `identity` where nothing does."""
        ...

    def decision_function(self, X: Any) -> Any:
        """Return the scores of rows [row d_in]: [row], or [row class] with more than two classes."""
        ...

    def predict(self, X: Any) -> Any:
        """Return the class of each row."""
        ...


@runtime_checkable
class WeightStep(Protocol):
    """A step of a recipe that changes weights, densely and in place."""

    def apply(self, module: nn.Module) -> StepReport | None:
        """Change the pristine Hugging Face `module`; called once, before anything else sees it."""
        ...


@runtime_checkable
class RuntimeStep(Protocol):
    """A step of a recipe that acts while the model runs (skipping, quantised activations or caches)."""

    def attach(self, handle: ModelHandle) -> StepReport | None:
        """Register edits by `handle.attach(site, edit)`, which makes them act in both views for good."""
        ...


Step: TypeAlias = WeightStep | RuntimeStep
Recipe: TypeAlias = tuple[Step, ...]
"""Steps in the order in which they are applied; part of `ModelSpec`."""
