"""Hyperplane edits: the least change of an activation after which a probe gives a class the wanted probability.

    sigmoid    h' = h + (logit(P) - s) w / ||w||^2,                     s = <w, h> + b
    softmax    min ||h' - h||   so that   m(h') = s_t - log sum_{j != t} exp s_j = logit(P)

The first is the closed form, for two classes and for one class against the rest. It is published for softmax probes
too ("Probing then Editing Response Personality", Ju et al. 2025), where it does not reach P: raising s_t alone ignores
the other classes, whose scores move along. For softmax m is concave, so {m >= logit P} is convex and the nearest point
of it unique. On a line Newton's method comes from below to the first crossing; where the gradient's line has none,
the line along which the class outgrows all others has one. Newton's steps within the tangent then turn the line until
that tangent, which no nearer point can lie beyond, proves the length to be the least.

A row that has the probability already is returned as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls
from scipy.special import expit, logit, softmax

from interp.names import unknown
from probes.base import LinearProbe

TURNS = 50
"""Most turns of the direction of a softmax edit."""
NEWTON = 100
"""Most steps of Newton's method on a line."""
GAP = 1e-9
"""Share of a move's length by which it may exceed the shortest one."""
REACHED = 1e-6
"""How near the probability comes to the wanted one, before the activation is rounded to the model's format."""


@dataclass(frozen=True, eq=False)
class Hyperplane:
    """A probe, a class and the probability that it shall have."""

    weights: Float[np.ndarray, "output d_in"]
    """Weights in raw units: of the class alone (sigmoid), or of every class (softmax)."""
    bias: Float[np.ndarray, " output"]
    """Their biases."""
    target: int | None
    """Number of the class among the outputs of a softmax; None for a sigmoid."""
    p: float
    """The wanted probability, between 0 and 1."""

    def __post_init__(self) -> None:
        """Refuse a probability that no score gives."""
        if not 0 < self.p < 1:
            raise ValueError(f"p is a probability and must lie between 0 and 1, got {self.p}.")

    @classmethod
    def of(cls, probe: Any, target: Any, p: float) -> Hyperplane:
        """Return the hyperplane where `probe` gives the class `target` the probability `p`.

        Args:
            probe: a fitted linear probe whose scores are log-odds.
            target: one of its classes, or the same as text.
            p: the wanted probability.

        Raises:
            ValueError: no such class, a probe that is not linear or gives no probabilities, or p outside of 0..1.
        """
        if not isinstance(probe, LinearProbe):
            raise ValueError(
                f"{type(probe).__name__} has no hyperplane to move to; fit a linear one, such as LogisticProbe."
            )
        number = class_number(probe, target)
        if probe.link_ == "identity":
            raise ValueError(
                f"The scores of {type(probe).__name__} are no log-odds, so that no probability can be reached; take "
                "LogisticProbe, or steer along the direction by probes.steering_vectors."
            )
        w, b = np.asarray(probe.coef_, np.float64), np.asarray(probe.intercept_, np.float64)
        if probe.link_ == "softmax" and len(w) > 1:
            return cls(w, b, number, p)
        if len(w) == 1:
            sign = 1.0 if number == 1 else -1.0
            w, b = sign * w, sign * b
        else:
            w, b = w[number : number + 1], b[number : number + 1]
        if not np.any(w):
            raise ValueError(f"All weights of the probe for {target!r} are 0, so that no change has an effect on it.")
        return cls(w, b, None, p)

    def score(self, h: Float[np.ndarray, "row d_in"]) -> Float[np.ndarray, " row"]:
        """Return the log-odds of the class at each row."""
        s = h @ self.weights.T + self.bias
        return s[:, 0] if self.target is None else _margin(s, self.target)[0]

    def probability(self, h: Float[np.ndarray, "row d_in"]) -> Float[np.ndarray, " row"]:
        """Return the class's probability at each row; one class against the rest is not divided by the others."""
        return expit(self.score(h))

    def move(self, h: Float[np.ndarray, "row d_in"]) -> Float[np.ndarray, "row d_in"]:
        """Return the nearest rows at which the class has the probability; those that have it are not moved.

        Raises:
            ValueError: no direction raises the class above all the others, or the probability was not reached.
        """
        h = np.asarray(h, np.float64)
        short = self.score(h) < logit(self.p)
        if not short.any():
            return h
        moved = h.copy()
        moved[short] += self._shift(h[short])
        missed = np.abs(self.probability(moved[short]) - self.p).max()
        if not missed <= REACHED:
            raise ValueError(
                f"The edit misses p={self.p} by {missed:.1e}: scores are too large for float64 there. Take a p nearer "
                "to 1/2, or a probe with a stronger penalty."
            )
        return moved

    def _shift(self, h: Float[np.ndarray, "row d_in"]) -> Float[np.ndarray, "row d_in"]:
        if self.target is None:
            w = self.weights[0]
            return ((logit(self.p) - self.score(h)) / (w @ w))[:, None] * w
        return _least(h @ self.weights.T + self.bias, self.weights, self.target, float(logit(self.p)))


def class_number(probe: Any, target: Any) -> int:
    """Return the number of the class `target` (itself, or its text) among those of a probe.

    Raises:
        ValueError: there is none, with the nearest.
    """
    names = [str(one) for one in probe.classes_.tolist()]
    if str(target) not in names:
        raise ValueError(unknown("class", str(target), names))
    return names.index(str(target))


def published(
    h: Float[np.ndarray, "row d_in"],
    w: Float[np.ndarray, "output d_in"],
    b: Float[np.ndarray, " output"],
    target: int,
    p: float,
) -> Float[np.ndarray, "row d_in"]:
    """Return the published edit, which moves to <w_t, h'> + b_t = logit(p) whatever the other classes say.

    For one class against the rest it is exact. With a softmax the probability it reaches is another; it stands here to
    be compared with.
    """
    short = softmax(h @ w.T + b, axis=1)[:, target] < p
    step = (logit(p) - b[target] - h @ w[target]) / (w[target] @ w[target])
    return h + np.where(short, step, 0.0)[:, None] * w[target]


def _margin(
    s: Float[np.ndarray, "row output"], target: int
) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, "row other"]]:
    """Return (the class's score minus the logsumexp of the others, the others' shares among themselves)."""
    others = np.delete(s, target, 1)
    top = others.max(1)
    each = np.exp(others - top[:, None])
    total = each.sum(1)
    return s[:, target] - top - np.log(total), each / total[:, None]


def _least(
    s: Float[np.ndarray, "row output"], w: Float[np.ndarray, "output d_in"], target: int, goal: float
) -> Float[np.ndarray, "row d_in"]:
    """Return the shortest moves after which the margin of rows with scores `s` is `goal`."""
    left, size, basis = np.linalg.svd(w - w.mean(0), full_matrices=False)
    kept = size > 1e-12 * size[0]
    # Coordinates in the span of the weights: a move y changes the scores by y @ rise, and has the length |y|.
    rise, basis = (left[:, kept] * size[kept]).T, basis[kept]
    ahead = rise[:, target, None] - np.delete(rise, target, 1)
    best, length = _reach(s, _normal(ahead, _margin(s, target)[1]), rise, ahead, target, goal)
    lost = np.isinf(length)
    if lost.any():
        upward = np.broadcast_to(_upward(ahead), best[lost].shape)
        best[lost], length[lost] = _reach(s[lost], upward, rise, ahead, target, goal)
    share, todo = np.ones(len(s)), np.arange(len(s))
    for _ in range(TURNS):
        q = _margin(s[todo] + best[todo] @ rise, target)[1]
        normal = _normal(ahead, q)
        # All that reaches the goal lies beyond the tangent here: no move is shorter than the way to that.
        bound = (normal * best[todo]).sum(1) / np.linalg.norm(normal, axis=1)
        more = length[todo] - bound > GAP * length[todo]
        todo, normal, q = todo[more], normal[more], q[more]
        if not len(todo):
            break
        tried = best[todo] + share[todo, None] * _turn(best[todo], normal, ahead, q)
        found, new = _reach(s[todo], tried, rise, ahead, target, goal)
        shorter = new < length[todo]
        best[todo[shorter]], length[todo[shorter]] = found[shorter], new[shorter]
        share[todo] = np.where(shorter, np.minimum(1.0, 4 * share[todo]), share[todo] / 4)
    return best @ basis


def _normal(ahead: Float[np.ndarray, "rank other"], q: Float[np.ndarray, "row other"]) -> Float[np.ndarray, "row rank"]:
    """Return the gradient of the margin: the lead over each other class, by the others' shares."""
    return q @ ahead.T


def _turn(
    y: Float[np.ndarray, "row rank"],
    normal: Float[np.ndarray, "row rank"],
    ahead: Float[np.ndarray, "rank other"],
    q: Float[np.ndarray, "row other"],
) -> Float[np.ndarray, "row rank"]:
    """Return Newton's step within the tangent towards the least length, with the curvature of the margin."""
    weight = (normal * y).sum(1) / (normal * normal).sum(1)
    spread = np.einsum("io,ro,jo->rij", ahead, q, ahead) - normal[:, :, None] * normal[:, None, :]
    curved = np.eye(len(ahead)) + weight[:, None, None] * spread
    inner = np.linalg.solve(curved, np.stack([y, normal], 2))
    along = (normal * inner[:, :, 0]).sum(1) / (normal * inner[:, :, 1]).sum(1)
    return along[:, None] * inner[:, :, 1] - inner[:, :, 0]


def _reach(
    s: Float[np.ndarray, "row output"],
    direction: Float[np.ndarray, "row rank"],
    rise: Float[np.ndarray, "rank output"],
    ahead: Float[np.ndarray, "rank other"],
    target: int,
    goal: float,
) -> tuple[Float[np.ndarray, "row rank"], Float[np.ndarray, " row"]]:
    """Return (move along each direction to the goal, its length); infinite where the goal does not lie along it."""
    g, slopes = direction @ rise, direction @ ahead
    step, able = np.zeros(len(s)), np.ones(len(s), bool)
    for _ in range(NEWTON):
        margin, q = _margin(s + step[:, None] * g, target)
        slope = (q * slopes).sum(1)
        # The margin is concave along the line: Newton's steps come from below and never pass the first crossing, so
        # that a slope that is not upwards on the way says that there is none.
        able &= (slope > 0) | (margin >= goal)
        more = np.where(able, (goal - margin) / np.where(slope > 0, slope, 1.0), 0.0)
        step += more
        if (np.abs(more) <= 1e-13 * np.abs(step)).all():
            break
    else:
        able &= np.abs(more) <= 1e-9 * np.abs(step)
    return step[:, None] * direction, np.where(able, step * np.linalg.norm(direction, axis=1), np.inf)


def _upward(ahead: Float[np.ndarray, "rank other"]) -> Float[np.ndarray, " rank"]:
    """Return a direction along which the class outgrows all others: the point of least norm in the hull of its leads.

    Raises:
        ValueError: there is none, since its weights are a mean of other classes' weights.
    """
    scale = np.linalg.norm(ahead, axis=0).max() or 1.0
    # Least squares over shares >= 0 of [V; 1] q = [0; 1] is, scaled to sum 1, the point of least norm in the hull.
    system = np.vstack([ahead / scale, np.ones(ahead.shape[1])])
    share, _ = nnls(system, np.append(np.zeros(len(ahead)), 1.0))
    found = ahead @ (share / share.sum())
    if np.linalg.norm(found) < 1e-9 * scale:
        raise ValueError(
            "No direction raises this class above all the others: its weights are a mean of theirs. Edit a probe of "
            "this class against the rest."
        )
    return found
