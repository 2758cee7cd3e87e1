"""Running a model with a dictionary whose target is not its input: transcoders and crosscoders.

    transcoder   y at one site is replaced by y_hat(x), x read at an earlier site in the same pass
    crosscoder   a code is of several sites at once, so it is taken from a clean pass; then its reconstruction replaces
                 the activation at one site, or at several

A dictionary that reconstructs what it reads is spliced by `interp.hooks.splice`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks import fitting_mask, patch
from interp.models import ModelHandle
from interp.sites import Site, parse_sites
from sae.model import Sae
from sae.placement import Placement


@contextmanager
def splice_transcoder(
    model: ModelHandle,
    site: Site | str,
    target_site: Site | str,
    sae: Sae,
    *,
    keep: Bool[Tensor, "batch pos"] | None = None,
    error: bool = False,
    view: str = "hf",
) -> Iterator[None]:
    """Replace the activation at `target_site` by what `sae` writes for the activation at `site`, in every forward.

    Args:
        model: the model.
        site: what is read, such as resid_mid.2.
        target_site: what is written, such as mlp_out.2; computed after `site`.
        sae: a transcoder from the one to the other.
        keep: True where it is replaced; the other positions pass through untouched and are never read.
        error: add the error y - y_hat back as a constant: the value is y, the gradient runs through the transcoder.
        view: `hf` or `bridge`.

    Raises:
        ValueError: widths or sites that do not fit.
    """
    source, goal = model.check_site(site), model.check_site(target_site)
    if goal <= source:
        raise ValueError(f"A transcoder writes at a site that is computed after {source}, which {goal} is not.")
    for place, width, name in ((source, sae.d_in, "d_in"), (goal, sae.d_out, "d_out")):
        if model.width(place) != width:
            raise ValueError(f"The transcoder has {name}={width}, but {place} has {model.width(place)}.")
    read: list[Tensor] = []

    def remember(value: Tensor) -> Tensor:
        read[:] = [value.flatten(2)]
        return value

    def write(value: Tensor) -> Tensor:
        flat, x = value.flatten(2), read.pop()
        chosen = torch.ones(flat.shape[:2], dtype=torch.bool, device=flat.device) if keep is None else keep
        chosen = fitting_mask(chosen, flat, "keep")
        if not chosen.any():
            return value
        y_hat = sae.forward(x[chosen].to(sae.W_enc.dtype))[0].to(flat.dtype)
        if error:
            y_hat = flat[chosen].detach() + (y_hat - y_hat.detach())
        return flat.index_put(chosen.nonzero(as_tuple=True), y_hat).view_as(value)

    with patch(model, source, remember, view=view), patch(model, goal, write, view=view):
        yield


@torch.no_grad()
def reconstruct(
    models: Sequence[ModelHandle],
    sites: Sequence[Site | str],
    sae: Sae,
    tokens: Int[Tensor, "batch pos"],
    keep: Bool[Tensor, "batch pos"] | None = None,
) -> list[dict[Site, Float[Tensor, "batch pos _"]]]:
    """Return, model by model, what a crosscoder makes of the clean activations at its sites.

    Positions outside of `keep` are the activations themselves. The blocks of a row are all sites of the first model,
    in the order given, then those of the second.

    Raises:
        ValueError: the sites do not make up the rows that `sae` reads.
    """
    places = tuple(parse_sites(sites))
    place = Placement(tuple(models), places, places)
    place.check(sae)
    found = place.activations(tokens, places)
    whole = place.rows(found).to(sae.W_enc.device, sae.W_enc.dtype)
    chosen = fitting_mask(torch.ones(tokens.shape, dtype=torch.bool) if keep is None else keep, whole, "keep")
    if chosen.any():
        whole = whole.index_put(chosen.nonzero(as_tuple=True), sae.forward(whole[chosen])[0])
    out: list[dict[Site, Tensor]] = [{} for _ in models]
    for (number, site), part in zip(place.blocks, place.parts(whole), strict=True):
        out[number][site] = part.to(found[number][site])
    return out


@contextmanager
def put(model: ModelHandle, values: Mapping[Site, Float[Tensor, "batch pos _"]], *, view: str = "hf") -> Iterator[None]:
    """Replace the activations at the sites of `values` by what is there, heads flattened, in every forward."""
    with ExitStack() as stack:
        for site, value in values.items():
            stack.enter_context(patch(model, site, lambda x, new=value: new.view_as(x), view=view))
        yield
