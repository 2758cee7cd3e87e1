"""Dictionaries of other libraries: read from their files, and written as those.

    sae-lens             cfg.json + sae_weights.safetensors
    gemma-scope          params.npz
    sparsify             cfg.json + sae.safetensors
    dictionary-learning  config.json + ae.safetensors, which the user made from ae.pt

Nothing is ever unpickled, and no library of theirs is needed.
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "FORMATS": "sae.readers.formats",
        "Foreign": "sae.readers.foreign",
        "WRITERS": "sae.readers.export",
        "fetch": "sae.readers.hub",
        "publish": "sae.readers.hub",
        "read_dictionary": "sae.readers.formats",
        "to_sae": "sae.readers.foreign",
        "write_dictionary": "sae.readers.export",
    },
)
