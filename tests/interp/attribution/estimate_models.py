"""Models and pairs for tests of estimates: random pairs, a model that is linear, one without biases."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from interp.models import ModelHandle, load_model
from interp.models.taps import BLOCKS
from interp.tasks import Pairs
from tests.conftest import build_module

KINDS = ("resid_pre", "v", "head_out", "attn_out", "mlp_act", "mlp_out", "resid_post")
NORMS = {
    "gpt2": ("ln_1", "ln_2"),
    "gpt_neox": ("input_layernorm", "post_attention_layernorm"),
    "llama": ("input_layernorm", "post_attention_layernorm"),
}
FINAL = {"gpt2": ("transformer", "ln_f"), "gpt_neox": ("gpt_neox", "final_layer_norm"), "llama": ("model", "norm")}
SILENT = {
    "gpt2": ("mlp.c_proj",),
    "gpt_neox": ("mlp.dense_4h_to_h",),
    "llama": ("mlp.down_proj", "self_attn.q_proj", "self_attn.k_proj"),
}


def random_pairs(n: int = 3, length: int = 6, vocabulary: int = 300, seed: int = 0) -> Pairs:
    """Return pairs of random prompts that differ at positions 1 and 3."""
    g = torch.Generator().manual_seed(seed)
    clean = torch.randint(1, vocabulary, (n, length), generator=g)
    corrupt = clean.clone()
    corrupt[:, [1, 3]] = torch.randint(1, vocabulary, (n, 2), generator=g)
    answers = torch.randperm(vocabulary - 1, generator=g)[: 2 * n].view(2, n, 1) + 1
    return Pairs("random", clean, corrupt, answers[0], answers[1])


def double_model(family: str, **changes: object) -> ModelHandle:
    """Return a random model in float64."""
    return load_model(build_module(family, **changes).double())


def linear_model(family: str) -> ModelHandle:
    """Return a model whose logits are linear in the embeddings: no norms, no MLP, patterns that see no token."""
    module: Any = build_module(family).double()
    kind = module.config.model_type
    base, final = FINAL[kind]
    setattr(getattr(module, base), final, nn.Identity())
    with torch.no_grad():
        for block in module.get_submodule(BLOCKS[kind]):
            for name in NORMS[kind]:
                setattr(block, name, nn.Identity())
            for path in SILENT[kind]:
                for parameter in block.get_submodule(path).parameters():
                    parameter.zero_()
            if kind == "gpt2":  # [q | k | v] side by side
                block.attn.c_attn.weight[:, : 2 * block.attn.embed_dim] = 0
            if kind == "gpt_neox":  # [q_h | k_h | v_h] for each head
                weight = block.attention.query_key_value.weight.unflatten(0, (4, 3, -1))
                weight[:, :2] = 0
    return load_model(module)


def unbiased_model(family: str) -> ModelHandle:
    """Return a random model in float64 whose biases are 0."""
    module = build_module(family).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return load_model(module)
