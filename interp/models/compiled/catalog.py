"""The compiled models by name: their sizes, their cards, and what builds them. Read without any model library."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from types import ModuleType
from typing import TYPE_CHECKING, Any

from interp.names import unknown

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import GPT2LMHeadModel

    from interp.tasks.pairs import Pairs

PREFIX = "compiled/"
"""Begins the name of every compiled model."""


@dataclass(frozen=True)
class CompiledModel:
    """A model written by hand, with the task it does and the truth about it."""

    name: str
    """What `load_model` takes, such as `compiled/induction`."""
    summary: str
    """What it computes, in a few words."""
    config: dict[str, Any] = field(hash=False)
    """Its sizes, in the words of a GPT-2 configuration."""

    def build(self) -> GPT2LMHeadModel:
        """Return a new module with the model's weights, in float64."""
        return self._code().build(self.config)

    def pairs(self, n: int = 16, seed: int = 0) -> Pairs:
        """Return `n` pairs of prompts of the model's own task.

        Raises:
            ValueError: `n` is below 1, or there are not so many.
        """
        return self._code().pairs(self.config, n, seed)

    def truth(self, pairs: Pairs, direction: str = "denoising") -> pa.Table:
        """Return what patching each cell does to the logit difference of these pairs, in closed form.

        The columns are `interp.models.compiled.truth.COLUMNS`; positions that a row has all of are null.

        Raises:
            ValueError: `direction` is neither denoising nor noising, or the pairs are not of this model's task.
        """
        return self._code().truth(self.config, pairs, direction)

    @property
    def card(self) -> str:
        """What the model is, how it works, and which of its parts are the circuit."""
        file = files("interp") / "models" / "compiled" / f"{self.name.removeprefix(PREFIX)}.md"
        return file.read_text(encoding="utf-8")

    @property
    def n_parameters(self) -> int:
        """Number of parameters, biases included."""
        c = self.config
        d, inner = c["n_embd"], c["n_inner"]
        block = 4 * d * d + 4 * d + 2 * d * inner + inner + d
        return 2 * c["vocab_size"] * d + c["n_positions"] * d + c["n_layer"] * block

    def _code(self) -> ModuleType:
        """Return the module that writes this model's weights."""
        from interp.models.compiled import additive, distractors, gated, induction

        return {"induction": induction, "distractors": distractors, "additive": additive, "gated": gated}[
            self.name.removeprefix(PREFIX)
        ]


def _sizes(layers: int, heads: int, width: int, inner: int, vocabulary: int, context: int, act: str) -> dict[str, Any]:
    """Return the configuration of a GPT-2 of these sizes."""
    return {
        "model_type": "gpt2",
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "n_inner": inner,
        "vocab_size": vocabulary,
        "n_positions": context,
        "activation_function": act,
        "bos_token_id": 0,
    }


_MODELS = (
    CompiledModel(
        "compiled/induction",
        "a previous-token head and an induction head; the other heads are idle",
        _sizes(2, 4, 256, 1, 48, 64, "relu"),
    ),
    CompiledModel(
        "compiled/distractors",
        "the same circuit over three layers, among heads and MLPs whose writing nothing reads",
        _sizes(3, 4, 256, 32, 48, 64, "gelu_new"),
    ),
    CompiledModel(
        "compiled/additive",
        "a weighted sum of what tokens are worth: linear from end to end",
        _sizes(2, 3, 48, 4, 36, 16, "linear"),
    ),
    CompiledModel(
        "compiled/gated",
        "saturating and conjunctive ReLU gates, on which first-order estimates fail",
        _sizes(1, 3, 24, 4, 20, 8, "relu"),
    ),
)


def compiled_models() -> dict[str, CompiledModel]:
    """Return {name: model} of the compiled models."""
    return {one.name: one for one in _MODELS}


def compiled_model(name: str) -> CompiledModel:
    """Return the compiled model `name`, or raise ValueError with the nearest match."""
    known = compiled_models()
    if name not in known:
        raise ValueError(unknown("compiled model", name, known))
    return known[name]
