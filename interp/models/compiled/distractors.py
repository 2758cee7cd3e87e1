"""`compiled/distractors`: the induction circuit over three layers, among parts whose writing nothing ever reads.

The previous-token head is 0.1 and the induction head 2.3. Every other head but the idle 1.0 attends by random scores
of token and place, reads all that the stream holds, and writes it, large, into 48 coordinates (`junk`) that only other
distractors read; so does a random GELU MLP in every layer. Ablating all of it, with zeros, means or anything else,
leaves the logits exactly as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from interp.models.compiled.blank import blank, selection, write_head, write_mlp
from interp.models.compiled.copying import Copying, copying_pairs, copying_truth

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import GPT2LMHeadModel

    from interp.tasks.pairs import Pairs

CIRCUIT = Copying(previous=(0, 1), induction=(2, 3))
"""The heads that do the work."""
IDLE = (1, 0)
"""The head that writes nothing at all."""
LOUD = 3.0
"""Standard deviation of what distractors multiply by."""


def build(config: Mapping[str, Any]) -> GPT2LMHeadModel:
    """Return the module; its distractors are the same every time."""
    module = blank(config)
    CIRCUIT.write(module, config)
    generator = torch.Generator().manual_seed(0)
    d, d_head = config["n_embd"], config["n_embd"] // config["n_head"]
    junk = selection(d, CIRCUIT.blocks(config)["junk"]).T

    def random(*shape: int) -> torch.Tensor:
        return LOUD * torch.randn(*shape, generator=generator, dtype=torch.float64)

    for layer in range(config["n_layer"]):
        for head in range(config["n_head"]):
            if (layer, head) in (CIRCUIT.previous, CIRCUIT.induction):
                continue
            q, k, v = random(d, d_head) / d_head, random(d, d_head) / d_head, random(d, d_head) / d_head**0.5
            o = torch.zeros(d_head, d) if (layer, head) == IDLE else random(d_head, len(junk)) / d_head**0.5 @ junk
            write_head(module, layer, head, q=q, k=k, v=v, o=o)
        into, out = random(d, config["n_inner"]) / d**0.5, random(config["n_inner"], len(junk)) @ junk
        write_mlp(module, layer, into, out)
    return module


def pairs(config: Mapping[str, Any], n: int, seed: int) -> Pairs:
    """Return pairs of the induction task."""
    return copying_pairs(config, n, seed)


def truth(config: Mapping[str, Any], pairs: Pairs, direction: str) -> pa.Table:
    """Return the truth about every cell."""
    return copying_truth(CIRCUIT, config, pairs, direction)
