"""Files as other libraries write them, and plainly written what those libraries compute from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D_IN, D_SAE, D_OUT, K = 12, 30, 8, 4


def numbers(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows(n: int = 60) -> Tensor:
    return numbers(n, D_IN, seed=99) * 2 + 0.7


def largest(pre: Tensor, k: int, by: Tensor | None = None) -> Tensor:
    """Return `pre` where `by` (unless given pre itself) is among the k largest of its row, 0 elsewhere."""
    by = pre if by is None else by
    kept = by >= by.sort(dim=-1, descending=True).values[:, k - 1 : k]
    return torch.where(kept, pre, 0.0)


@dataclass
class Case:
    """One dictionary: what stands in its files, and what it computes."""

    rule: str
    """Rule that it becomes here."""
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    encode: Callable[[dict[str, Tensor], Tensor], Tensor]
    """Code of some rows, in the library's own units."""
    decode: Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]
    """(tensors, code, rows) -> reconstruction."""
    unit: Callable[[dict[str, Tensor]], Tensor] = field(default=lambda t: t["W_dec"].norm(dim=1))
    """How many times larger our values are."""


# sae-lens


def lens_config(architecture: str, **more: Any) -> dict[str, Any]:
    metadata = {"model_name": "gpt2-small", "hook_name": "blocks.2.hook_resid_post", "sae_lens_version": "6.54.12"}
    metadata |= more.pop("metadata", {})
    return {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
        "architecture": architecture,
    } | more


def lens_tensors(*names: str, d_out: int = D_IN) -> dict[str, Tensor]:
    every = {
        "W_enc": numbers(D_IN, D_SAE, seed=1, scale=0.4),
        "b_enc": numbers(D_SAE, seed=2, scale=0.2),
        "W_dec": numbers(D_SAE, d_out, seed=3, scale=0.5),
        "b_dec": numbers(d_out, seed=4, scale=0.3),
        "threshold": 0.3 + numbers(D_SAE, seed=5, scale=0.3),  # some below 0
        "b_gate": numbers(D_SAE, seed=6, scale=0.2),
        "b_mag": numbers(D_SAE, seed=7, scale=0.2),
        "r_mag": numbers(D_SAE, seed=8, scale=0.3),
        "topk_threshold": torch.tensor(0.8, dtype=torch.float64),
        "W_skip": numbers(d_out, D_IN, seed=9, scale=0.2),
    }
    return {name: every[name] for name in ("W_dec", "b_dec", *names)}


def lens_pre(t: dict[str, Tensor], x: Tensor, c: int = 1) -> Tensor:
    return (x - c * t["b_dec"]) @ t["W_enc"] + t["b_enc"]


def lens_decode(t: dict[str, Tensor], z: Tensor, x: Tensor) -> Tensor:
    return z @ t["W_dec"] + t["b_dec"]


def gated_code(t: dict[str, Tensor], x: Tensor) -> Tensor:
    c = (x - t["b_dec"]) @ t["W_enc"]
    return torch.where(c + t["b_gate"] > 0, (c * t["r_mag"].exp() + t["b_mag"]).relu(), 0.0)


def jump(pre: Tensor, threshold: Tensor) -> Tensor:
    return pre.relu() * (pre > threshold)


def layer_norm(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    std = x.std(-1, keepdim=True)  # with n - 1
    return (x - mean) / (std + 1e-5), mean, std


def rescaled(t: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return pre-activations times the atoms' lengths."""
    return lens_pre(t, x) * t["W_dec"].norm(dim=-1)


ENC = ("W_enc", "b_enc")
CROSS = {"d_out": D_OUT, "apply_b_dec_to_input": False}
BATCH = {"training_architecture": "batchtopk", "training_architecture_details": {"k": 3.6}}

LENS: dict[str, Case] = {
    "standard": Case(
        "relu", lens_tensors(*ENC), lens_config("standard"), lambda t, x: lens_pre(t, x).relu(), lens_decode
    ),
    "standard without b_dec": Case(
        "relu",
        lens_tensors(*ENC),
        lens_config("standard", apply_b_dec_to_input=False),
        lambda t, x: lens_pre(t, x, 0).relu(),
        lens_decode,
    ),
    "standard with layer norm": Case(
        "relu",
        lens_tensors(*ENC),
        lens_config("standard", normalize_activations="layer_norm"),
        lambda t, x: lens_pre(t, layer_norm(x)[0]).relu(),
        lambda t, z, x: lens_decode(t, z, x) * layer_norm(x)[2] + layer_norm(x)[1],
        lambda t: t["W_dec"].norm(dim=1) * (D_IN / (D_IN - 1)) ** 0.5,
    ),
    "topk": Case(
        "topk",
        lens_tensors(*ENC),
        lens_config("topk", k=K, rescale_acts_by_decoder_norm=False),
        lambda t, x: largest(lens_pre(t, x), K).relu(),
        lens_decode,
        lambda t: torch.ones(D_SAE),  # atoms of many lengths: they stay, or other latents would be picked
    ),
    "topk by length": Case(
        "topk",
        lens_tensors(*ENC),
        lens_config("topk", k=K, rescale_acts_by_decoder_norm=True),
        lambda t, x: largest(rescaled(t, x), K).relu(),
        lambda t, z, x: lens_decode(t, z / t["W_dec"].norm(dim=-1), x),
        lambda t: torch.ones(D_SAE),
    ),
    "abstopk": Case(
        "abs_topk",
        lens_tensors(*ENC),
        lens_config("abstopk", k=K, rescale_acts_by_decoder_norm=True),
        lambda t, x: largest(rescaled(t, x), K, rescaled(t, x).abs()),
        lambda t, z, x: lens_decode(t, z / t["W_dec"].norm(dim=-1), x),
        lambda t: torch.ones(D_SAE),
    ),
    "jumprelu": Case(
        "jump_relu",
        lens_tensors(*ENC, "threshold"),
        lens_config("jumprelu"),
        lambda t, x: jump(lens_pre(t, x), t["threshold"]),
        lens_decode,
    ),
    "jumprelu of batchtopk": Case(
        "batch_topk",
        {
            **lens_tensors(*ENC),
            "threshold": torch.full((D_SAE,), 0.6),
            "W_dec": torch.nn.functional.normalize(numbers(D_SAE, D_IN, seed=3), dim=1),
        },
        lens_config("jumprelu", metadata=BATCH),
        lambda t, x: jump(lens_pre(t, x), t["threshold"]),
        lens_decode,
    ),
    "batchtopk in training": Case(
        "batch_topk",
        lens_tensors(*ENC, "topk_threshold"),
        lens_config("batchtopk", k=3.6, rescale_acts_by_decoder_norm=True, topk_threshold_lr=0.01),
        lambda t, x: jump(rescaled(t, x), t["topk_threshold"]).float(),
        lambda t, z, x: lens_decode(t, z / t["W_dec"].norm(dim=-1), x),
        lambda t: torch.ones(D_SAE),
    ),
    "matryoshka in training": Case(
        "matryoshka",
        lens_tensors(*ENC, "topk_threshold"),
        lens_config("matryoshka_batchtopk", k=4.0, rescale_acts_by_decoder_norm=True, matryoshka_widths=[5, 15, D_SAE]),
        lambda t, x: jump(rescaled(t, x), t["topk_threshold"]).float(),
        lambda t, z, x: lens_decode(t, z / t["W_dec"].norm(dim=-1), x),
        lambda t: torch.ones(D_SAE),
    ),
    "gated": Case(
        "gated", lens_tensors("W_enc", "b_gate", "b_mag", "r_mag"), lens_config("gated"), gated_code, lens_decode
    ),
    "gated without b_dec": Case(
        "gated",
        lens_tensors("W_enc", "b_gate", "b_mag", "r_mag"),
        lens_config("gated", apply_b_dec_to_input=False),
        lambda t, x: gated_code(t, x + t["b_dec"]),
        lens_decode,
    ),
    "transcoder": Case(
        "relu",
        lens_tensors(*ENC, d_out=D_OUT),
        lens_config("transcoder", **CROSS),
        lambda t, x: (x @ t["W_enc"] + t["b_enc"]).relu(),
        lens_decode,
    ),
    "jumprelu transcoder with a skip": Case(
        "jump_relu",
        lens_tensors(*ENC, "threshold", "W_skip", d_out=D_OUT),
        lens_config("jumprelu_skip_transcoder", **CROSS),
        lambda t, x: jump(x @ t["W_enc"] + t["b_enc"], t["threshold"]),
        lambda t, z, x: lens_decode(t, z, x) + x @ t["W_skip"].T,
    ),
}

OLD = {  # sae-lens 3 wrote its whole training configuration
    "architecture": "standard",
    "model_name": "gpt2-small",
    "hook_point": "blocks.2.hook_resid_pre",
    "hook_point_layer": 2,
    "hook_point_head_index": None,
    "activation_fn_str": "topk",
    "activation_fn_kwargs": {"k": K},
    "normalize_activations": False,
    "d_in": D_IN,
    "d_sae": D_SAE,
    "dataset_path": "Skylion007/openwebtext",
    "lr": 4e-4,
}


def write_lens(folder: Path, case: Case) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in case.tensors.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(case.config))
    return folder


# Gemma Scope


def gemma_case() -> Case:
    return Case(
        "jump_relu",
        lens_tensors(*ENC, "threshold"),
        {},
        lambda t, x: jump(x @ t["W_enc"] + t["b_enc"], t["threshold"]),
        lens_decode,
    )


def write_gemma(folder: Path, tensors: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{name: np.asarray(value) for name, value in tensors.items()})
    return folder


# sparsify


def sparsify_tensors(*names: str, d_out: int = D_IN) -> dict[str, Tensor]:
    every = {
        "encoder.weight": numbers(D_SAE, D_IN, seed=11, scale=0.4),
        "encoder.bias": numbers(D_SAE, seed=12, scale=0.2),
        "W_dec": torch.nn.functional.normalize(numbers(D_SAE, d_out, seed=13), dim=1),
        "b_dec": numbers(d_out, seed=14, scale=0.3),
        "W_skip": numbers(d_out, D_IN, seed=15, scale=0.2),
    }
    return {name: every[name] for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec", *names)}


def sparsify_config(**more: Any) -> dict[str, Any]:
    return {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": D_SAE,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D_IN,
    } | more


def sparsify_pre(t: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, t["encoder.weight"], t["encoder.bias"]).relu()


def group_max(pre: Tensor, k: int) -> Tensor:
    out = torch.zeros_like(pre)
    size = pre.shape[1] // k
    for n in range(len(pre)):
        for group in range(k):
            i = group * size + int(pre[n, group * size : (group + 1) * size].argmax())
            out[n, i] = pre[n, i]
    return out


SPARSIFY: dict[str, Case] = {
    "topk": Case(
        "topk",
        sparsify_tensors(),
        sparsify_config(),
        lambda t, x: largest(sparsify_pre(t, x - t["b_dec"]), K),
        lens_decode,
    ),
    "groupmax": Case(
        "group_max",
        sparsify_tensors(),
        sparsify_config(activation="groupmax", k=5),
        lambda t, x: group_max(sparsify_pre(t, x - t["b_dec"]), 5),
        lens_decode,
    ),
    "skip transcoder": Case(
        "topk",
        sparsify_tensors("W_skip", d_out=D_OUT),
        sparsify_config(transcode=True, skip_connection=True),
        lambda t, x: largest(sparsify_pre(t, x), K),
        lambda t, z, x: lens_decode(t, z, x) + x @ t["W_skip"].T,
    ),
    "skip connection of a dictionary": Case(
        "topk",
        sparsify_tensors("W_skip"),
        sparsify_config(skip_connection=True),
        lambda t, x: largest(sparsify_pre(t, x - t["b_dec"]), K),
        lambda t, z, x: lens_decode(t, z, x) + x @ t["W_skip"].T,
    ),
}


def write_sparsify(folder: Path, case: Case) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in case.tensors.items()}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(case.config))
    return folder


# dictionary_learning


def learning_tensors(*names: str) -> dict[str, Tensor]:
    W_enc, W_dec = numbers(D_SAE, D_IN, seed=21, scale=0.4), numbers(D_SAE, D_IN, seed=22)
    W_dec = torch.nn.functional.normalize(W_dec, dim=1)
    every = {
        "encoder.weight": W_enc,
        "decoder.weight": W_dec.T,
        "encoder.bias": numbers(D_SAE, seed=23, scale=0.2),
        "bias": numbers(D_IN, seed=24, scale=0.3),
        "b_dec": numbers(D_IN, seed=24, scale=0.3),
        "decoder.bias": numbers(D_IN, seed=24, scale=0.3),
        "decoder_bias": numbers(D_IN, seed=24, scale=0.3),
        "r_mag": numbers(D_SAE, seed=25, scale=0.3),
        "gate_bias": numbers(D_SAE, seed=26, scale=0.2),
        "mag_bias": numbers(D_SAE, seed=27, scale=0.2),
        "W_enc": W_enc.T,
        "W_dec": W_dec,
        "b_enc": numbers(D_SAE, seed=23, scale=0.2),
        "k": torch.tensor(K, dtype=torch.int32),
        "threshold": torch.tensor(0.7),
        "thresholds": 0.3 + numbers(D_SAE, seed=28, scale=0.2).abs(),
        "group_sizes": torch.tensor([5, 10, 15]),
    }
    return {name: every[name] for name in names}


def linear(t: dict[str, Tensor], x: Tensor) -> Tensor:
    return x @ t["encoder.weight"].T + t.get("encoder.bias", torch.zeros(()))


def back(t: dict[str, Tensor], z: Tensor, bias: str) -> Tensor:
    return z @ t["decoder.weight"].T + t[bias]


def ones(t: dict[str, Tensor]) -> Tensor:
    return torch.ones(D_SAE)


LINEAR = ("encoder.weight", "decoder.weight", "encoder.bias")
LEARNING: dict[str, Case] = {
    "AutoEncoder": Case(
        "relu",
        learning_tensors(*LINEAR, "bias"),
        {},
        lambda t, x: linear(t, x - t["bias"]).relu(),
        lambda t, z, x: back(t, z, "bias"),
        ones,
    ),
    "AutoEncoderNew": Case(
        "relu",
        learning_tensors(*LINEAR, "decoder.bias"),
        {},
        lambda t, x: linear(t, x).relu(),
        lambda t, z, x: back(t, z, "decoder.bias"),
        ones,
    ),
    "AutoEncoderTopK": Case(
        "topk",
        learning_tensors(*LINEAR, "b_dec", "k", "threshold"),
        {},
        lambda t, x: largest(linear(t, x - t["b_dec"]).relu(), K),
        lambda t, z, x: back(t, z, "b_dec"),
        ones,
    ),
    "BatchTopKSAE": Case(
        "batch_topk",
        learning_tensors(*LINEAR, "b_dec", "k", "threshold"),
        {},
        lambda t, x: jump(linear(t, x - t["b_dec"]), t["threshold"]),
        lambda t, z, x: back(t, z, "b_dec"),
        ones,
    ),
    "MatryoshkaBatchTopKSAE": Case(
        "matryoshka",
        learning_tensors("W_enc", "b_enc", "W_dec", "b_dec", "k", "threshold", "group_sizes"),
        {},
        lambda t, x: jump(lens_pre(t, x), t["threshold"]),
        lens_decode,
        ones,
    ),
    "GatedAutoEncoder": Case(
        "gated",
        learning_tensors("encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"),
        {},
        lambda t, x: torch.where(
            linear(t, x - t["decoder_bias"]) + t["gate_bias"] > 0,
            (t["r_mag"].exp() * linear(t, x - t["decoder_bias"]) + t["mag_bias"]).relu(),
            0.0,
        ),
        lambda t, z, x: back(t, z, "decoder_bias"),
        ones,
    ),
    "JumpReluAutoEncoder": Case(
        "jump_relu",
        {
            **learning_tensors("W_enc", "b_enc", "W_dec", "b_dec"),
            "threshold": learning_tensors("thresholds")["thresholds"],
        },
        {},
        lambda t, x: jump(x @ t["W_enc"] + t["b_enc"], t["threshold"]),
        lens_decode,
        ones,
    ),
}


def write_learning(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: v.contiguous() for n, v in LEARNING[name].tensors.items()}, folder / "ae.safetensors")
    trainer = {"dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 3}
    trainer |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_3"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"d_submodule": D_IN}}))
    return folder
