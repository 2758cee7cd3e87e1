"""The model side: loading, sites and hooks, activations, data and runs.

Names are imported when first used: `import interp` loads no model library.
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ActivationStore": "interp.activations",
        "DataSpec": "interp.data",
        "ModelHandle": "interp.models",
        "ModelSpec": "interp.models",
        "Run": "interp.runs",
        "Site": "interp.sites",
        "ablate": "interp.hooks",
        "capture": "interp.hooks",
        "find_runs": "interp.runs",
        "load_model": "interp.models",
        "open_run": "interp.runs",
        "patch": "interp.hooks",
        "splice": "interp.hooks",
        "start_run": "interp.runs",
    },
)
