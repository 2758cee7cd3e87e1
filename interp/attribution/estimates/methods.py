"""The methods by name. All take (handle, pairs, sites) and return an `Attribution` with one convention of signs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from interp.attribution.estimates.integrated import integrated_gradients
from interp.attribution.estimates.linear import attribution_patching, gradient_x_input, relp
from interp.attribution.estimates.star import atp_star
from interp.attribution.patching import patch_map
from interp.attribution.result import Attribution

METHODS: dict[str, Callable[..., Attribution]] = {
    "patching": patch_map,
    "atp": attribution_patching,
    "relp": relp,
    "ig": integrated_gradients,
    "ig_inputs": partial(integrated_gradients, path="inputs"),
    "atp_star": atp_star,
    "gradient_x_input": gradient_x_input,
}
"""Name -> method, the measured truth first. Those after it are estimates, which take `check`."""
