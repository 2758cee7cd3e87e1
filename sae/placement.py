"""Where a dictionary stands in a model: which activations make up its rows, and which its reconstruction is of.

    plain, end to end   reads a site,          writes the same
    transcoder          reads a site,          writes a later one
    crosscoder          reads several sites,   writes the same; with two models, those of both

A reconstruction is always of a clean pass. At one site that is what `interp.hooks.splice` puts there, and for a
transcoder what `sae.splicing.splice_transcoder` writes, since nothing before the site that is written has changed; for
a crosscoder it is `sae.splicing.reconstruct`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks import capture
from interp.models import ModelHandle
from interp.sites import Site
from interp.types import Dictionary

if TYPE_CHECKING:
    from collections.abc import Iterable

Found = tuple[dict[Site, Tensor], ...]
"""Activations [batch pos d], heads side by side: a dictionary from site for each model."""


@dataclass(frozen=True, eq=False)
class Placement:
    """A dictionary's place. Rows are all sites of the first model side by side, then those of the second."""

    models: tuple[ModelHandle, ...]
    """The model, or two."""
    reads: tuple[Site, ...]
    """Sites of each model that make up a row."""
    writes: tuple[Site, ...]
    """Sites of each model that the reconstruction is of."""

    @classmethod
    def of(cls, handle: ModelHandle, site: Site | str | Placement, target_site: Site | str | None = None) -> Placement:
        """Return the place of what reads `site` and writes `target_site` (None: the same); a place is returned as is.

        Raises:
            ValueError: the model has no such site, or the one that is written is not computed after the one read.
        """
        if isinstance(site, Placement):
            return site
        source = handle.check_site(site)
        goal = source if target_site is None else handle.check_site(target_site)
        if target_site is not None and goal <= source:
            raise ValueError(f"A transcoder writes at a site that is computed after {source}, which {goal} is not.")
        return cls((handle,), (source,), (goal,))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites that are read or written, as the model computes them."""
        return tuple(sorted({*self.reads, *self.writes}))

    @property
    def blocks(self) -> tuple[tuple[int, Site], ...]:
        """(number of the model, site) of each block of a reconstruction."""
        return tuple((number, site) for number in range(len(self.models)) for site in self.writes)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each block: its site, with two models behind a. or b."""
        both = len(self.models) > 1
        return tuple(f"{'ab'[number]}.{site}" if both else str(site) for number, site in self.blocks)

    def widths(self, sites: Iterable[Site]) -> list[int]:
        """Return the width of each block that `sites` make up."""
        sites = tuple(sites)
        return [handle.width(site) for handle in self.models for site in sites]

    def check(self, sae: Dictionary) -> None:
        """Refuse a dictionary of other widths.

        Raises:
            ValueError: with both widths.
        """
        for sites, name, width in ((self.reads, "d_in", sae.d_in), (self.writes, "d_out", _d_out(sae))):
            found = self.widths(sites)
            if sum(found) != width:
                where = ", ".join(map(str, sites)) + (" of two models" if len(self.models) > 1 else "")
                raise ValueError(f"The dictionary has {name}={width} numbers, but {where} has {sum(found)}.")
        config = getattr(sae, "config", None)
        blocks = [] if config is None else list(config.target.blocks)
        if blocks and blocks != self.widths(self.reads):
            raise ValueError(
                f"The dictionary reads blocks of {blocks}, the sites have {self.widths(self.reads)}; name the sites "
                "that it was trained on, in that order."
            )

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> tuple[list[Float[Tensor, "batch pos d_vocab"]], Found]:
        """Return (logits of each model, activations at `sites`) of a clean pass."""
        logits, found = [], []
        for handle in self.models:
            with capture(handle, self.sites) as taken:
                logits.append(handle.logits(tokens.to(handle.device)))
            found.append({site: taken[site].flatten(2) for site in self.sites})
        return logits, tuple(found)

    def activations(self, tokens: Int[Tensor, "batch pos"], sites: tuple[Site, ...] | None = None) -> Found:
        """Return the activations at `sites` (None: all) of a clean pass that ends there."""
        wanted, found = sites or self.sites, []
        for handle in self.models:
            with capture(handle, wanted, stop=True) as taken:
                handle.forward(tokens.to(handle.device))
            found.append({site: taken[site].flatten(2) for site in wanted})
        return tuple(found)

    def rows(self, found: Found) -> Float[Tensor, "batch pos d_in"]:
        """Return what the dictionary reads."""
        parts = [taken[site] for taken in found for site in self.reads]
        return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0]) for part in parts], dim=-1)

    def parts(self, rows: Float[Tensor, "*batch d_out"]) -> tuple[Float[Tensor, "*batch _"], ...]:
        """Return the blocks of a reconstruction, or of atoms."""
        return rows.split(self.widths(self.writes), dim=-1)


def _d_out(sae: Dictionary) -> int:
    """Return the width of what a dictionary writes."""
    return int(getattr(sae, "d_out", sae.d_in))
