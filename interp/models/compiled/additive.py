"""`compiled/additive`: the answer is a weighted sum of what the tokens are worth; every part of the model is linear.

With v(x) the worth of a token, A^h fixed attention patterns that depend on positions only, and scalars w, u, m, n:

    s_i  = sum_h w_h sum_j A0^h_ij v(x_j)               layer 0, heads
    t_i  = s_i + m0 v(x_i) + n0 s_i                     layer 0, MLP (its activation is the identity)
    a_i  = sum_h sum_j A1^h_ij (u_h t_j + w'_h v(x_j))  layer 1, heads
    y_i  = a_i + m1 v(x_i) + n1 t_i + r1 a_i            layer 1, MLP
    logit(yes) - logit(no) = 2 y_end

Gradients, relevance and patching must all agree here, in both directions, to rounding: what a cell does is its
change times a constant.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
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

LENGTH = 9
"""Tokens of a prompt, BOS included."""
YES, NO = -2, -1
"""The answers are the last two tokens of the vocabulary."""
HEADS = np.array([[0.9, -0.6, 0.3], [0.8, 0.5, -0.4]])
"""What the heads of the two layers multiply by: w of layer 0, u of layer 1."""
PAST = np.array([0.2, -0.3, 0.6])
"""What the heads of layer 1 multiply the tokens' worth by: w'."""
MLP = {"m0": 0.5, "n0": -0.25, "m1": 0.4, "n1": 0.3, "r1": 0.5}
"""What the MLPs multiply by."""
VALUE, SUM, ANSWER = 0, 1, 2
"""Coordinates of the residual stream: v(x), t and y; positions come after them."""


def worth(vocabulary: int) -> Float[np.ndarray, " token"]:
    """Return v of each token: 0 for BOS and the answers, evenly spread over -1..1 for the others."""
    found = np.zeros(vocabulary)
    found[1 : vocabulary - 2] = np.linspace(-1.0, 1.0, vocabulary - 3)
    return found


def scores(n_pos: int) -> Float[np.ndarray, "layer head query key"]:
    """Return the attention scores: fixed numbers of position, the same every time."""
    return np.random.default_rng(0).normal(0.0, 1.5, (2, 3, n_pos, n_pos))


@lru_cache(maxsize=8)
def patterns(n_pos: int, context: int) -> Float[np.ndarray, "layer head query key"]:
    """Return the attention patterns over the first `n_pos` positions."""
    allowed = np.tril(np.ones((n_pos, n_pos), bool))
    weights = np.where(allowed, np.exp(scores(context)[..., :n_pos, :n_pos]), 0.0)
    return weights / weights.sum(-1, keepdims=True)


def build(config: Mapping[str, Any]) -> GPT2LMHeadModel:
    """Return the module."""
    module, d, context = blank(config), config["n_embd"], config["n_positions"]
    place = selection(d, range(3, 3 + context))
    axis = {name: torch.eye(d, dtype=torch.float64)[i] for name, i in (("v", VALUE), ("t", SUM), ("y", ANSWER))}
    module.transformer.wte.weight[:, VALUE] = torch.from_numpy(worth(config["vocab_size"]))
    module.transformer.wpe.weight.copy_(place.T)
    for layer, head in np.ndindex(2, 3):
        ask = place @ torch.from_numpy(scores(context)[layer, head])
        read = axis["v"] if layer == 0 else HEADS[1, head] * axis["t"] + PAST[head] * axis["v"]
        write = HEADS[0, head] * axis["t"] if layer == 0 else axis["y"]
        write_head(module, layer, head, q=ask, k=place, v=read[:, None], o=write[None])
    for layer, (read, write) in enumerate(_mlps(axis)):
        into, out = torch.zeros(d, config["n_inner"]).double(), torch.zeros(config["n_inner"], d).double()
        for neuron, direction in enumerate(read):
            into[:, neuron], out[neuron] = direction, write[neuron]
        write_mlp(module, layer, into, out)
    module.lm_head.weight[YES], module.lm_head.weight[NO] = axis["y"], -axis["y"]
    return module


def _mlps(axis: Mapping[str, torch.Tensor]) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Return what the neurons of each layer read, and what they write."""
    m = MLP
    return [
        ([axis["v"], axis["t"]], [m["m0"] * axis["t"], m["n0"] * axis["t"]]),
        ([axis["v"], axis["t"], axis["y"]], [m["m1"] * axis["y"], m["n1"] * axis["y"], m["r1"] * axis["y"]]),
    ]


def pairs(config: Mapping[str, Any], n: int, seed: int) -> Pairs:
    """Return prompts of random tokens; the corrupted ones are others, with the other answer.

    Raises:
        ValueError: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    source = random.Random(seed)
    vocabulary, context = config["vocab_size"], config["n_positions"]
    clean: list[list[int]] = []
    corrupt: list[list[int]] = []
    answers = []
    while len(clean) < n:
        two = [[0, *source.choices(range(1, vocabulary - 2), k=LENGTH - 1)] for _ in range(2)]
        if two[0] in clean:
            continue
        first, second = metric(np.array(two), vocabulary, context)[0]
        if first * second < 0:
            clean.append(two[0])
            corrupt.append(two[1])
            answers.append([vocabulary + (YES if first > 0 else NO), vocabulary + (NO if first > 0 else YES)])
    ids = torch.tensor(answers)
    roles = ("bos", *(f"term {i}" for i in range(1, LENGTH - 1)), "end")
    return Pairs("compiled", torch.tensor(clean), torch.tensor(corrupt), ids[:, :1], ids[:, 1:], roles=roles)


def metric(
    tokens: np.ndarray,
    vocabulary: int,
    context: int,
    cells: Sequence[Cell | None] = (None,),
    other: np.ndarray | None = None,
) -> Float[np.ndarray, "cell prompt"]:
    """Return logit(yes) - logit(no) of prompts, one quantity after the other; each of `cells` is taken from `other`."""
    fixed, m, value = patterns(tokens.shape[1], context), MLP, worth(vocabulary)
    take = _Taking(cells)
    both = [np.repeat(value[tokens][None], len(cells), axis=0), value[tokens if other is None else other][None]]
    state = {"v": both, "t": [np.zeros_like(part) for part in both], "y": [np.zeros_like(part) for part in both]}
    for layer, out in enumerate(("t", "y")):
        take.stream(state, "resid_pre", layer)
        total = [np.zeros_like(part) for part in both]
        for head in range(3):
            read = state["v"]
            if layer == 1:
                read = [HEADS[1, head] * t + PAST[head] * v for t, v in zip(state["t"], state["v"], strict=True)]
            read = take(read, "v", layer, head)
            mixed = take([part @ fixed[layer, head].T for part in read], "head_out", layer, head)
            total = _sum(total, mixed, HEADS[0, head] if layer == 0 else 1.0)
        state[out] = _sum(state[out], take(total, "attn_out", layer))
        take.stream(state, "resid_mid", layer)
        names = (("v", m["m0"]), ("t", m["n0"])) if layer == 0 else (("v", m["m1"]), ("t", m["n1"]), ("y", m["r1"]))
        written = [np.zeros_like(part) for part in both]
        for neuron, (name, gain) in enumerate(names):
            written = _sum(written, take(state[name], "mlp_act", layer, neuron=neuron), gain)
        state[out] = _sum(state[out], take(written, "mlp_out", layer))
        take.stream(state, "resid_post", layer)
    return 2.0 * state["y"][0][..., -1]


def _sum(old: list[np.ndarray], new: list[np.ndarray], gain: float = 1.0) -> list[np.ndarray]:
    """Return old + gain new, for the prompts and the other prompts."""
    return [one + gain * more for one, more in zip(old, new, strict=True)]


class _Taking:
    """Takes cells from the other prompts: the row of a cell in (base [cell prompt pos], other [1 prompt pos])."""

    def __init__(self, cells: Sequence[Cell | None]) -> None:
        self.places: dict[tuple, list[tuple[int, slice]]] = {}
        for i, cell in enumerate(cells):
            if cell is not None:
                places = slice(None) if cell.pos is None else slice(cell.pos, cell.pos + 1)
                key = (cell.kind, cell.layer, cell.head, cell.neuron)
                self.places.setdefault(key, []).append((i, places))

    def __call__(
        self, both: list[np.ndarray], kind: str, layer: int, head: int | None = None, neuron: int | None = None
    ) -> list[np.ndarray]:
        """Return (base, other) with the rows of these cells changed."""
        changed = both[0].copy()
        for i, places in self.places.get((kind, layer, head, neuron), ()):
            changed[i][:, places] = both[1][0][:, places]
        return [changed, both[1]]

    def stream(self, state: dict[str, list[np.ndarray]], kind: str, layer: int) -> None:
        """Change the whole residual stream."""
        for name in state:
            state[name] = self(state[name], kind, layer)


def truth(config: Mapping[str, Any], pairs: Pairs, direction: str) -> pa.Table:
    """Return the truth about every cell."""
    vocabulary, context = config["vocab_size"], config["n_positions"]
    sign = np.where(pairs.correct[:, 0].numpy() == vocabulary + YES, 1.0, -1.0)

    def patched(cells: Sequence[Cell | None], base: np.ndarray, source: np.ndarray) -> np.ndarray:
        return sign * metric(base, vocabulary, context, cells, source)

    clean, corrupt = pairs.clean.numpy(), pairs.corrupt.numpy()
    cells = every_cell(config["n_layer"], config["n_head"], pairs.n_pos, config["n_inner"])
    return truth_table(patched, cells, clean, corrupt, pairs.roles, direction)
