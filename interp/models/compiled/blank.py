"""A GPT-2 without norms whose weights are all zero, and what writes a head, an MLP, an embedding into it.

    x_0 = W_E[token] + W_pos,   x_{l+1} = x_l + sum_h softmax(q_h k_h) v_h W_O + MLP(x),   logits = x_L W_U

Both layer norms of each block and the last one are `NoNorm` (an `nn.Identity`), so that the residual stream is a plain
sum and what a component writes can be read off its weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


class NoNorm(nn.Identity):
    """Stands where a norm was. Like a norm it puts out a contiguous tensor, as GPT-2's projections need one."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input."""
        return input.contiguous()


def without_norms(module: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Put `NoNorm` in the place of every norm of `module`, and return it."""
    for block in module.transformer.h:
        block.ln_1, block.ln_2 = NoNorm(), NoNorm()
    module.transformer.ln_f = NoNorm()  # type: ignore[assignment]
    return module


def blank(config: Mapping[str, Any]) -> GPT2LMHeadModel:
    """Return a GPT-2 of the sizes in `config` without norms, all of whose weights are 0, in float64."""
    from transformers import GPT2Config, GPT2LMHeadModel

    silent = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {key: value for key, value in config.items() if key != "model_type"}
    fixed: dict[str, Any] = {"eos_token_id": None, "tie_word_embeddings": False, "attn_implementation": "sdpa"}
    wanted = GPT2Config(**sizes, **silent, **fixed)
    module = without_norms(GPT2LMHeadModel(wanted)).double().eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.zero_()
    return module


def write_head(
    module: GPT2LMHeadModel,
    layer: int,
    head: int,
    *,
    q: Float[Tensor, "d_model used"] | None = None,
    k: Float[Tensor, "d_model used"] | None = None,
    v: Float[Tensor, "d_model out"] | None = None,
    o: Float[Tensor, "out d_model"] | None = None,
    q_bias: Float[Tensor, " used"] | None = None,
) -> None:
    """Write matrices of a head; what is None stays zero (no q: the head attends to all positions alike).

    The attention scores are (x q + q_bias) (x k): GPT-2's division by sqrt(d_head) is made up for in q.

    Raises:
        ValueError: a matrix has more columns than the head.
    """
    config = module.config
    d_head = config.n_embd // config.n_head
    scale = math.sqrt(d_head)
    attention: Any = module.transformer.h[layer].attn
    parts = {0: None if q is None else q * scale, 1: k, 2: v}
    for which, matrix in parts.items():
        if matrix is None:
            continue
        if matrix.shape[1] > d_head:
            raise ValueError(f"A head of this model has d_head={d_head} columns, got {matrix.shape[1]}.")
        start = which * config.n_embd + head * d_head
        attention.c_attn.weight[:, start : start + matrix.shape[1]] = matrix.double()
    if q_bias is not None:
        attention.c_attn.bias[head * d_head : head * d_head + len(q_bias)] = q_bias.double() * scale
    if o is not None:
        attention.c_proj.weight[head * d_head : head * d_head + len(o)] = o.double()


def write_mlp(
    module: GPT2LMHeadModel,
    layer: int,
    into: Float[Tensor, "d_model d_mlp"],
    out: Float[Tensor, "d_mlp d_model"],
    bias: Float[Tensor, " d_mlp"] | None = None,
) -> None:
    """Write the MLP act(x into + bias) out of a layer."""
    mlp: Any = module.transformer.h[layer].mlp
    mlp.c_fc.weight.copy_(into)
    mlp.c_proj.weight.copy_(out)
    if bias is not None:
        mlp.c_fc.bias.copy_(bias)


def selection(d_model: int, rows: range, columns: int | None = None) -> Float[Tensor, "d_model columns"]:
    """Return the matrix that reads the coordinates `rows` of the residual stream, in order; its transpose writes them.

    `columns` above `len(rows)` appends columns of zeros.
    """
    found = torch.zeros(d_model, columns or len(rows), dtype=torch.float64)
    found[torch.tensor(rows), torch.arange(len(rows))] = 1.0
    return found
