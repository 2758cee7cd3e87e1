"""Places in a model as the command line writes them: KIND.LAYER[:PART,...][@POSITION,...].

head_out.2:1,3      heads 1 and 3          k.1:0@5        key of head 0 at position 5
mlp_act.1:40        neuron 40              resid_pre.3@-1 the last position
resid_post.2:17     latent 17 of the dictionary that reads there
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.attribution import Cell
    from interp.attribution.relevance import Through
    from interp.models import ModelHandle
    from interp.sites import Site
    from interp.types import Dictionary

_FORM = re.compile(r"(?P<site>[^:@]+)(:(?P<parts>\d+(,\d+)*))?(@(?P<positions>-?\d+(,-?\d+)*))?")


@dataclass(frozen=True)
class Place:
    """A site, and parts or positions of it; None is all of them."""

    site: Site
    """The site."""
    parts: tuple[int, ...] | None = None
    """Heads, neurons or latents, as the site has them."""
    positions: tuple[int, ...] | None = None
    """Positions; negative ones count from the end."""

    @classmethod
    def parse(cls, text: str) -> Place:
        """Return the place that `text` names.

        Raises:
            ValueError: it has another form, or the kind of site is unknown.
        """
        from interp.sites import Site

        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"A place is written KIND.LAYER[:PART,...][@POSITION,...], such as head_out.2:1,3, got {text!r}."
            )
        parts, positions = (
            None if found is None else tuple(int(number) for number in found.split(","))
            for found in (match["parts"], match["positions"])
        )
        return cls(Site.parse(match["site"]), parts, positions)

    def cells(self) -> list[tuple[Cell, ...]]:
        """Return a sender or receiver of path patching for each head or neuron; all its positions together."""
        from interp.attribution import Cell

        name = "neuron" if self.site.kind == "mlp_act" else "head"
        return [
            tuple(Cell(self.site.kind, self.site.layer, pos, **{name: part}) for pos in self.positions or (None,))
            for part in self.parts or (None,)
        ]

    def through(self, handle: ModelHandle, dictionaries: Mapping[Site, Dictionary]) -> Through:
        """Return the condition that relevance runs through this place.

        Raises:
            ValueError: parts are named where there are neither heads nor neurons, nor a dictionary of the site.
        """
        from interp.attribution.relevance import Through
        from interp.sites import WITH_HEADS

        handle.check_site(self.site)
        if self.parts is None or self.site.kind in WITH_HEADS:
            return Through(self.site, heads=self.parts, positions=self.positions)
        if self.site.kind == "mlp_act" and self.site not in dictionaries:
            return Through(self.site, neurons=self.parts, positions=self.positions)
        if self.site not in dictionaries:
            raise ValueError(
                f"{self.site} has neither heads nor neurons; its latents need the dictionary that reads there: --sae."
            )
        read = dictionaries[self.site]
        return Through(self.site, latents=self.parts, positions=self.positions, dictionary=read)


def all_heads(handle: ModelHandle) -> list[Place]:
    """Return every head of the model, as what it puts out."""
    from interp.sites import Site

    heads = tuple(range(handle.n_heads))
    return [Place(Site(layer, "head_out"), heads) for layer in range(handle.n_layers)]
