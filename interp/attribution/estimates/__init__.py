"""Fast estimates of patching maps, from gradients; each can carry a measured check of its top cells."""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "METHODS": "interp.attribution.estimates.methods",
        "atp_star": "interp.attribution.estimates.star",
        "attribution_patching": "interp.attribution.estimates.linear",
        "checked": "interp.attribution.estimates.check",
        "gradient_x_input": "interp.attribution.estimates.linear",
        "integrated_gradients": "interp.attribution.estimates.integrated",
        "latent_attribution": "interp.attribution.estimates.latents",
        "relp": "interp.attribution.estimates.linear",
    },
)
