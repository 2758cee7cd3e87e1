"""Write a dictionary in the layout of sae-lens or sparsify.

Theirs work on raw activations, so what the normaliser does is written into the biases: with x = s x_n, the code counts
in raw units (s times ours), b_enc, b_dec and thresholds are multiplied by s, encoder rows and atoms stay. `layer`
normalisation divides by the standard deviation with n, sae-lens with n - 1: s = sqrt((d - 1) / d) for that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.names import unknown
from interp.runs.files import shown
from interp.sites import Site
from sae.model import Sae
from sae.readers import sae_lens, sparsify
from sae.targets import Transcoder

FORMAT_VERSION = "6.0.0"
"""Of sae-lens' configurations that is written: the first with today's keys."""

ARCHITECTURE: dict[str, str] = {
    **dict.fromkeys(("relu", "p_anneal"), "standard"),
    **dict.fromkeys(("topk", "gradient", "variational"), "topk"),
    **dict.fromkeys(("batch_topk", "mutual_choice", "feature_choice", "matryoshka", "jump_relu"), "jumprelu"),
    "abs_topk": "abstopk",
    "gated": "gated",
}
"""Rule -> architecture of sae-lens that does in evaluation what it does."""

ACTIVATION = {"topk": "topk", "gradient": "topk", "variational": "topk", "group_max": "groupmax"}
"""Rule -> activation of sparsify, likewise."""


@dataclass(frozen=True)
class Origin:
    """Where a dictionary belongs."""

    model: str
    """Name of the model."""
    site: str
    """Site that it reads."""
    site_out: str | None = None
    """Site that a transcoder writes."""


def write_sae_lens(sae: Sae, origin: Origin, folder: Path) -> list[Path]:
    """Write cfg.json and sae_weights.safetensors into `folder` and return their paths.

    Raises:
        ValueError: sae-lens has no such dictionary, or one of the files is there already.
    """
    kind, target = _architecture(sae), sae.config.target
    tensors = _raw(sae)
    W_enc = tensors.pop("W_enc").t().contiguous()
    config: dict[str, Any] = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": target.kind != "transcoder",
        "normalize_activations": "layer_norm" if sae.config.normalise == "layer" else "none",
        "reshape_activations": "hook_z" if origin.site.startswith("head_out.") else "none",
        "architecture": kind,
        "metadata": {
            "sae_lens_version": FORMAT_VERSION,
            "model_name": origin.model,
            "hook_name": Site.parse(origin.site).lens_name,
            "hook_head_index": None,
            "prepend_bos": True,
        },
    }
    if kind in ("topk", "abstopk"):
        config |= {"k": sae.rule.k, "rescale_acts_by_decoder_norm": False}
    if kind == "gated":
        tensors["b_gate"], tensors["r_mag"] = tensors.pop("b_enc"), tensors.pop("r")
    if target.kind == "transcoder":
        config |= {"architecture": _transcoder(sae, kind), "d_out": sae.d_out}
        if origin.site_out is not None:
            config["metadata"]["hook_name_out"] = Site.parse(origin.site_out).lens_name
    return _write(folder, sae_lens.CONFIG, config, sae_lens.WEIGHTS, tensors | {"W_enc": W_enc})


def _architecture(sae: Sae) -> str:
    """Return the architecture of sae-lens that gives the dictionary's code, or refuse one that it has no name for."""
    name = sae.config.rule
    kind = ARCHITECTURE.get(name)
    over_batch = name in ("abs_topk", "matryoshka") and getattr(sae.rule, "batch", None)
    if kind is None or (name == "abs_topk" and over_batch) or (name == "matryoshka" and not over_batch):
        raise ValueError(
            f"sae-lens has no dictionary that does what rule {name!r} does; known: {', '.join(ARCHITECTURE)}."
        )
    if sae.config.target.kind == "crosscoder":
        raise ValueError("sae-lens holds no crosscoder; it stays a run of mechscope.")
    return kind


def _transcoder(sae: Sae, kind: str) -> str:
    """Return the architecture of a transcoder whose code is that of `kind`."""
    if kind not in ("standard", "jumprelu") or sae.config.normalise == "layer":
        raise ValueError("sae-lens' transcoders are ReLU or JumpReLU without layer normalisation; this one is not.")
    return ("jumprelu_" if kind == "jumprelu" else "") + ("skip_" if sae.config.target.skip else "") + "transcoder"


def write_sparsify(sae: Sae, origin: Origin, folder: Path) -> list[Path]:  # noqa: ARG001
    """Write cfg.json and sae.safetensors into `folder` and return their paths; sparsify notes no model or site.

    Raises:
        ValueError: sparsify has no such dictionary, or one of the files is there already.
    """
    name, target = sae.config.rule, sae.config.target
    if name not in ACTIVATION or target.kind == "crosscoder":
        raise ValueError(
            f"sparsify has no {target.kind} dictionary that does what rule {name!r} does; known: "
            f"{', '.join(ACTIVATION)}."
        )
    if sae.config.normalise == "layer":
        raise ValueError("sparsify has no layer normalisation; export the dictionary to sae-lens.")
    tensors = _raw(sae)
    tensors["encoder.weight"], tensors["encoder.bias"] = tensors.pop("W_enc"), tensors.pop("b_enc")
    config = {
        "activation": ACTIVATION[name],
        "expansion_factor": max(1, sae.d_sae // sae.d_in),
        "normalize_decoder": True,
        "num_latents": sae.d_sae,
        "k": sae.rule.k,
        "multi_topk": False,
        "skip_connection": target.skip,
        "transcode": target.kind == "transcoder",
        "d_in": sae.d_in,
    }
    return _write(folder, sparsify.CONFIG, config, sparsify.WEIGHTS, tensors)


WRITERS: dict[str, Callable[[Sae, Origin, Path], list[Path]]] = {
    "sae-lens": write_sae_lens,
    "sparsify": write_sparsify,
}


def write_dictionary(sae: Sae, origin: Origin, folder: Path, format: str) -> list[Path]:
    """Write the dictionary into `folder` in the layout `format`, a name in `WRITERS`, and return the paths.

    Raises:
        ValueError: the format is unknown, has no such dictionary, or a file is there already.
    """
    if format not in WRITERS:
        raise ValueError(unknown("format to write", format, WRITERS))
    return WRITERS[format](sae, origin, folder)


@torch.no_grad()
def _raw(sae: Sae) -> dict[str, Tensor]:
    """Return the tensors of the dictionary for raw activations, those of its rule and target among them."""
    W_enc, b_enc, W_dec = sae.unit()
    d_in = sae.d_in
    if sae.config.normalise == "layer":
        reads = writes = math.sqrt((d_in - 1) / d_in)
    else:
        reads = float(sae.normaliser.factor)
        writes = float(sae.target.normaliser.factor) if isinstance(sae.target, Transcoder) else reads
    tensors = {
        "W_enc": W_enc * (1.0 if reads == writes else writes / reads),
        "b_enc": b_enc * writes,
        "W_dec": W_dec,
        "b_dec": sae.b_dec * writes,
    }
    if sae.config.target.skip:
        tensors["W_skip"] = sae.target.get_parameter("W_skip") * writes / reads
    if sae.config.rule == "gated":
        tensors |= {"r": sae.rule.get_parameter("r"), "b_mag": sae.rule.get_parameter("b_mag") * writes}
    if ARCHITECTURE.get(sae.config.rule) == "jumprelu":
        threshold = _thresholds(sae)
        tensors["threshold"] = threshold.expand(sae.d_sae).clamp_min(0) * writes
    return {name: value.detach().float().cpu().contiguous().clone() for name, value in tensors.items()}


def _thresholds(sae: Sae) -> Tensor:
    """Return what a latent's pre-activation has to exceed in evaluation, one number or one for each."""
    state = sae.rule.state_dict()
    if "thresholds" in state:  # feature_choice: where a latent has none of its own yet, the one of all
        return torch.where(state["kept"] > 0, state["thresholds"], state["threshold"])
    return state["threshold"]


def _write(folder: Path, config_name: str, config: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> list[Path]:
    """Write both files, or nothing where one of them is there already."""
    from safetensors.torch import save_file

    paths = [folder / config_name, folder / name]
    for path in paths:
        if path.exists():
            raise ValueError(f"{shown(path)} is there already; give another folder, or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, paths[1], {"format": "pt"})
        paths[0].write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{shown(folder)} cannot be written: {error.strerror or error}.") from error
    return paths
