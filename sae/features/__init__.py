"""The features of a dictionary: what each latent responds to, writes and stands beside, and a reader of the result.

    run.finish(describe_features(handle, site, sae, blocks, run))
    load_features("features/tiny-1234abcd").examples(17)

Names are imported when first used: reading a finished description loads no torch.
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Features": "sae.features.tables",
        "FeaturesConfig": "sae.features.config",
        "Moments": "sae.features.statistics",
        "describe_features": "sae.features.description",
        "load_features": "sae.features.tables",
    },
)
