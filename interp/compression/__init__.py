"""Compressed copies of models: recipes of steps, what they cost in bits, and what they change inside."""

from __future__ import annotations

from interp.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Comparison": "interp.compression.compare",
        "Pair": "interp.compression.panel",
        "Panel": "interp.compression.panel",
        "PanelResult": "interp.compression.panel",
        "STEPS": "interp.compression.steps",
        "describe_recipe": "interp.models.spec",
        "load_results": "interp.compression.compare",
        "matched_null": "interp.compression.nulls",
        "mean_kl": "interp.compression.nulls",
        "read_recipe": "interp.compression.recipes",
        "read_spec": "interp.compression.recipes",
        "recipe_json": "interp.compression.recipes",
    },
)
