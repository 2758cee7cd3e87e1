"""Attribution: which activations make the model do this, by patching, by gradients, by relevance."""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Attribution": "interp.attribution.result",
    },
)
