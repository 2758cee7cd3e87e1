"""The values that one parameter of a sweep can take: wandb's distributions, drawn through their inverse CDF.

With u uniform in [0, 1): uniform is min + u (max - min); log_uniform_values is exp of a uniform between log min and
log max (log_uniform takes the logs themselves); normal is mu + sigma z(u); a `q_` in front rounds to multiples of q.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from interp.names import shorten, unknown

_RANGE = {"min": None, "max": None}
_NORMAL = {"mu": 0.0, "sigma": 1.0}
_BETA = {"a": 1.0, "b": 1.0}
_Q = {"q": 1}

DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "constant": {"value": None},
    "categorical": {"values": None},
    "categorical_w_probabilities": {"values": None, "probabilities": None},
    "uniform": _RANGE,
    "int_uniform": _RANGE,
    "q_uniform": _RANGE | _Q,
    "log_uniform": _RANGE,
    "log_uniform_values": _RANGE,
    "q_log_uniform": _RANGE | _Q,
    "q_log_uniform_values": _RANGE | _Q,
    "inv_log_uniform": _RANGE,
    "inv_log_uniform_values": _RANGE,
    "normal": _NORMAL,
    "q_normal": _NORMAL | _Q,
    "log_normal": _NORMAL,
    "q_log_normal": _NORMAL | _Q,
    "beta": _BETA,
    "q_beta": _BETA | _Q,
}
"""{distribution: {key: default}}; a default of None marks a key that must be given."""

_KEYS = sorted({"distribution", "parameters", *itertools.chain.from_iterable(DISTRIBUTIONS.values())})


@dataclass(frozen=True)
class Parameter:
    """One parameter of a sweep and the values it can take."""

    name: str
    """The option it sets, dots included."""
    distribution: str
    """One of `DISTRIBUTIONS`."""
    settings: Mapping[str, Any]
    """Its keys, defaults filled in."""

    def levels(self) -> list[Any] | None:
        """Return the values a grid goes through; None where there is no list of them.

        As on wandb's server, int_uniform includes max and q_uniform ends below it.
        """
        its = self.settings
        if self.distribution == "constant":
            return [its["value"]]
        if self.distribution == "categorical":
            return list(its["values"])
        if self.distribution == "int_uniform":
            return list(range(its["min"], its["max"] + 1))
        if self.distribution == "q_uniform":
            steps = math.ceil((its["max"] - its["min"]) / its["q"] - 1e-9)
            return [_tidy(its["min"] + i * its["q"]) for i in range(steps)]
        return None

    def draw(self, generator: random.Random) -> Any:
        """Return one value, a function of the generator's state alone."""
        its, kind = self.settings, self.distribution
        u = generator.random()
        if kind == "constant":
            return its["value"]
        if kind == "categorical":
            return its["values"][int(u * len(its["values"]))]
        if kind == "categorical_w_probabilities":
            return generator.choices(its["values"], weights=its["probabilities"])[0]
        if kind == "int_uniform":
            return its["min"] + int(u * (its["max"] - its["min"] + 1))
        if kind.endswith("beta"):
            value = generator.betavariate(its["a"], its["b"])
        else:
            value = _INVERSE[kind.removeprefix("q_")](its, u)
        return self._rounded(value) if kind.startswith("q_") else value

    def _rounded(self, value: float) -> float | int:
        """Return the multiple of q nearest to `value` that lies within the bounds."""
        q, multiple = self.settings["q"], round(value / self.settings["q"])
        bounds = _bounds(self.distribution, self.settings)
        if bounds is not None:
            multiple = min(max(multiple, math.ceil(bounds[0] / q - 1e-9)), math.floor(bounds[1] / q + 1e-9))
        return _tidy(multiple * q)


def parameter(name: str, given: Any, where: str) -> Parameter:
    """Return the parameter that a file describes by `given`.

    Args:
        name: the option it sets.
        given: an object such as {"min": 1e-4, "max": 1e-2, "distribution": "log_uniform_values"}.
        where: what messages call the place.

    Raises:
        ValueError: an unknown key or distribution, a missing key, bounds or probabilities that make no sense.
    """
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{where} must be an object such as {{values: [1, 2]}}, got {shorten(given)}.")
    for key in given:
        if key not in _KEYS:
            raise ValueError(unknown(f"key in {where}:", key, _KEYS))
    kind = given["distribution"] if "distribution" in given else _implied(given, where)
    if kind not in DISTRIBUTIONS:
        raise ValueError(unknown(f"distribution in {where}:", kind, DISTRIBUTIONS))
    known = DISTRIBUTIONS[kind]
    for key in given:
        if key not in known and key != "distribution":
            raise ValueError(unknown(f"key of {kind} in {where}:", key, known))
    missing = [key for key, default in known.items() if default is None and key not in given]
    if missing:
        raise ValueError(f"{where} is {kind} and lacks {', '.join(missing)}; add it.")
    settings = {key: given.get(key, default) for key, default in known.items()}
    _check(kind, settings, where)
    return Parameter(name, kind, settings)


def _implied(given: Mapping[str, Any], where: str) -> str:
    """Return the distribution that the keys alone stand for."""
    if "values" in given:
        return "categorical_w_probabilities" if "probabilities" in given else "categorical"
    if "value" in given:
        return "constant"
    if "min" in given or "max" in given:
        bounds = [given.get("min"), given.get("max")]
        return "int_uniform" if all(isinstance(b, int) for b in bounds) else "uniform"
    raise ValueError(f"{where} needs value, values, min and max, or a distribution, got {shorten(given)}.")


def _check(kind: str, its: Mapping[str, Any], where: str) -> None:
    """Refuse settings that no value can be drawn from."""
    for key, value in its.items():
        if key in ("values", "probabilities"):
            if not isinstance(value, list) or not value:
                raise ValueError(f"{where}.{key} must be a list with at least one entry, got {shorten(value)}.")
        elif key != "value" and not _number(value):
            raise ValueError(
                f"{where}.{key} must be a number, got {shorten(value)}; in YAML a power of ten needs a point: 1.0e-3."
            )
    weights = its.get("probabilities")
    if weights is not None and (
        len(weights) != len(its["values"]) or not all(_number(w) and w >= 0 for w in weights) or sum(weights) <= 0
    ):
        raise ValueError(f"{where}.probabilities must be one number of 0 or more for each value, got {weights}.")
    if its.get("q", 1) <= 0:
        raise ValueError(f"{where}.q must be above 0, got {its['q']}.")
    if its.get("sigma", 1) < 0 or min(its.get("a", 1), its.get("b", 1)) <= 0:
        raise ValueError(f"{where}: sigma must be 0 or more, and a and b above 0, got {dict(its)}.")
    if "min" in its:
        _check_bounds(kind, its, where)


def _check_bounds(kind: str, its: Mapping[str, Any], where: str) -> None:
    low, high = its["min"], its["max"]
    if low > high:
        raise ValueError(f"{where}: min must not be above max, got {low} and {high}.")
    if kind == "int_uniform" and not (isinstance(low, int) and isinstance(high, int)):
        raise ValueError(f"{where} is int_uniform and needs whole numbers, got {low} and {high}.")
    if kind.endswith("log_uniform_values") and low <= 0:
        raise ValueError(f"{where}.min must be above 0 for {kind}, got {low}.")
    bounds = _bounds(kind, its)
    if "q" in its and bounds and math.ceil(bounds[0] / its["q"] - 1e-9) > math.floor(bounds[1] / its["q"] + 1e-9):
        raise ValueError(f"{where}: no multiple of q={its['q']} lies between {bounds[0]:g} and {bounds[1]:g}.")


def _bounds(kind: str, its: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the smallest and the largest value; None where there are none. log_uniform is given by exponents."""
    if "min" not in its:
        return None
    return (math.exp(its["min"]), math.exp(its["max"])) if kind.endswith("log_uniform") else (its["min"], its["max"])


def _between(low: float, high: float, u: float) -> float:
    return low + u * (high - low)


def _log_between(its: Mapping[str, Any], u: float) -> float:
    value = math.exp(_between(math.log(its["min"]), math.log(its["max"]), u))
    return min(max(value, its["min"]), its["max"])  # exp(log(x)) can miss x by a rounding


def _normal(its: Mapping[str, Any], u: float) -> float:
    return its["mu"] + its["sigma"] * NormalDist().inv_cdf(min(max(u, 1e-12), 1 - 1e-12))


_INVERSE: dict[str, Callable[[Mapping[str, Any], float], float]] = {
    "uniform": lambda its, u: _between(its["min"], its["max"], u),
    "log_uniform": lambda its, u: math.exp(_between(its["min"], its["max"], u)),
    "log_uniform_values": _log_between,
    "inv_log_uniform": lambda its, u: math.exp(-_between(its["min"], its["max"], u)),
    "inv_log_uniform_values": _log_between,  # log(1/x) uniform is log(x) uniform
    "normal": _normal,
    "log_normal": lambda its, u: math.exp(_normal(its, u)),
}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _tidy(value: float) -> float | int:
    """Return a multiple without the last digits' noise (0.3, not 0.30000000000000004); whole ones stay integers."""
    return value if isinstance(value, int) else float(f"{value:.12g}")
