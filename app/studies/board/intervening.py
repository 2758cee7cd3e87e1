"""Interventions on one square: the probe's view of it is changed in the stream, at one layer or at several.

With u = W_target - W_source of a square at a layer, and m = u . x + b_target - b_source the probe's margin, an edit at
the last position of the game adds

    median   (m* - m) u / |u|^2     m* the median margin of rows whose square is in the state `target`
    negate   (|m0| - m) u / |u|^2   m0 the margin without any edit: as sure as before, of the other state
    add      s W_target / |W_target|                    (Nanda, Lee and Wattenberg 2023, arXiv 2309.00941)
    random   a random direction, as long as what `median` adds there

The first two reach their margin exactly, by the least change of x that does. At several layers each sees what the edits
before it have left, so that little is done where the margin is nearly reached already.

Wrong moves are counted by `app.studies.board.cases.wrong_moves` on the changed board; the null is the same count
without an edit (Li et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from app.studies.board.cases import Cases
from app.studies.board.positions import STATES, TURN, columns_of
from interp.hooks import capture, patch
from interp.models import ModelHandle
from interp.names import unknown
from interp.sites import Site
from probes.board import BoardProbe

MODES = ("median", "negate", "add", "random")
"""How a square is changed."""
PIECE = 2048


@dataclass(frozen=True, eq=False)
class SquareProbe:
    """The directions of the squares at every layer, and the margins that are usual there."""

    sites: list[Site]
    """Where each layer of the probe reads."""
    weight: Float[Tensor, "site d square state"]
    """Directions; states are empty, mine, theirs."""
    bias: Float[Tensor, "site square state"]
    """Biases."""
    median: Float[Tensor, "site square state other"]
    """Median of score(state) - score(other) over rows whose square is in `state`; NaN where none is."""

    @classmethod
    def of(
        cls,
        probe: BoardProbe,
        sites: Sequence[Site],
        X: Float[Tensor, "row site d"],
        Y: Int[np.ndarray, "row task"],
        squares: int,
        label: str = TURN,
    ) -> SquareProbe:
        """Return the directions of one label of a probe fitted to `all_labels`, with medians over the rows X, Y."""
        columns = columns_of(label, squares)
        pieces = [probe.decision_function(piece)[:, :, columns] for piece in X.split(PIECE)]
        scores, truth = torch.cat(pieces), torch.from_numpy(np.asarray(Y)[:, columns])
        median = torch.full((len(sites), squares, len(STATES), len(STATES)), torch.nan)
        for state in range(len(STATES)):
            margins = scores[..., [state]] - scores
            held = torch.where((truth == state)[:, None, :, None], margins, torch.nan)
            median[:, :, state] = held.nanmedian(0).values
        return cls(list(sites), probe.coef_[:, :, columns], probe.intercept_[:, columns], median)

    def probabilities(self, x: Float[Tensor, "row site d"]) -> Float[Tensor, "row site square state"]:
        """Return what each layer takes each square for."""
        return (torch.einsum("nld,ldsk->nlsk", x, self.weight) + self.bias).softmax(-1)


@dataclass(frozen=True)
class Edit:
    """What is done, and at which sites."""

    mode: str
    """One of `MODES`."""
    sites: tuple[Site, ...]
    """Where."""
    scale: float = 1.0
    """Length of what `add` adds."""
    seed: int = 0
    """Of the directions of `random`."""

    def __post_init__(self) -> None:
        """Refuse an unknown mode, and an edit nowhere."""
        if self.mode not in MODES:
            raise ValueError(unknown("mode", self.mode, MODES))
        if not self.sites:
            raise ValueError("An edit needs a site at least; name one that the probe reads.")


@dataclass(frozen=True, eq=False)
class Edited:
    """What the model says after an edit."""

    logits: Float[Tensor, "case token"]
    """At the position that was edited."""
    lengths: dict[Site, Float[Tensor, " case"]]
    """Length of what was added at each site."""
    shares: dict[Site, Float[Tensor, " case"]]
    """The same as a share of the activation's length."""


class Editor:
    """Cases that one probe edits in one model."""

    def __init__(self, handle: ModelHandle, probe: SquareProbe, cases: Cases) -> None:
        """Read the activations without any edit.

        Raises:
            ValueError: activations that are not finite.
        """
        self.handle, self.probe, self.cases = handle, probe, cases
        self.length = int(cases.move.max()) + 1
        self.rows = torch.arange(len(cases))
        self.at = torch.from_numpy(cases.move)
        with capture(handle, probe.sites) as cache:
            self.clean_logits = self._last(handle.logits(self._tokens()))
        self.clean = {site: self._last(cache[site]).float() for site in probe.sites}
        for site, value in self.clean.items():
            if not torch.isfinite(value).all():
                raise ValueError(f"{handle.spec.name} is not finite at {site}; check its weights.")

    def _tokens(self) -> Tensor:
        return self.cases.tokens[:, : self.length].to(self.handle.device)

    def _last(self, value: Tensor) -> Tensor:
        return value.detach().cpu()[self.rows, self.at]

    def run(self, edit: Edit) -> Edited:
        """Return what the model says with an edit.

        Raises:
            ValueError: a site that the probe does not read.
        """
        if edit.mode != "random":
            return self._run(edit, lambda site, x: self._delta(edit, site, x))
        like = self._run(Edit("median", edit.sites), lambda site, x: self._delta(Edit("median", edit.sites), site, x))
        return self._run(edit, lambda site, _: like.lengths[site][:, None] * self._directions(site, edit.seed))

    def _run(self, edit: Edit, delta: Callable[[Site, Tensor], Tensor]) -> Edited:
        lengths: dict[Site, Tensor] = {}
        shares: dict[Site, Tensor] = {}

        def change(site: Site, value: Tensor) -> Tensor:
            x = value[self.rows, self.at].float().cpu()
            added = delta(site, x)
            lengths[site] = added.norm(dim=-1)
            shares[site] = lengths[site] / x.norm(dim=-1)
            value[self.rows, self.at] = (x + added).to(value)
            return value

        with ExitStack() as stack:
            for site in edit.sites:
                if site not in self.probe.sites:
                    raise ValueError(unknown("site of the probe", str(site), list(map(str, self.probe.sites))))
                stack.enter_context(patch(self.handle, site, lambda value, site=site: change(site, value)))
            logits = self._last(self.handle.logits(self._tokens()))
        return Edited(logits, lengths, shares)

    def _delta(self, edit: Edit, site: Site, x: Float[Tensor, "case d"]) -> Float[Tensor, "case d"]:
        """Return what `edit` adds to the activations x at a site."""
        target = self.direction(site, self.cases.target)
        if edit.mode == "add":
            return edit.scale * target / target.norm(dim=-1, keepdim=True)
        u = target - self.direction(site, self.cases.source)
        wanted = self._median(site) if edit.mode == "median" else self.margin(site, self.clean[site]).abs()
        return (wanted - self.margin(site, x))[:, None] * u / u.square().sum(-1, keepdim=True)

    def direction(self, site: Site, state: np.ndarray) -> Float[Tensor, "case d"]:
        """Return the probe's direction of a state of each case's square."""
        return self.probe.weight[self.probe.sites.index(site)][:, self.cases.square, state].T

    def margin(self, site: Site, x: Float[Tensor, "case d"]) -> Float[Tensor, " case"]:
        """Return score(target) - score(source) of each case's square in activations of a site."""
        u = self.direction(site, self.cases.target) - self.direction(site, self.cases.source)
        bias = self.probe.bias[self.probe.sites.index(site)]
        offset = bias[self.cases.square, self.cases.target] - bias[self.cases.square, self.cases.source]
        return (x * u).sum(-1) + offset

    def _median(self, site: Site) -> Float[Tensor, " case"]:
        held = self.probe.median[self.probe.sites.index(site)]
        found = held[self.cases.square, self.cases.target, self.cases.source]
        if torch.isnan(found).any():
            raise ValueError("A square never has the wanted state in the rows of the probe; fit it on more games.")
        return found

    def _directions(self, site: Site, seed: int) -> Float[Tensor, "case d"]:
        generator = torch.Generator().manual_seed(1000003 * seed + self.probe.sites.index(site))
        drawn = torch.randn(self.clean[site].shape, generator=generator)
        return drawn / drawn.norm(dim=-1, keepdim=True)


def edits_of(sites: Sequence[Site], modes: Mapping[str, Sequence[float]], seed: int) -> list[tuple[str, Edit]]:
    """Return every edit of a study with how far it reaches: `one` site, or `onward` from a site to the last.

    Args:
        sites: where edits are made, in the order of the layers.
        modes: for each mode its scales (one number, unused, but for `add`).
        seed: of the random directions.
    """
    found = []
    for first in range(len(sites)):
        reaches = {"one": (sites[first],), "onward": tuple(sites[first:])}
        for reach, chosen in reaches.items():
            if reach == "onward" and len(chosen) == 1:
                continue
            found += [(reach, Edit(mode, chosen, scale, seed)) for mode, scales in modes.items() for scale in scales]
    return found
