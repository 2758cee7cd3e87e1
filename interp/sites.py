"""Sites: the places in a transformer where activations are read and changed.

A site is a layer and a kind, written `resid_post.2`. A pre-norm block computes

    resid_mid = resid_pre + attn_out,   attn_out = head_out W_O + b_O,   head_out_h = pattern_h v_h
    resid_post = resid_mid + mlp_out,   mlp_out = mlp_act W_out + b_out

`head_out` is what transformer-lens calls `z`: the output of each head before W_O. `q` and `k` are taken before rotary
positions are applied. Blocks whose attention and MLP read the stream side by side (GPT-NeoX) have no `resid_mid`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from interp.names import unknown

LENS_NAMES = {
    "resid_pre": "hook_resid_pre",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "head_out": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_act": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
"""Kind -> name within `blocks.N` of transformer-lens, in the order in which a block computes them."""

KINDS = tuple(LENS_NAMES)
"""Every kind of site, in the order in which a block computes them."""

STREAM = ("resid_pre", "resid_mid", "resid_post")
"""Kinds that cut the model: everything that differs between two runs passes through all positions of one of them."""

WITH_HEADS = ("q", "k", "v", "pattern", "head_out")
"""Kinds whose activations have an axis of heads; those of k and v are the key-value heads."""

_FROM_LENS = {name: kind for kind, name in LENS_NAMES.items()}
_FORMS = (re.compile(r"(?P<kind>\w+)\.(?P<layer>\d+)"), re.compile(r"blocks\.(?P<layer>\d+)\.(?P<lens>.+)"))


@functools.total_ordering
@dataclass(frozen=True)
class Site:
    """One place in a transformer; sites sort in the order in which they are computed."""

    layer: int
    """Block, counted from 0."""
    kind: str
    """One of `KINDS`."""

    def __post_init__(self) -> None:
        if self.kind not in LENS_NAMES:
            raise ValueError(unknown("site kind", self.kind, KINDS))
        if not isinstance(self.layer, int) or isinstance(self.layer, bool) or self.layer < 0:
            raise ValueError(f"A site's layer is a whole number from 0 on, got {self.layer!r}.")

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Return the site that `text` names: `resid_post.2`, or transformer-lens' `blocks.2.hook_resid_post`.

        Raises:
            ValueError: if it has neither form or the kind is unknown (with the nearest match).
        """
        if isinstance(text, Site):
            return text
        match = next((m for form in _FORMS if (m := form.fullmatch(str(text).strip()))), None)
        if match is None:
            raise ValueError(
                f"A site is written KIND.LAYER, such as resid_post.2 (or blocks.2.hook_resid_post), got {text!r}. "
                f"Kinds: {', '.join(KINDS)}."
            )
        found = match.groupdict()
        if "lens" in found:
            if found["lens"] not in _FROM_LENS:
                raise ValueError(unknown("transformer-lens site", found["lens"], _FROM_LENS))
            return cls(int(found["layer"]), _FROM_LENS[found["lens"]])
        return cls(int(found["layer"]), found["kind"])

    @property
    def lens_name(self) -> str:
        """The name in transformer-lens, such as `blocks.2.hook_resid_post`."""
        return f"blocks.{self.layer}.{LENS_NAMES[self.kind]}"

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    def __lt__(self, other: Site) -> bool:
        if not isinstance(other, Site):
            return NotImplemented
        return (self.layer, KINDS.index(self.kind)) < (other.layer, KINDS.index(other.kind))


@dataclass(frozen=True)
class Cell:
    """An activation, or a part of it; None means all of that axis."""

    kind: str
    """Kind of the site, of `KINDS`."""
    layer: int
    """Block, counted from 0."""
    pos: int | None = None
    """Position; negative ones count from the end. Of `pattern`: the query."""
    head: int | None = None
    """Head, of `WITH_HEADS` (key-value heads for k and v)."""
    neuron: int | None = None
    """Neuron, of `mlp_act`."""

    @functools.cached_property
    def site(self) -> Site:
        """The site that it is a part of."""
        return Site(self.layer, self.kind)

    @property
    def part(self) -> int | None:
        """Index of the head or neuron, whichever its kind has."""
        return self.head if self.kind in WITH_HEADS else self.neuron

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Cell:
        """Return the cell of a row of `Attribution.nodes` (as a dictionary); other columns are not looked at.

        Raises:
            ValueError: the row is a latent's, which is no part of an activation.
        """
        if row.get("latent") is not None:
            raise ValueError("A latent of a dictionary is no cell of the model; splice the dictionary in to patch it.")
        numbers = {name: row.get(name) for name in ("pos", "head", "neuron")}
        return cls(
            row["kind"], int(row["layer"]), **{k: None if v is None or v != v else int(v) for k, v in numbers.items()}
        )


def parse_sites(sites: Site | str | Iterable[Site | str]) -> list[Site]:
    """Return a list of distinct sites, in the order given, from one site or several."""
    given = [sites] if isinstance(sites, Site | str) else list(sites)
    if not given:
        raise ValueError("At least one site is needed, got none. A site is written KIND.LAYER, such as resid_post.2.")
    return list(dict.fromkeys(Site.parse(site) for site in given))
