"""Studies: what dictionaries and probes say about each other on labelled texts.

    from app.studies.sparse_probing import sparse_probing
    from app.studies.spurious_removal import spurious_removal              # SCR
    from app.studies.targeted_perturbation import targeted_perturbation    # TPP

They work on one row per text: `pool(handle, site, sae, labelled.texts)`. `import app.studies` loads no torch.
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Pooled": "app.studies.pooled",
        "pool": "app.studies.pooled",
    },
)
