"""Activations whose features are known: planted dictionaries, bidirectional axes, trees, absorption.

Each is a `sae.training.Batches` with the truth beside it: `atoms`, and the `codes` of every batch.
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Absorption": "sae.synthetic.absorption",
        "AbsorptionConfig": "sae.synthetic.absorption",
        "Planted": "sae.synthetic.planted",
        "PlantedConfig": "sae.synthetic.planted",
        "Synthetic": "sae.synthetic.truth",
        "Tree": "sae.synthetic.tree",
        "TreeConfig": "sae.synthetic.tree",
        "stream": "sae.synthetic.truth",
    },
)
