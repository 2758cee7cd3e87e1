"""Attribution: which activations make the model do this, by patching, by gradients, by relevance."""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Attribution": "interp.attribution.result",
        "correlations": "interp.attribution.agreement",
        "Cell": "interp.sites",
        "Measured": "interp.attribution.patching.measure",
        "measure_cells": "interp.attribution.patching.measure",
        "patch_map": "interp.attribution.patching.maps",
        "path_patch": "interp.attribution.patching.paths",
        "PRESETS": "interp.attribution.relevance.rules",
        "Rules": "interp.attribution.relevance.rules",
        "Through": "interp.attribution.relevance.conditions",
        "check_conservation": "interp.attribution.relevance.conservation",
        "rewritten": "interp.attribution.relevance.rewriting",
        "METHODS": "interp.attribution.estimates.methods",
        "atp_star": "interp.attribution.estimates.star",
        "attribution_patching": "interp.attribution.estimates.linear",
        "checked": "interp.attribution.estimates.check",
        "gradient_x_input": "interp.attribution.estimates.linear",
        "integrated_gradients": "interp.attribution.estimates.integrated",
        "latent_attribution": "interp.attribution.estimates.latents",
        "relp": "interp.attribution.estimates.linear",
        "against_measured": "interp.attribution.scoring",
        "against_truth": "interp.attribution.scoring",
        "completeness_gap": "interp.attribution.scoring",
        "randomisation_check": "interp.attribution.randomisation",
        "randomised": "interp.attribution.randomisation",
    },
)
