"""Does the model use what a probe reads? Its direction is moved along, beside random directions of the same norm.

    dh = strength * size * direction / ||direction||

A probe can be accurate along a direction that nothing reads. If the model uses it, moving along it changes behaviour in
the wanted way, by more than pushing just as far into random directions does, and against it the other way round. The
difference in means is the direction that a model's own variation takes; a probe's direction can be far from it, since
regression turns away from what varies without telling the classes apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from probes.base import BaseProbe, LinearProbe
from probes.editing import change_rows, check_probe
from probes.effects import TextsEffect, texts_effect
from probes.hyperplane import class_number
from probes.steering_vectors import Shift, random_like

if TYPE_CHECKING:
    import pyarrow as pa

    from interp.models import ModelHandle
    from interp.sites import Site

PROBE, DIFFERENCE, RANDOM = "probe", "mean_difference", "random"


def score_direction(probe: BaseProbe, target: Any = None) -> Float[np.ndarray, " d_in"]:
    """Return the gradient of a linear probe's score of a class; of several, against the mean score of the others.

    Args:
        probe: a fitted linear probe, with or without probabilities.
        target: the class, or its text; None: the last (of two: the second).

    Raises:
        ValueError: no linear probe, no such class, or weights that are all 0.
    """
    if not isinstance(probe, LinearProbe):
        raise ValueError(f"{type(probe).__name__} has no direction to move along; fit a linear probe.")
    number = len(probe.classes_) - 1 if target is None else class_number(probe, target)
    w = np.asarray(probe.coef_, np.float64)
    found = (w[0] if number == 1 else -w[0]) if len(w) == 1 else w[number] - np.delete(w, number, 0).mean(0)
    if not found.any():
        raise ValueError("All weights of the probe are 0; there is no direction to move along.")
    return found


def causal_check(
    handle: ModelHandle,
    probe: BaseProbe,
    texts: Sequence[str | Tensor],
    *,
    target: Any = None,
    strengths: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    difference: Float[np.ndarray, " d_in"] | None = None,
    size: float | None = None,
    nulls: int = 8,
    words: tuple[Sequence[int], Sequence[int]] | None = None,
    position: str | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> pa.Table:
    """Return the effect of moving along a probe's direction, the difference in means, and random directions.

    Args:
        handle: the model that the probe was fitted on.
        probe: a fitted linear probe that knows its source.
        texts: texts, or their ids; better not those it was fitted on.
        target: the class to move towards; None: the second.
        strengths: multiples of `size`; negative ones move away from the class.
        difference: mean(target) - mean(rest), to be moved along too.
        size: how far strength 1 goes; None: the norm of `difference`, or without it the root mean square distance of
            the texts' activations from their mean.
        nulls: random directions.
        words: ids of next tokens for and against the class, as `probes.effects.word_ids` finds them.
        position: what is moved; None: where the probe was fitted.
        seed: of the random directions.
        on_progress: hears (moves done, moves in all).

    Returns:
        A row for each direction, draw and strength: direction (`probe`, `mean_difference`, `random`), draw, strength,
        norm of the move, score (mean change of the probe's score of the class), log_odds (mean change of the words'
        log-odds, nats; null without words), log_odds_se (over texts), kl (mean KL(before || after) of the next token),
        top1 (share of texts whose likeliest next token changed).

    Raises:
        ValueError: a probe of another model or without a direction, a size that is not above 0, no strengths.
    """
    import pyarrow as pa

    site, fitted_at = check_probe(handle, probe)
    w = score_direction(probe, target)
    place = fitted_at if position is None else position
    if not strengths or nulls < 0:
        raise ValueError(f"At least one strength is needed, and nulls must be 0 or more, got {strengths} and {nulls}.")
    if size is None:
        size = _usual(handle, texts, site, place) if difference is None else float(np.linalg.norm(difference))
    if not size > 0:
        raise ValueError(f"size is how far strength 1 moves and must be above 0, got {size}.")
    moves, rows, done = list(_moves(w, difference, nulls, seed)), [], 0
    for name, draw, unit in moves:
        for strength in strengths:
            found = _moved(handle, texts, site, place, strength * size * unit, words)
            about = {"direction": name, "draw": draw, "strength": float(strength), "norm": abs(strength) * size}
            rows.append(about | {"score": float(strength * size * (w @ unit))} | _summary(found))
            done += 1
            on_progress(done, len(moves) * len(strengths))
    return pa.Table.from_pylist(rows, _schema())


def _schema() -> pa.Schema:
    import pyarrow as pa

    numbers = ("strength", "norm", "score", "log_odds", "log_odds_se", "kl", "top1")
    return pa.schema([("direction", pa.string()), ("draw", pa.int32()), *((one, pa.float64()) for one in numbers)])


def _moves(
    w: Float[np.ndarray, " d_in"],
    difference: Float[np.ndarray, " d_in"] | None,
    nulls: int,
    seed: int,
) -> Iterator[tuple[str, int, Float[np.ndarray, " d_in"]]]:
    """Yield (name, draw, unit direction)."""
    unit = w / np.linalg.norm(w)
    yield PROBE, 0, unit
    if difference is not None:
        yield DIFFERENCE, 0, difference / np.linalg.norm(difference)
    for draw, one in enumerate(random_like(unit, nulls, seed)):
        yield RANDOM, draw, one


def _usual(handle: ModelHandle, texts: Sequence[str | Tensor], site: Site, place: str) -> float:
    """Return the root mean square distance of the texts' activations from their mean."""
    rows = texts_effect(handle, texts, lambda _: nullcontext(), position=place, sites=[site]).rows[site]
    return float(np.sqrt(((rows - rows.mean(0)) ** 2).sum(1).mean()))


def _moved(
    handle: ModelHandle,
    texts: Sequence[str | Tensor],
    site: Site,
    place: str,
    vector: Float[np.ndarray, " d_in"],
    words: tuple[Sequence[int], Sequence[int]] | None,
) -> TextsEffect:
    change = Shift(vector)
    return texts_effect(
        handle, texts, lambda chosen: change_rows(handle, site, change, chosen), position=place, words=words
    )


def _summary(found: TextsEffect) -> dict[str, float | None]:
    shift, n = found.preference, len(found.preference)
    known = not np.isnan(shift).any()
    return {
        "log_odds": float(shift.mean()) if known else None,
        "log_odds_se": float(shift.std(ddof=1) / np.sqrt(n)) if known and n > 1 else None,
        "kl": float(found.kl.mean()),
        "top1": float(found.top1.mean()),
    }
