"""`compiled/gated`: ReLU gates on which first-order estimates are wrong and patching is right.

Three heads of one layer each fetch one token of [BOS] A B C [END]; a token is worth 1/4, 1, 2 or 3. At the end

    y = min(1, A) + 2 max(0, B + C - 3/2),   min(1, A) = relu(A) - relu(A - 1)
    logit(yes) - logit(no) = 2 y - 1

Clean prompts have A in {2, 3} and B = C = 1, corrupted ones 1/4 everywhere. Saturation: min(1, A) has gradient 0 at
the clean run, so that a first-order estimate in the noising direction finds nothing of A, whose true effect is 3/2; at
the corrupted run the gradient is 1, and the denoising estimate is 2 A - 1/2 instead of 3/2. Conjunction: B and C are
needed together, so that denoising finds nothing of either alone, and noising the whole effect, 2, of each. No neuron
stands at its kink in either run.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from interp.models.compiled.blank import blank, selection, write_head, write_mlp
from interp.models.compiled.truth import every_cell, truth_table
from interp.sites import Cell
from interp.tasks.pairs import Pairs

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import GPT2LMHeadModel

ROLES = ("bos", "A", "B", "C", "end")
"""What stands at each position."""
END_AT = 4
"""The last position, where the heads bring A, B and C."""
SAME = 4
"""Tokens of each worth, in this order, beginning at token 1."""
LOW, ONE, TWO, THREE = 0.25, 1.0, 2.0, 3.0
"""What tokens are worth."""
END, YES, NO = -3, -2, -1
"""The last three tokens of the vocabulary."""
SHARP = 40.0
"""Attention score of the token that a head fetches."""
WORTH, Y, PLACE = 0, 4, 5
"""Coordinates of the residual stream: a token's worth; then what the heads bring (1 to 3); y; the positions."""
BIAS = (0.0, -1.0, -1.5, 0.0)
"""Of the neurons relu(A), relu(A - 1), relu(B + C - 3/2), and an idle one."""
WRITE = (1.0, -1.0, 2.0, 0.0)
"""What they add to y."""


def build(config: Mapping[str, Any]) -> GPT2LMHeadModel:
    """Return the module."""
    module, d, vocabulary = blank(config), config["n_embd"], config["vocab_size"]
    place = selection(d, range(PLACE, PLACE + config["n_positions"]))
    axis = torch.eye(d, dtype=torch.float64)
    module.transformer.wte.weight[:, WORTH] = torch.from_numpy(worth(vocabulary))
    module.transformer.wpe.weight.copy_(place.T)
    module.transformer.wpe.weight[:, Y] = -0.5  # with no gate open the answer is no
    everywhere = SHARP * place.sum(1, keepdim=True)
    for head in range(3):
        own = place[:, head + 1 : head + 2]
        write_head(module, 0, head, q=everywhere, k=own, v=axis[:, :1], o=axis[head + 1 : head + 2])
    a, b, c = axis[1:4]
    into = torch.stack([a, a, b + c, torch.zeros(d)], dim=1)
    write_mlp(module, 0, into, torch.tensor(WRITE).double()[:, None] * axis[Y], bias=torch.tensor(BIAS))
    module.lm_head.weight[YES], module.lm_head.weight[NO] = axis[Y], -axis[Y]
    return module


def worth(vocabulary: int) -> Float[np.ndarray, " token"]:
    """Return what each token is worth."""
    found = np.zeros(vocabulary)
    found[1 : 1 + 4 * SAME] = np.repeat([LOW, ONE, TWO, THREE], SAME)
    return found


def pairs(config: Mapping[str, Any], n: int, seed: int) -> Pairs:
    """Return prompts that open both gates, and corrupted ones that open none.

    Raises:
        ValueError: `n` is below 1, or there are not so many different prompts.
    """
    vocabulary = config["vocab_size"]
    tokens = {
        value: np.flatnonzero(worth(vocabulary)[1 : vocabulary - 3] == value) + 1 for value in (LOW, ONE, TWO, THREE)
    }
    high = [*tokens[TWO], *tokens[THREE]]
    every = list(itertools.product(high, tokens[ONE], tokens[ONE]))
    if not 1 <= n <= len(every):
        raise ValueError(f"n must lie in 1..{len(every)}, the different prompts that there are, got {n}.")
    source = random.Random(seed)
    end = vocabulary + END
    clean = [[0, *map(int, row), end] for row in source.sample(every, n)]
    corrupt = [[0, *map(int, source.choices(tokens[LOW], k=3)), end] for _ in range(n)]
    answers = torch.tensor([[vocabulary + YES, vocabulary + NO]] * n)
    return Pairs("compiled", torch.tensor(clean), torch.tensor(corrupt), answers[:, :1], answers[:, 1:], roles=ROLES)


def metric(
    base: np.ndarray, vocabulary: int, cells: Sequence[Cell | None] = (None,), other: np.ndarray | None = None
) -> Float[np.ndarray, "cell prompt"]:
    """Return logit(yes) - logit(no) of prompts; each of `cells` is taken from `other` prompts."""
    value = worth(vocabulary)
    own = value[base[:, 1:4]]
    theirs = own if other is None else value[other[:, 1:4]]
    brought = np.repeat(own[None], len(cells), axis=0)
    for i, cell in enumerate(cells):
        part = None if cell is None else _brings(cell)
        if part is not None:
            brought[i][:, part] = theirs[:, part]
    act, their_act = _neurons(brought), _neurons(theirs[None])[0]
    for i, cell in enumerate(cells):
        if cell is not None and cell.kind == "mlp_act" and cell.pos in (END_AT, None):
            act[i][:, cell.neuron] = their_act[:, cell.neuron]
    return 2.0 * act @ np.array(WRITE) - 1.0


def _brings(cell: Cell) -> slice | None:
    """Return which of A, B, C at the end `cell` decides; None: none, or only through its neuron."""
    at_end = cell.pos in (END_AT, None)
    if cell.kind in ("attn_out", "resid_mid", "mlp_out", "resid_post") and at_end:
        return slice(None)
    if cell.kind == "resid_pre" and cell.pos in (1, 2, 3):
        return slice(cell.pos - 1, cell.pos)
    if cell.head is not None and {"v": cell.pos in (cell.head + 1, None), "head_out": at_end}.get(cell.kind, False):
        return slice(cell.head, cell.head + 1)
    return None


def _neurons(brought: Float[np.ndarray, "cell prompt 3"]) -> Float[np.ndarray, "cell prompt 4"]:
    """Return what the neurons put out."""
    a, both = brought[..., 0], brought[..., 1] + brought[..., 2]
    before = np.stack([a, a, both, np.zeros_like(a)], axis=-1)
    return np.maximum(before + np.array(BIAS), 0.0)


def truth(config: Mapping[str, Any], pairs: Pairs, direction: str) -> pa.Table:
    """Return the truth about every cell."""
    vocabulary = config["vocab_size"]
    sign = np.where(pairs.correct[:, 0].numpy() == vocabulary + YES, 1.0, -1.0)

    def patched(cells: Sequence[Cell | None], base: np.ndarray, source: np.ndarray) -> np.ndarray:
        return sign * metric(base, vocabulary, cells, source)

    cells = every_cell(config["n_layer"], config["n_head"], pairs.n_pos, config["n_inner"])
    return truth_table(patched, cells, pairs.clean.numpy(), pairs.corrupt.numpy(), pairs.roles, direction)
