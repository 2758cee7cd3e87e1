"""Models: a name becomes a `ModelHandle` that owns the Hugging Face module and offers the transformer-lens bridge."""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ModelHandle": "interp.models.handle",
        "ModelSpec": "interp.models.spec",
        "compiled_model": "interp.models.compiled.catalog",
        "compiled_models": "interp.models.compiled.catalog",
        "embedded_models": "interp.models.embedded",
        "load_model": "interp.models.loading",
    },
)
