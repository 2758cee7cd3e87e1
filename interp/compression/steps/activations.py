"""Steps that act on activations while the model runs: rounding them, and noise as a control.

Both act at sites, in both views. Rounding has one scale for each token (all heads together), and passes gradients
straight through (Bengio et al. 2013). Noise is a pure function of seed, site and the token ids read so far: the same
text gets the same noise in every pass, in any batch.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.compression.steps.base import NamedStep, strength, whole
from interp.compression.steps.counter import mixed, normals
from interp.compression.steps.rounding import MODES, Mode, round_tokens
from interp.names import unknown
from interp.types import StepReport

if TYPE_CHECKING:
    from interp.models.handle import ModelHandle
    from interp.sites import Site

RESIDUAL = ("resid_post.*",)


@dataclass(frozen=True)
class QuantiseActivations(NamedStep):
    """Round activations to a few bits, as a model does that computes or caches in integers."""

    name: ClassVar[str] = "quantise_activations"

    bits: int | None = 8
    """Bits of an activation, 2..8; None leaves them as they are."""
    sites: tuple[str, ...] = RESIDUAL
    """Sites, or shell patterns of them: `mlp_act.*`, or `k.*` and `v.*` for a cache."""
    mode: Mode = "symmetric"
    """Levels around zero, or between the smallest and the largest activation of a token."""

    def __post_init__(self) -> None:
        if self.bits is not None:
            whole("bits of quantise_activations", self.bits, 2, 8)
        if self.mode not in MODES:
            raise ValueError(unknown("mode of quantise_activations", self.mode, MODES))

    @property
    def is_nothing(self) -> bool:
        """Whether no bits are given."""
        return self.bits is None

    def describe(self) -> str:
        """Return such as `activations-8bit@resid_post.*`."""
        form = "-asym" if self.mode == "asymmetric" else ""
        bits = "none" if self.bits is None else f"{self.bits}bit"
        return f"activations-{bits}{form}@{'@'.join(self.sites)}"

    def attach(self, handle: ModelHandle) -> StepReport:
        """Round at the sites in both views of `handle`.

        Raises:
            ValueError: a pattern matches no site of the model.
        """
        if self.bits is not None:
            edit = functools.partial(_rounded, bits=self.bits, mode=self.mode)
            for site in chosen_sites(handle, self.sites, self.name):
                handle.attach(site, edit)
        return StepReport(self.describe())


def _rounded(x: Float[Tensor, "batch pos *d"], bits: int, mode: str) -> Float[Tensor, "batch pos *d"]:
    """Return `x` rounded with one scale for each token; the gradient is that of the identity."""
    flat = x.detach().flatten(2)
    wide = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    rounded = round_tokens(wide, bits, mode).to(x.dtype).reshape(x.shape)
    return rounded + (x - x.detach()) if x.requires_grad else rounded


@dataclass(frozen=True)
class ActivationNoise(NamedStep):
    """Add Gaussian noise to activations, relative to the size of each token's."""

    name: ClassVar[str] = "activation_noise"

    std: float = 0.1
    """Size of the noise relative to that of the activation, from 0 on."""
    sites: tuple[str, ...] = RESIDUAL
    """Sites, or shell patterns of them."""
    seed: int = 0
    """Of the noise."""

    def __post_init__(self) -> None:
        strength("std of activation_noise", self.std)
        whole("seed of activation_noise", self.seed, 0)

    @property
    def is_nothing(self) -> bool:
        """Whether there is no noise."""
        return self.std == 0

    def describe(self) -> str:
        """Return such as `activation_noise-0.1@resid_post.*`."""
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"activation_noise-{self.std:.4g}{seed}@{'@'.join(self.sites)}"

    def attach(self, handle: ModelHandle) -> StepReport:
        """Add the noise at the sites in both views of `handle`.

        Raises:
            ValueError: a pattern matches no site of the model.
        """
        if not self.is_nothing:
            for site in chosen_sites(handle, self.sites, self.name):
                handle.attach(site, self._edit(handle, site))
        return StepReport(self.describe())

    def _edit(self, handle: ModelHandle, site: Site) -> Callable[[Tensor], Tensor]:
        stream = int.from_bytes(hashlib.sha256(f"{self.seed}/{site}".encode()).digest()[:7], "big")

        def edit(x: Tensor) -> Tensor:
            rows = x.detach().flatten(2)
            keys = mixed(text_keys(handle, rows) + stream)
            noise = normals(keys, rows.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
            size = rows.to(noise.dtype).norm(dim=-1, keepdim=True) / rows.shape[-1] ** 0.5
            return x + (self.std * size * noise).to(x.dtype).reshape(x.shape)

        return edit


def text_keys(handle: ModelHandle, rows: Float[Tensor, "batch pos d"]) -> Int[Tensor, "batch pos"]:
    """Return a number for each position that depends on the tokens up to it alone.

    Where the tokens are not known, because the module was called past `handle.forward`, on row and position.
    """
    batch, pos = rows.shape[:2]
    place = torch.arange(pos, device=rows.device)
    tokens = handle.reading
    if tokens is None or tokens.shape != rows.shape[:2]:
        return mixed(torch.arange(batch, device=rows.device)[:, None] * 2**32 + place)
    return mixed(mixed(tokens.to(rows.device) * 2**32 + place).cumsum(1) + place)


def chosen_sites(handle: ModelHandle, patterns: tuple[str, ...], who: str) -> list[Site]:
    """Return the sites that `patterns` mean, in order, without `pattern`, which exists in one view only.

    Raises:
        ValueError: a pattern matches no site, or only that one.
    """
    known = handle.sites()
    found: set[Site] = set()
    for one in patterns:
        matched = handle.sites(one) if set(one) & set("*?[") else [handle.check_site(one)]
        usable = [site for site in matched if site.kind != "pattern"]
        if not usable:
            why = "it exists in the bridge only" if matched else "the model has no such site"
            raise ValueError(f"{who} cannot act at {one}: {why}. " + unknown("site", one, map(str, known)))
        found.update(usable)
    if not found:
        raise ValueError(f"{who} needs at least one site, such as resid_post.*; got none.")
    return sorted(found)
