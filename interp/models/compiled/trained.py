"""Trained toy transformers of the progress-measures study (Nanda et al. 2023), read from the files a user names.

    load_model("FOLDER/induction_head_infinite.safetensors")       # 2 layers, attention only
    load_model("FOLDER/mod_addition_no_wd.safetensors")            # 1 layer, ReLU MLP, reads [a, b, 113]

They have no layer norm, and the source's own names of tensors: W_Q, W_K, W_V [head d_head d_model], W_O
[d_model head*d_head], W_in [d_mlp d_model], all without biases but the MLP's. They become a GPT-2 whose norms are
`nn.Identity`s.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.models.compiled.blank import blank, write_head, write_mlp

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

_PART = re.compile(r"(?:attn_)?blocks\.(\d+)\.(attn|mlp)\.(W_Q|W_K|W_V|W_O|W_in|W_out|b_in|b_out)")


def read_trained(path: str | Path) -> GPT2LMHeadModel:
    """Return the transformer in a safetensors file of this study, in float64.

    Raises:
        ValueError: the file is damaged, or its tensors are not those of such a model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged ({error}). Fetch it again.") from error
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        if match := _PART.fullmatch(name):
            blocks.setdefault(int(match[1]), {})[match[3]] = tensor.double()
    lacking = {"embed.W_E", "pos_embed.W_pos", "unembed.W_U"} - stored.keys()
    if lacking or sorted(blocks) != list(range(len(blocks))) or not all("W_O" in block for block in blocks.values()):
        what = f"lacks {sorted(lacking)[0]}" if lacking else "has no complete blocks.N.attn.W_Q, W_K, W_V, W_O"
        raise ValueError(
            f"{path} is a file of weights, and {what}, so it is none of the known toy transformers. A model is "
            "otherwise a Hugging Face folder with config.json and safetensors: name the folder."
        )
    module = blank(_sizes(stored, blocks))
    module.transformer.wte.weight.copy_(stored["embed.W_E"].T)
    module.transformer.wpe.weight.copy_(stored["pos_embed.W_pos"])
    module.lm_head.weight.copy_(stored["unembed.W_U"].T)
    for layer, block in blocks.items():
        _write_block(module, layer, block)
    return module


def _sizes(stored: dict[str, Tensor], blocks: dict[int, dict[str, Tensor]]) -> dict[str, Any]:
    """Return the configuration of a GPT-2 of the sizes of these tensors."""
    width, vocabulary = stored["embed.W_E"].shape
    first = blocks[0]
    return {
        "n_layer": len(blocks),
        "n_head": len(first["W_Q"]),
        "n_embd": width,
        "n_inner": len(first["b_in"]) if "b_in" in first else 1,
        "vocab_size": vocabulary,
        "n_positions": len(stored["pos_embed.W_pos"]),
        "activation_function": "relu",
        "bos_token_id": None,
    }


def _write_block(module: GPT2LMHeadModel, layer: int, block: dict[str, Tensor]) -> None:
    """Write one block of the source's tensors."""
    heads, d_head, _ = block["W_Q"].shape
    outs = block["W_O"].T.unflatten(0, (heads, d_head))
    for head in range(heads):
        q, k, v = (block[name][head].T for name in ("W_Q", "W_K", "W_V"))
        write_head(module, layer, head, q=q / d_head**0.5, k=k, v=v, o=outs[head])  # their scores are divided too
    if "W_in" in block:
        write_mlp(module, layer, block["W_in"].T, block["W_out"].T, bias=block["b_in"])
        mlp: Any = module.transformer.h[layer].mlp
        mlp.c_proj.bias.copy_(block["b_out"])
