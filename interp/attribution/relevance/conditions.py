"""Conditional relevance (CRP): what runs through chosen heads, neurons, positions or latents (Achtibat et al. 2023).

Relevance is propagated back to the chosen site, kept on the chosen parts, set to zero on the rest, and propagated on
from there. All other routes end at that site, the residual stream around it included: what arrives at the input ran
through the condition. So it is linear in the mask: the heads of one layer, taken one by one, add up to all of them.
Several conditions all have to hold, one after the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from interp.attribution.patching.cells import checked_positions, n_parts
from interp.hooks import patch
from interp.models.handle import ModelHandle
from interp.sites import Site
from interp.types import Dictionary


@dataclass(frozen=True)
class Through:
    """A site, and the parts of it that relevance may pass; a part that is not named is not restricted."""

    site: Site | str
    """Where, such as `head_out.2`."""
    heads: tuple[int, ...] | None = None
    """Heads of `head_out`, `q`, `k` or `v`."""
    neurons: tuple[int, ...] | None = None
    """Neurons of `mlp_act`."""
    positions: tuple[int, ...] | None = None
    """Positions; negative ones count from the end."""
    latents: tuple[int, ...] | None = None
    """Latents of `dictionary`; the error of its reconstruction passes nothing."""
    dictionary: Dictionary | None = field(default=None, repr=False)
    """Dictionary of the site; its code must have `indices` and `values` (`interp.types.SparseCode`)."""

    def __post_init__(self) -> None:
        for name, kinds in (("heads", ("q", "k", "v", "head_out")), ("neurons", ("mlp_act",))):
            if getattr(self, name) is not None and self.at.kind not in kinds:
                raise ValueError(f"{name} can be chosen at {', '.join(kinds)}, not at {self.at}.")
        if (self.latents is None) != (self.dictionary is None):
            raise ValueError("latents and dictionary belong together: pass both, or neither.")
        for name in ("heads", "neurons", "positions", "latents"):
            chosen = getattr(self, name)
            if chosen is not None:
                object.__setattr__(self, name, tuple(int(i) for i in chosen))
                if not chosen:
                    raise ValueError(f"{name} of a condition must name at least one, got none.")

    @property
    def at(self) -> Site:
        """The site."""
        return Site.parse(self.site)

    def check(self, handle: ModelHandle, n_pos: int) -> None:
        """Refuse what the model, or a text of `n_pos` tokens, does not have.

        Raises:
            ValueError: with what there is.
        """
        handle.check_site(self.at)
        if self.at.kind == "pattern":
            raise ValueError("Relevance cannot be conditioned on a pattern; take head_out of the same layer.")
        n_latents = 0 if self.dictionary is None else self.dictionary.d_sae
        sizes = {"heads": n_parts(handle, self.at.kind), "neurons": handle.d_mlp, "latents": n_latents}
        for name, size in sizes.items():
            for i in getattr(self, name) or ():
                if not 0 <= i < size:
                    raise ValueError(f"{name} of {self.at} must lie in 0..{size - 1}, got {i}.")
        if self.positions is not None:
            checked_positions(self.positions, n_pos)
        if self.dictionary is not None and self.dictionary.d_in != handle.width(self.at):
            raise ValueError(
                f"The dictionary reads d_in={self.dictionary.d_in} numbers, but {self.at} has {handle.width(self.at)}."
            )

    def describe(self) -> dict[str, Any]:
        """Return the condition as JSON values, without the dictionary itself."""
        names = ("heads", "neurons", "positions", "latents")
        return {"site": str(self.at)} | {name: list(i) for name in names if (i := getattr(self, name)) is not None}

    def masked(self, rho: Tensor) -> Tensor:
        """Return the gradient at the site, [batch pos ...], zero on what is not chosen (latents apart)."""
        for axis, chosen in ((1, self.positions), (2, self.heads or self.neurons)):
            if chosen is not None:
                keep = torch.zeros(rho.shape[axis], dtype=torch.bool, device=rho.device)
                keep[list(chosen)] = True
                rho = rho * keep.reshape([-1 if i == axis else 1 for i in range(rho.ndim)])
        return rho

    def opened(self, handle: ModelHandle, view: str) -> AbstractContextManager[None]:
        """Return the context in which gradients pass the site through the chosen latents; idle without latents."""
        if self.dictionary is None:
            return nullcontext()
        return patch(handle, self.at, self._edit(), view=view)

    def _edit(self) -> Callable[[Tensor], Tensor]:
        """Return an edit whose value is the activation, and whose gradient runs through the chosen latents."""
        dictionary: Any = _constant(self.dictionary)

        def edit(value: Tensor) -> Tensor:
            rows = value.flatten(2).flatten(0, 1)
            wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
            code = dictionary.encode(wide)
            if not all(isinstance(getattr(code, name, None), Tensor) for name in ("indices", "values")):
                raise ValueError(
                    "Relevance through latents needs a code with indices and values (interp.types.SparseCode); this "
                    f"dictionary's is a {type(code).__name__}."
                )
            if code.values.requires_grad:
                keep = torch.isin(code.indices, torch.tensor(self.latents, device=code.indices.device))
                code.values.register_hook(lambda rho: rho * keep)
            x_hat = dictionary.decode(code).to(value.dtype).reshape(value.shape)
            return value.detach() + (x_hat - x_hat.detach())

        return edit


def _constant(dictionary: Any) -> Any:
    """Return a dictionary that shares every number with `dictionary`, whose weights carry no gradient of their own.

    Otherwise a product with a weight that is being trained would be taken for one of two activations.
    """
    if not isinstance(dictionary, nn.Module):
        return dictionary
    shared = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in dictionary.parameters()}
    return copy.deepcopy(dictionary, shared | {id(buffer): buffer for buffer in dictionary.buffers()})
