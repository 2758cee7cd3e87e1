"""What a difference says about a claim: an interval over seeds, and a verdict by rule.

A seed draws the truth, the initialisation and the order of the rows, and both sides of a difference share it: so the
differences of the seeds are paired, and the interval is mean ± t_{0.975, n-1} · deviation / √n over them.

    claimed less, more         holds            the whole interval is on the claimed side of 0
                               does not hold    no part of the interval is beyond the margin on the claimed side
    claimed no more, no less   holds            the whole interval is at most the margin on the wrong side of 0
                               does not hold    the whole interval is further than the margin on the wrong side
    otherwise                  not decided at this n

The margin is what would matter: 1% of an FVU or a loss, one latent in a hundred, 0.01 of a cosine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Want = Literal["less", "more", "no more", "no less", "report"]


@dataclass(frozen=True)
class Contrast:
    """One line of the table: measurement `a` against measurement or number `b`."""

    label: str
    """What is compared."""
    a: str
    """A measurement's name."""
    b: str | float | None = None
    """Another one's, or a number; None where nothing is compared."""
    want: Want = "report"
    """What is claimed of a against b."""
    margin: float = 0.01
    """What would matter."""
    relative: bool = False
    """Whether the margin is a share of b."""


@dataclass(frozen=True)
class Finding:
    """A contrast, measured. Without a `b` the interval is that of `a` itself."""

    claim: str
    where: str
    label: str
    want: Want
    n: int
    a: float
    b: float | None
    mean: float
    low: float
    high: float
    differences: tuple[float, ...]
    verdict: str


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return (mean, low, high), the 95% t interval; infinitely wide for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def verdict(want: Want, low: float, high: float, margin: float) -> str:
    """Return what the interval of a - b says of the claim."""
    if want == "report":
        return ""
    if not math.isfinite(low + high):
        return "not decided"
    gain_low, gain_high = (-high, -low) if want in ("less", "no more") else (low, high)
    if want in ("less", "more"):
        return "holds" if gain_low > 0 else "does not hold" if gain_high <= margin else "not decided"
    return "holds" if gain_low >= -margin else "does not hold" if gain_high < -margin else "not decided"


def judge(claim: str, where: str, contrast: Contrast, seeds: Sequence[Mapping[str, float]]) -> Finding:
    """Return the finding of one contrast over the seeds' measurements."""
    a = [one[contrast.a] for one in seeds]
    if contrast.b is None:
        b = None
    else:
        b = [one[contrast.b] if isinstance(contrast.b, str) else contrast.b for one in seeds]
    differences = tuple(x - (0.0 if b is None else y) for x, y in zip(a, b or a, strict=True))
    mean, low, high = interval(differences)
    centre = None if b is None else statistics.fmean(b)
    margin = contrast.margin * (abs(centre) if contrast.relative and centre is not None else 1.0)
    said = verdict(contrast.want, low, high, margin)
    return Finding(
        claim, where, contrast.label, contrast.want, len(seeds), statistics.fmean(a), centre, mean, low, high,
        differences, said,
    )  # fmt: skip
