"""`compiled/induction`: a previous-token head (0.2) and an induction head (1.1); the other six heads are idle.

An idle head attends to all positions alike and gathers their tokens, so that it is busy to look at, but its output
matrix is zero. `interp.models.compiled.copying` has the formulas of the circuit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from interp.models.compiled.blank import blank, selection, write_head
from interp.models.compiled.copying import Copying, copying_pairs, copying_truth

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import GPT2LMHeadModel

    from interp.tasks.pairs import Pairs

CIRCUIT = Copying(previous=(0, 2), induction=(1, 1))
"""The heads that do the work."""


def build(config: Mapping[str, Any]) -> GPT2LMHeadModel:
    """Return the module."""
    module = blank(config)
    CIRCUIT.write(module, config)
    token = selection(config["n_embd"], CIRCUIT.blocks(config)["token"])
    for layer in range(config["n_layer"]):
        for head in range(config["n_head"]):
            if (layer, head) not in (CIRCUIT.previous, CIRCUIT.induction):
                write_head(module, layer, head, v=token)
    return module


def pairs(config: Mapping[str, Any], n: int, seed: int) -> Pairs:
    """Return pairs of the induction task."""
    return copying_pairs(config, n, seed)


def truth(config: Mapping[str, Any], pairs: Pairs, direction: str) -> pa.Table:
    """Return the truth about every cell."""
    return copying_truth(CIRCUIT, config, pairs, direction)
