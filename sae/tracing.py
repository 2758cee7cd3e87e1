"""Where a latent comes from, through earlier dictionaries: attention latents, stream latents, and so on to the tokens.

    head_out latent at t    <- stream latents at every source s     through pattern, W_V and norm (`sae.attention`)
    resid_pre latent at s   <- head_out latents of the layer below at s     through W_O

Each step splits a pre-activation into the contributions of an earlier dictionary's active latents,

    contribution_j = value_j · factor · <W_dec[j], direction>,

and a rest: that dictionary's error and bias, what no dictionary was given for (the MLP, the stream below), the biases
of the way. The parts add up exactly with patterns and norms' scales held; they say nothing of what changes those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks import capture
from interp.models import ModelHandle
from interp.sites import Site
from sae.attention import check_heads, check_place, encoder, output_weights, stream_directions
from sae.model import Sae


@dataclass(frozen=True)
class Node:
    """One latent at one position, or (`latent` None) a position of the stream that no dictionary explains."""

    site: Site
    """Where."""
    latent: int | None
    """Which latent."""
    position: int
    """At which token."""
    contribution: float
    """To the pre-activation of the node above; the root's own pre-activation."""
    pre: float
    """Its own pre-activation (0 without a latent)."""
    children: tuple[Node, ...] = ()
    """The largest contributions to `pre`, largest first."""
    rest: float = 0.0
    """What of `pre` the children do not give."""


def trace(
    model: ModelHandle,
    tokens: Int[Tensor, " pos"],
    dictionaries: Mapping[Site | str, Sae],
    site: Site | str,
    latent: int,
    position: int,
    *,
    depth: int = 2,
    top: int | None = 5,
) -> Node:
    """Return the tree of contributions to the pre-activation of `latent` at `position`.

    Args:
        model: the model.
        tokens: one text.
        dictionaries: by site: head_out.L, resid_pre.L, or resid_post.L (which is resid_pre.L+1).
        site: where the root is.
        latent: the root's latent.
        position: the root's position; negative ones count from the end.
        depth: steps back.
        top: children kept at each node; None keeps all.

    Raises:
        ValueError: a site of another kind, a dictionary that does not fit, depth or top below 1.
    """
    if depth < 1 or (top is not None and top < 1):
        raise ValueError(f"depth and top must be 1 or more, got {depth} and {top}.")
    tracer = _Tracer(model, tokens, {_stream_site(model, place): sae for place, sae in dictionaries.items()}, top)
    root = _stream_site(model, site)
    if root not in tracer.saes:
        raise ValueError(f"There is no dictionary at {root}; there are {', '.join(map(str, tracer.saes)) or 'none'}.")
    at = check_place(tracer.saes[root], len(tokens), [latent], position)
    return tracer.node(root, latent, at, None, depth)


def _stream_site(model: ModelHandle, site: Site | str) -> Site:
    """Return `site`, the end of a block as the start of the next."""
    place = Site.parse(site)
    if place.kind == "resid_post" and place.layer + 1 < model.n_layers:
        return Site(place.layer + 1, "resid_pre")
    if place.kind not in ("head_out", "resid_pre"):
        raise ValueError(f"Dictionaries are traced at head_out, resid_pre and resid_post below the last, got {place}.")
    return model.check_site(place)


class _Tracer:
    """One text, run once, and what its dictionaries make of it."""

    def __init__(self, model: ModelHandle, tokens: Int[Tensor, " pos"], saes: dict[Site, Sae], top: int | None) -> None:
        self.model, self.saes, self.top = model, saes, top
        for place, sae in saes.items():
            if place.kind == "head_out":
                check_heads(model, place, sae)
            elif sae.d_in != model.d_model or sae.d_out != model.d_model:
                raise ValueError(f"The dictionary reads d_in={sae.d_in} numbers, but {place} has {model.d_model}.")
        layers = sorted({place.layer for place in saes})
        wanted = {*saes, *(Site(layer, kind) for layer in layers for kind in ("pattern", "resid_pre"))}
        with capture(model, sorted(wanted), view="bridge", stop=True) as found:
            model.forward(tokens[None], view="bridge")
        self.found = {place: value[0] for place, value in found.items()}
        self.codes: dict[Site, tuple[Tensor, Tensor]] = {}

    def node(self, site: Site, latent: int, position: int, contribution: float | None, depth: int) -> Node:
        """Return the node of a latent with what it is made of."""
        sae, rows = self.saes[site], self.found[site].flatten(1)
        with torch.no_grad():
            row = rows[position : position + 1]
            reading, constant = encoder(sae, row, [latent])
            pre = float((reading[0, 0] * row[0]).sum() + constant[0, 0])
            found = self._parts(site, reading[0], position) if depth > 0 else []
        found.sort(key=lambda part: -abs(part[3]))
        children = []
        for place, index, at, value in found[: self.top]:
            if index is None:
                children.append(Node(place, None, at, value, 0.0))
            else:
                children.append(self.node(place, index, at, value, depth - 1))
        given = sum(child.contribution for child in children)
        return Node(
            site, latent, position, pre if contribution is None else contribution, pre, tuple(children), pre - given
        )

    def _parts(
        self, site: Site, reading: Float[Tensor, "one d_in"], position: int
    ) -> list[tuple[Site, int | None, int, float]]:
        """Return [(site, latent, position, contribution)] one step back."""
        if site.kind == "head_out":
            stream = Site(site.layer, "resid_pre")
            pattern = self.found[Site(site.layer, "pattern")][:, position]
            directions, _ = stream_directions(self.model, site.layer, reading, pattern, self.found[stream])
            if stream not in self.saes:
                sums = (directions[0] * self.found[stream]).sum(-1)
                return [(stream, None, at, float(value)) for at, value in enumerate(sums[: position + 1])]
            return self._latents(stream, directions[0])
        below = Site(site.layer - 1, "head_out") if site.layer else None
        if below is None or below not in self.saes:
            return []
        direction = torch.zeros(len(self.found[below]), self.model.width(below), dtype=reading.dtype)
        direction[position] = output_weights(self.model, below.layer) @ reading[0]
        return self._latents(below, direction)

    def _latents(self, site: Site, directions: Float[Tensor, "pos d"]) -> list[tuple[Site, int | None, int, float]]:
        """Return the contributions of all active latents at `site` along `directions`."""
        dense, factor = self._code(site)
        atoms = self.saes[site].unit()[2].detach()
        parts = dense * ((directions * factor) @ atoms.T)
        places = parts.nonzero().tolist()
        return [(site, latent, at, float(parts[at, latent])) for at, latent in places]

    def _code(self, site: Site) -> tuple[Float[Tensor, "pos d_sae"], Tensor]:
        """Return (values of every latent at every position, what one unit of a normalised row is in raw units)."""
        if site not in self.codes:
            sae = self.saes[site]
            rows, scale = sae.normaliser.into(self.found[site].flatten(1).to(sae.W_enc.dtype))
            self.codes[site] = sae.encode_normalised(rows).dense(), sae.target.scale(scale).factor
        return self.codes[site]
