"""Integrated gradients of each layer's output, with what they should add up to (Sundararajan et al. 2017).

    IG[t] = sum over d of (x_t - b)_d · mean over r of dP/dx_t at b + r (x - b),     sum over t of IG[t] = P(x) - P(b)

x is what a block, its attention or its MLP puts out, at all positions at once and everything before it as it was; P is
the sum of the probabilities of the answers, the last tokens of the text. The baseline b is the mean of x over the
positions of the same text (Csordas, Manning and Potts 2025, who take r = k / 256, the left rule, whose gap is of order
1/steps). The midpoint rule r = (k + 1/2) / steps leaves 1/steps^2, once the steps are finer than what P does on its
way: with a few they may miss a sudden rise altogether. Look at `gap`, or give `most_steps`. Position 0 stays as it is
and gives nothing unless `move_first`: its norm would decide the mean. For pairs of prompts see
`interp.attribution.estimates`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.layers.suffix import Base, Suffix
from interp.models.handle import ModelHandle
from interp.names import unknown
from interp.sites import Site

TOLERANCE = 0.01
"""Gap, as a share of the change (or of 0.01, where the change is less), above which more points are taken."""
KINDS = ("resid_post", "attn_out", "mlp_out")
"""What moves along the path: a block's output, its attention's or its MLP's."""
RULES = {"midpoint": 0.5, "left": 0.0}
"""Rule -> where in its interval the gradient is taken."""


@dataclass(frozen=True, eq=False)
class PathScore:
    """Integrated gradients at one site of one text."""

    site: Site
    """What moved."""
    scores: Float[Tensor, " pos"]
    """IG of each position, in units of probability."""
    change: float
    """P(x) - P(b), what the scores should add up to."""
    output: float
    """P(x), the sum of the probabilities of the answers."""
    steps: int
    """Points of the path."""

    @property
    def total(self) -> float:
        """What the scores add up to."""
        return float(self.scores.sum())

    @property
    def gap(self) -> float:
        """How far that is from `change`."""
        return self.total - self.change


def layer_path_gradients(
    handle: ModelHandle,
    tokens: Int[Tensor, "*one pos"],
    *,
    kinds: Sequence[str] = ("resid_post",),
    answers: int = 1,
    steps: int = 64,
    most_steps: int = 0,
    rule: str = "midpoint",
    move_first: bool = False,
    batch: int = 16,
    suffix: Suffix | None = None,
) -> list[PathScore]:
    """Return the integrated gradients of every layer for one text.

    Args:
        handle: the model.
        tokens: ids of one text without padding, its answers at the end.
        kinds: what moves, of `KINDS`, one at a time.
        answers: how many tokens at the end are answers.
        steps: points of the path.
        most_steps: at sites where the scores miss their sum (`TOLERANCE`), four times the points are taken, again and
            again while this allows it.
        rule: `midpoint` or `left`.
        move_first: let position 0 move too, and count in the mean, as published.
        batch: points in one forward and backward.
        suffix: what runs the blocks, made of texts one shorter than `tokens`; None makes one.

    Raises:
        ValueError: an unknown kind or rule, steps below 1, or more than one text.
    """
    tokens = tokens.reshape(-1, tokens.shape[-1])
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(unknown("kind of layer output", str(kind), KINDS))
    if rule not in RULES:
        raise ValueError(unknown("rule", str(rule), RULES))
    if len(tokens) != 1 or steps < 1 or not 1 <= answers < tokens.shape[1]:
        raise ValueError(
            "Layer gradients take one text, 1 or more steps and fewer answers than tokens; got "
            f"{len(tokens)} texts of {tokens.shape[1]}, steps={steps}, answers={answers}."
        )
    with torch.inference_mode(False):  # what is made in inference mode cannot be differentiated
        ids = tokens.clone().to(handle.device, torch.long)
        read, targets = ids[:, :-1].contiguous(), ids[0, -answers:]
        suffix = Suffix(handle, read) if suffix is None else suffix
        with torch.no_grad():
            base = suffix.base(read)
        path = _Path(suffix, base, targets, RULES[rule], batch)
        sites = [Site(layer, kind) for kind in kinds for layer in range(handle.n_layers)]
        return [path.refined(site, move_first, steps, most_steps) for site in sites]


@dataclass(frozen=True, eq=False)
class _Path:
    """One text, and where in its interval a point of the path lies."""

    suffix: Suffix
    base: Base
    targets: Int[Tensor, " answer"]
    shift: float
    batch: int

    def refined(self, site: Site, move_first: bool, steps: int, most: int) -> PathScore:
        """Return the integrated gradients at `site`, with more points while they miss their sum."""
        found = self.score(site, move_first, steps)
        while abs(found.gap) > TOLERANCE * max(abs(found.change), 0.01) and 4 * found.steps <= most:
            found = self.score(site, move_first, 4 * found.steps)
        return found

    def score(self, site: Site, move_first: bool, steps: int) -> PathScore:
        """Return the integrated gradients at `site`."""
        source = {"resid_post": self.base.stream[1:], "attn_out": self.base.attn, "mlp_out": self.base.mlp}
        x = source[site.kind][site.layer].detach().clone()
        baseline = x.clone()
        first = 0 if move_first else 1
        baseline[:, first:] = x[:, first:].mean(1, keepdim=True)
        way = x - baseline
        gradient = torch.zeros_like(x)
        for points in ((torch.arange(steps, device=x.device) + self.shift) / steps).split(self.batch):
            at = baseline + points.to(x)[:, None, None] * way
            at.requires_grad_()
            (found,) = torch.autograd.grad(self._answers(site, at, grad=True).sum(), at)
            gradient += found.sum(0, keepdim=True)
        ends = self._answers(site, torch.cat([x, baseline]), grad=False)
        scores = (way * gradient / steps).sum(-1)[0]
        return PathScore(site, scores.detach(), float(ends[0] - ends[1]), float(ends[0]), steps)

    def _answers(self, site: Site, x: Float[Tensor, "row pos d"], grad: bool) -> Float[Tensor, " row"]:
        """Return the sum of the answers' probabilities with `x` at `site`."""
        tokens = self.base.tokens.expand(len(x), -1)
        options: dict[str, Any] = {"reads": len(self.targets), "grad": grad}
        if site.kind == "resid_post":
            found = self.suffix.run(x, site.layer + 1, tokens, **options)
        else:
            before = self.base.stream[site.layer].expand(len(x), -1, -1)
            found = self.suffix.run(before, site.layer, tokens, edits={site: x}, **options)
        if found.logits is None:
            raise ValueError("A hook ended the forward before the output; close it first.")
        p = found.logits.float().softmax(-1)
        return p.gather(2, self.targets.expand(len(x), -1)[..., None]).sum((1, 2))


def position_rows(found: Sequence[PathScore]) -> Iterator[tuple[str, int, int, float]]:
    """Yield (kind, layer, position, score) of every position."""
    for one in found:
        for position, score in enumerate(one.scores.tolist()):
            yield one.site.kind, one.site.layer, position, score
