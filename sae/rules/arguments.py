"""Checks that the arguments of several rules share, and the warm-up of a penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence

from interp.names import unknown
from sae.config import default_k
from sae.rules.base import Context


def latents_per_row(k: int | None, d_in: int, d_sae: int) -> int:
    """Return `k`, or the default of the width for None.

    Raises:
        ValueError: k lies outside 1..d_sae.
    """
    k = default_k(d_in, d_sae) if k is None else k
    if not 1 <= k <= d_sae:
        raise ValueError(f"k must lie in 1..d_sae={d_sae}, got {k}.")
    return k


def at_least(least: float, *, above: bool = False, **values: float) -> None:
    """Refuse each named value that is not finite, or lies below `least` (with `above`: is not above it)."""
    for name, value in values.items():
        if not (math.isfinite(value) and (value > least if above else value >= least)):
            raise ValueError(f"{name} must be {'above' if above else 'at least'} {least:g} and finite, got {value}.")


def shares(of: str, **values: float) -> None:
    """Refuse each named value outside 0..1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a share of {of} and must lie in 0..1, got {value}.")


def one_of(known: Sequence[str], **values: str) -> None:
    """Refuse each named value that is not among `known`."""
    for name, value in values.items():
        if value not in known:
            raise ValueError(unknown(name, value, known))


def rising(warmup: float, **charges: float) -> None:
    """Refuse each named charge below 0 or not finite, and a `warmup` that is no share of the steps (see `risen`)."""
    at_least(0.0, above=False, **charges)
    shares("the steps", warmup=warmup)


def risen(ctx: Context, warmup: float) -> float:
    """Return how far a penalty has risen, linearly from 0 to 1 over the first `warmup` share of the steps."""
    return min(1.0, (ctx.step + 1) / max(1.0, warmup * ctx.steps))
