"""What the packages promise each other: protocols, so that `interp` needs no class of `sae` or `probes`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from jaxtyping import Float
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


@runtime_checkable
class WeightStep(Protocol):
    """A step of a recipe that changes weights, densely and in place."""

    def apply(self, module: nn.Module) -> None:
        """Change the pristine Hugging Face `module`; called once, before anything else sees it."""
        ...


@runtime_checkable
class RuntimeStep(Protocol):
    """A step of a recipe that acts while the model runs (skipping, quantised activations or caches)."""

    def attach(self, handle: ModelHandle) -> None:
        """Register edits by `handle.attach(site, edit)`, which makes them act in both views for good."""
        ...


Step: TypeAlias = WeightStep | RuntimeStep
Recipe: TypeAlias = tuple[Step, ...]
"""Steps in the order in which they are applied; part of `ModelSpec`."""
