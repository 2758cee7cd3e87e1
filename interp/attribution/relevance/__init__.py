"""Layer-wise relevance propagation (LRP) for transformers, as rewritten gradients."""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "PRESETS": "interp.attribution.relevance.rules",
        "RelevanceMode": "interp.attribution.relevance.operations",
        "Rules": "interp.attribution.relevance.rules",
        "Through": "interp.attribution.relevance.conditions",
        "check_conservation": "interp.attribution.relevance.conservation",
        "find_rules": "interp.attribution.relevance.rules",
        "relevance": "interp.attribution.relevance.scores",
        "rewritten": "interp.attribution.relevance.rewriting",
    },
)
