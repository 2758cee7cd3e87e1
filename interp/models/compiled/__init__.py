"""Compiled models: transformers whose weights were written by hand, so that their circuits are known exactly.

handle = load_model("compiled/induction")
one = compiled_model("compiled/induction")
pairs = one.pairs(n=16, seed=0)
truth = one.truth(pairs, "denoising")        # every cell: in the circuit or not, and its exact effect
"""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "CompiledModel": "interp.models.compiled.catalog",
        "compiled_model": "interp.models.compiled.catalog",
        "compiled_models": "interp.models.compiled.catalog",
        "read_trained": "interp.models.compiled.trained",
    },
)
