"""Steering by one latent of a dictionary: hold it at a value, remove it, or push it.

    x' = x + (z' - z) s W_dec[i]      clamp: z' = value      ablate: z' = 0      add: z' = z + value

z is the latent's value in the dictionary's own code and s what its normaliser divided that row by, so that the change
is in raw units. The dictionary's error stays in x: a row whose z' is z is left as it is, bit by bit. Values are in
units of the latent, as `Sae.encode` gives them, and may be negative.

    with steer(model, "resid_post.1", sae, 12, "clamp", 8.0):
        logits = model.logits(tokens)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.hooks import Positions, patch, where
from interp.metrics import finite_rows
from interp.models import ModelHandle
from interp.names import unknown
from interp.sites import Site
from sae.code import Code
from sae.model import Sae

HOWS = ("clamp", "ablate", "add")


@dataclass(frozen=True)
class Steering:
    """What is done to one latent."""

    latent: int
    """Which."""
    how: str = "clamp"
    """One of `HOWS`."""
    value: float | None = None
    """What it is held at (clamp) or what is added to it (add), in the latent's units; None for ablate."""

    def __post_init__(self) -> None:
        """Refuse an unknown way, and values that are missing, out of place, or no numbers."""
        if isinstance(self.latent, bool) or not isinstance(self.latent, int):
            raise ValueError(f"latent must be a whole number, got {self.latent!r}.")
        if self.how not in HOWS:
            raise ValueError(unknown("steering", str(self.how), HOWS))
        if self.how == "ablate":
            if self.value is not None:
                raise ValueError(f"ablate holds the latent at 0 and takes no value, got {self.value}; clamp takes one.")
        elif self.value is None:
            raise ValueError(f"{self.how} needs a value, in the latent's units; give one, or ablate the latent.")
        elif not math.isfinite(self.value):
            raise ValueError(f"value must be a finite number, got {self.value}.")

    def changed(self, z: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return z', the value that the latent gets where it has `z`."""
        if self.how == "add":
            return z + (self.value or 0.0)
        return torch.full_like(z, self.value or 0.0)


def check_steering(model: ModelHandle, site: Site | str, sae: Sae, latent: int) -> Site:
    """Return `site`, parsed, if the latent's atom can be added there.

    Raises:
        ValueError: another target, width or number of latents, a site that the model has not, or training mode.
    """
    place, kind = model.check_site(site), sae.config.target.kind
    if not sae.target.centred or kind == "crosscoder":
        raise ValueError(
            f"A latent of a {kind} reads {place} and writes somewhere else, so its atom cannot be added there. Steer "
            "by a dictionary that reconstructs its own input, or add the atom at its place by interp.hooks.patch."
        )
    if sae.d_in != model.width(place):
        raise ValueError(
            f"The dictionary reads d_in={sae.d_in} numbers, but {place} has {model.width(place)}. Give the site, and "
            "the model, that it was trained on."
        )
    if not 0 <= latent < sae.d_sae:
        raise ValueError(f"latent must lie in 0..d_sae-1={sae.d_sae - 1}, got {latent}.")
    if sae.training:
        raise ValueError("The dictionary is in training mode, where a code depends on its batch; call sae.eval().")
    return place


def latent_values(code: Code, latent: int) -> Float[Tensor, " batch"]:
    """Return one latent's value in each row of a code, 0 where it is silent."""
    values = torch.where(code.indices == latent, code.values, 0)
    if code.pointers is None:
        return values.sum(1)
    return values.new_zeros(len(code)).index_add(0, code.rows, values)


def values_at(sae: Sae, x: Float[Tensor, "*shape"], latent: int) -> Float[Tensor, "batch pos"]:
    """Return one latent's value at each position of a site's activation [batch pos ...]; 0 where x is not finite."""
    return _read(sae, x.flatten(2), latent)[0]


def _read(
    sae: Sae, x: Float[Tensor, "batch pos d_in"], latent: int
) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, "batch pos d_in"], Bool[Tensor, "batch pos"]]:
    """Return (value, what one unit of the latent writes in raw units, which rows are finite)."""
    finite = finite_rows(x)
    # Every row is encoded, also where few are changed: the products then have the shape that they have in a capture of
    # the same tokens, and a value that was read there comes out again to the last bit.
    rows = torch.where(finite[..., None], x, 0).flatten(0, 1).to(sae.W_dec.device, sae.W_dec.dtype)
    normalised, scale = sae.normaliser.into(rows)
    z = latent_values(sae.encode_normalised(normalised), latent).view(x.shape[:2])
    atom = (sae.unit()[2][latent] * scale.factor).expand_as(rows).reshape(x.shape)
    return torch.where(finite.to(z.device), z, 0), atom, finite.to(z.device)


@contextmanager
def steer(
    model: ModelHandle,
    site: Site | str,
    sae: Sae,
    latent: int,
    how: str = "clamp",
    value: float | None = None,
    *,
    positions: Positions = None,
    view: str = "hf",
) -> Iterator[None]:
    """Change one latent in every forward inside the context.

    Args:
        model: the model.
        site: where the dictionary belongs; heads are flattened for it.
        sae: the dictionary, in evaluation mode.
        latent: which latent.
        how: `clamp` (hold at `value`), `ablate` (hold at 0), or `add` (`value` times the atom).
        value: in the latent's units, negative too; not for `ablate`.
        positions: where, as numbers (negative ones from the end) or a mask [batch pos]. None changes every position but
            BOS, which dictionaries are not trained on.
        view: `hf` or `bridge`.

    Raises:
        ValueError: a dictionary, latent or value that does not fit; from the forward, a position outside of the text.
    """
    steering = Steering(latent, how, value)
    place = check_steering(model, site, sae, latent)

    def edit(x: Tensor) -> Tensor:
        flat = x.flatten(2)
        z, atom, finite = _read(sae, flat, latent)
        change = steering.changed(z) - z
        chosen = finite & (change != 0) & where(positions, x, model).to(z.device)
        moved = flat.to(atom.device, atom.dtype) + change[..., None] * atom
        return torch.where(chosen[..., None].to(x.device), moved.to(x.device, x.dtype), flat).view_as(x)

    with patch(model, place, edit, view=view):
        yield
