"""Sparse dictionaries: one `Sae`, many sparsity rules, one trainer, evaluation in the model, feature statistics.

Names are imported when first used: `import sae` loads no torch.
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Code": "sae.code",
        "RULES": "sae.rules",
        "Sae": "sae.model",
        "SaeConfig": "sae.config",
        "TrainConfig": "sae.config",
        "evaluate": "sae.evaluation",
        "load_sae": "sae.model",
        "train": "sae.training",
    },
)
