"""What the study of an Othello model is asked for on the command line. Light: no numpy, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAST_GAMES = 20
"""Games below which a fifth of them, the test part, has no interval worth the name."""


@dataclass(frozen=True)
class BoardOptions:
    """A board study: how many games, at which layers, which dictionaries, how many interventions."""

    games: int = 2000
    """Random games; probes and dictionaries are fitted on four fifths of them and tested on the rest."""
    layers: tuple[int, ...] = ()
    """Blocks after which the stream is read and changed, from 0; () takes all. The embeddings are always read."""
    seed: int = 0
    """Of games, split, probes, dictionaries and draws."""
    epochs: int = 4
    """Passes of the probes over their rows."""
    dictionaries: tuple[str, ...] = ()
    """Runs of `mechscope train` on this model that are compared, beside those the study trains."""
    site: str | None = None
    """Where the study's own dictionaries read; None takes resid_post at 2/3 of the depth."""
    latents: int = 768
    """Latents of the study's own dictionaries (the model's, and one of shuffled weights); 0 trains none."""
    active: int = 32
    """Latents that are on in each row of these (TopK)."""
    edits: int = 200
    """Positions of the test games on which one square is changed, for each kind of change; 0 leaves them out."""
    scales: tuple[float, ...] = (2.3, 20.0)
    """Lengths of the vector along the probe's direction that additive edits add, in units of the stream."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name, least in (("games", LEAST_GAMES), ("epochs", 1), ("latents", 0), ("active", 1), ("edits", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}.")
        if self.latents and self.active > self.latents:
            raise ValueError(f"active must lie in 1..latents={self.latents}, got {self.active}.")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}.")
        if any(layer < 0 for layer in self.layers) or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers must be different numbers from 0 on, got {list(self.layers)}.")
        if any(not (0 < scale < math.inf) for scale in self.scales):
            raise ValueError(f"scales must be above 0, got {list(self.scales)}.")
