"""What a model is: a name, a revision, a number format, and the steps that change it."""

from __future__ import annotations

from dataclasses import dataclass

from interp.names import unknown
from interp.types import Recipe, RuntimeStep, WeightStep

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Number formats a model can be loaded in; float64 is for gradient checks."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything that decides what a model computes; two equal specs give the same logits."""

    name: str
    """An embedded model (`tiny`), a local Hugging Face folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository; None is its default branch. Local names have none."""
    dtype: str = "float32"
    """Number format of weights and activations, one of `DTYPES`."""
    recipe: Recipe = ()
    """Steps of compression or other change, in order; none leaves the model as it is stored."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or "\0" in self.name:
            raise ValueError(f"A model's name is an embedded model, a local folder or a hub id, got {self.name!r}.")
        if self.dtype not in DTYPES:
            raise ValueError(unknown("dtype", str(self.dtype), DTYPES))
        if not isinstance(self.recipe, tuple):
            raise ValueError(f"A recipe is a tuple of steps, got {type(self.recipe).__name__}.")
        for step in self.recipe:
            if not isinstance(step, WeightStep | RuntimeStep):
                raise ValueError(
                    f"A step of a recipe has apply(module) or attach(handle), got {type(step).__name__} with neither."
                )

    @property
    def label(self) -> str:
        """The last part of the name, the revision and the recipe, in a few words."""
        short = self.name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
        revision = f"@{self.revision}" if self.revision else ""
        return f"{short}{revision}" + (f" {describe_recipe(self.recipe)}" if self.recipe else "")


def describe_recipe(recipe: Recipe) -> str:
    """Return `recipe` in a few characters, such as `magnitude-30%+rtn-4bit-g64`; an empty one is `as-stored`."""
    named = [getattr(step, "describe", None) for step in recipe]
    parts = [name() if name else type(step).__name__.lower() for name, step in zip(named, recipe, strict=True)]
    return "+".join(parts) or "as-stored"
