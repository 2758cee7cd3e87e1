"""Patching: put the activation of another run into this one, and measure what the model does then."""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Cell": "interp.sites",
        "Measured": "interp.attribution.patching.measure",
        "chosen_sites": "interp.attribution.patching.cells",
        "measure_cells": "interp.attribution.patching.measure",
        "patch_map": "interp.attribution.patching.maps",
        "path_patch": "interp.attribution.patching.paths",
        "resolve_metric": "interp.attribution.patching.runs",
    },
)
