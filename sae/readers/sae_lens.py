"""Dictionaries of sae-lens (6.x, and the older configurations that it still reads): cfg.json + sae_weights.safetensors.

    standard       z = relu(pre)
    topk           z = relu of the k largest pre; with `rescale_acts_by_decoder_norm` of pre · ||W_dec[i]||
    abstopk        the same by size, signs kept
    jumprelu       z = relu(pre) where pre > threshold_i        (what batchtopk and matryoshka_batchtopk are saved as)
    gated          z = relu(exp(r_mag) c + b_mag) where c + b_gate > 0,  c = (x - b_dec) W_enc
    transcoder     z = relu(x W_enc + b_enc), with a threshold, with x W_skip^T added

W_enc is stored `[d_in d_sae]`. b_dec is subtracted from the input unless `apply_b_dec_to_input` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.names import shorten, unknown
from interp.runs.files import shown
from sae.config import TargetConfig
from sae.readers.files import read_config, read_tensors, setting, take
from sae.readers.foreign import Foreign, model_name, site_name

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

ENCODER = {"W_enc": ("d_in", "d_sae"), "b_enc": ("d_sae",)}
DECODER = {"W_dec": ("d_sae", "d_out"), "b_dec": ("d_out",)}
THRESHOLD = {"threshold": ("d_sae",)}
SKIP = {"W_skip": ("d_out", "d_in")}
GATE = {"W_enc": ("d_in", "d_sae"), "b_gate": ("d_sae",), "b_mag": ("d_sae",), "r_mag": ("d_sae",)}

TENSORS: dict[str, dict[str, tuple[str, ...]]] = {
    "standard": ENCODER | DECODER,
    "topk": ENCODER | DECODER,
    "abstopk": ENCODER | DECODER,
    "jumprelu": ENCODER | DECODER | THRESHOLD,
    "gated": GATE | DECODER,
    "batchtopk": ENCODER | DECODER | {"topk_threshold": ()},
    "matryoshka_batchtopk": ENCODER | DECODER | {"topk_threshold": ()},
    "transcoder": ENCODER | DECODER,
    "skip_transcoder": ENCODER | DECODER | SKIP,
    "jumprelu_transcoder": ENCODER | DECODER | THRESHOLD,
    "jumprelu_skip_transcoder": ENCODER | DECODER | THRESHOLD | SKIP,
}
"""Architecture -> its tensors and their axes."""

RULE = {"topk": "topk", "abstopk": "abs_topk", "gated": "gated", "batchtopk": "batch_topk"} | {
    "matryoshka_batchtopk": "matryoshka"
}
"""Architecture -> rule; the others are `jump_relu` where they have a threshold and `relu` where not."""

RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
"""Keys of sae-lens before 6 -> today's."""

KNOWN = frozenset(
    {"d_in", "d_sae", "d_out", "dtype", "device", "apply_b_dec_to_input", "normalize_activations"}
    | {"reshape_activations", "metadata", "architecture", "k", "rescale_acts_by_decoder_norm", "decoder_init_norm"}
    | {"l1_coefficient", "lp_norm", "l1_warm_up_steps", "use_sparse_activations", "aux_loss_coefficient"}
    | {"jumprelu_init_threshold", "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode", "l0_coefficient"}
    | {"l0_warm_up_steps", "pre_act_loss_coefficient", "jumprelu_tanh_scale", "jumprelu_ste_to_input", "target_l0"}
    | {"topk_threshold_lr", "matryoshka_widths", "use_matryoshka_aux_loss"}
)
"""Keys of a configuration of sae-lens 6; another one could change what the dictionary computes."""


def matches(folder: Path) -> bool:
    """Return whether `folder` holds a dictionary of this format."""
    return (folder / WEIGHTS).is_file()


def read(folder: Path) -> Foreign:
    """Return the dictionary in `folder`.

    Raises:
        ValueError: a file, key or tensor is missing, unknown or of another form than sae-lens writes.
    """
    path = folder / CONFIG
    where = shown(path)
    config = _today(read_config(path), where)
    kind = setting(config, "architecture", str, where, "standard")
    if kind not in TENSORS:
        raise ValueError(
            f"{unknown(f'architecture in {where}:', kind, TENSORS)} Others compute what no rule here does."
        )
    tensors = _weights(folder / WEIGHTS)
    sizes = take(tensors, TENSORS[kind], folder / WEIGHTS)
    transcodes = kind.endswith("transcoder")
    _check_sizes(config, sizes, transcodes, where)
    about: dict[str, Any] = config["metadata"]
    # What every reader of jumprelu ignores: that one threshold was learnt for all.
    trained = about.get("training_architecture") if kind == "jumprelu" else kind
    rule = RULE.get(str(trained)) or RULE.get(kind) or ("jump_relu" if "threshold" in tensors else "relu")
    return Foreign(
        rule=rule,
        W_enc=tensors["W_enc"].t().contiguous(),
        b_enc=tensors["b_gate" if kind == "gated" else "b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        subtracts=not transcodes and setting(config, "apply_b_dec_to_input", bool, where, True),
        args=_arguments(rule, config, about, sizes["d_sae"], where),
        state=_state(tensors, sizes["d_sae"]),
        by_length=setting(config, "rescale_acts_by_decoder_norm", bool, where, False),
        layer_norm=_normalises(config, where),
        target=_target(sizes["d_out"], "W_skip" in tensors) if transcodes else TargetConfig(),
        W_skip=tensors.get("W_skip"),
        model=model_name(about.get("model_name")),
        site=_site(about, config, where),
        site_out=site_name(about.get("hook_name_out")) if transcodes else None,
    )


def _check_sizes(config: Mapping[str, Any], sizes: Mapping[str, int], transcodes: bool, where: str) -> None:
    """Refuse a configuration that says other widths than the weights have."""
    for axis in ("d_in", "d_sae", *(("d_out",) if transcodes else ())):
        if setting(config, axis, int, where) != sizes[axis]:
            raise ValueError(f"{where} says {axis}={config[axis]}, the weights have {sizes[axis]}; fetch both again.")
    if not transcodes and sizes["d_in"] != sizes["d_out"]:
        raise ValueError(f"{where}: the weights read width {sizes['d_in']} and write {sizes['d_out']}: no dictionary.")


def _today(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a configuration in the form of sae-lens 6; what an older one says of its training is left out."""
    if isinstance(config.get("metadata"), dict):
        for key in config:
            if key not in KNOWN:
                raise ValueError(unknown(f"key in {where}:", key, KNOWN))
        return config
    old = {RENAMED.get(key, key): value for key, value in config.items()}
    activation, options = old.get("activation_fn", "relu"), old.get("activation_fn_kwargs")
    if activation not in ("relu", "topk"):
        raise ValueError(f"{where}: activation_fn must be relu or topk, got {shorten(activation)}.")
    if activation == "topk" and isinstance(options, dict):
        old |= {"architecture": "topk", "k": options.get("k")}
    normalise = old.get("normalize_activations")
    if isinstance(normalise, bool):
        old["normalize_activations"] = "expected_average_only_in" if normalise else "none"
    metadata = {key: old.get(key) for key in ("model_name", "hook_name", "hook_head_index")}
    return {key: value for key, value in old.items() if key in KNOWN} | {"metadata": metadata}


def _weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the file without what an older version wrote for nothing."""
    tensors = read_tensors(path)
    scale = tensors.get("scaling_factor")
    if scale is not None:
        if not torch.allclose(scale, torch.ones_like(scale)):
            raise ValueError(
                f"{shown(path)} has a scaling_factor that is not 1: multiply W_dec's rows by it, leave it out, and "
                "save the file again."
            )
        tensors = {name: value for name, value in tensors.items() if name != "scaling_factor"}
    return tensors


def _arguments(
    rule: str, config: Mapping[str, Any], about: Mapping[str, Any], d_sae: int, where: str
) -> dict[str, Any]:
    """Return the arguments of the rule: k, for the rules that have one."""
    if rule in ("topk", "abs_topk"):
        return {"k": setting(config, "k", int, where)}
    if rule not in ("batch_topk", "matryoshka"):
        return {}
    # A jumprelu file keeps what its training was told beside it. Only a further training would look at it.
    told = about.get("training_architecture_details")
    told = {**(told if isinstance(told, dict) else {}), **config}
    args: dict[str, Any] = {}
    k, widths = told.get("k"), told.get("matryoshka_widths")
    if isinstance(k, int | float) and 1 <= round(k) <= d_sae:
        args["k"] = round(k)
    if rule == "matryoshka":
        if not isinstance(widths, list) or not all(type(width) is int for width in widths):
            raise ValueError(f"{where}: matryoshka_widths must be a list of whole numbers, got {shorten(widths)}.")
        args["sizes"] = " ".join(str(width) for width in widths if width != d_sae)
    return args


def _state(tensors: Mapping[str, Tensor], d_sae: int) -> dict[str, Tensor]:
    if "threshold" in tensors:
        return {"threshold": tensors["threshold"]}
    if "topk_threshold" in tensors:
        return {"threshold": tensors["topk_threshold"].expand(d_sae).clone()}
    return {"r": tensors["r_mag"], "b_mag": tensors["b_mag"]} if "r_mag" in tensors else {}


def _target(d_out: int, skip: bool) -> TargetConfig:
    return TargetConfig("transcoder", d_out=d_out, skip=skip)


def _normalises(config: Mapping[str, Any], where: str) -> bool:
    """Return whether rows are normalised each by its own mean and spread, or refuse what a file cannot tell."""
    kind = setting(config, "normalize_activations", str, where, "none")
    if kind == "expected_average_only_in":
        raise ValueError(
            f"{where}: the dictionary was trained on activations times a factor that the file does not hold "
            "(normalize_activations is 'expected_average_only_in'). In sae-lens, fold it in "
            "(`sae.fold_activation_norm_scaling_factor(factor)`) and save it again."
        )
    if kind not in ("none", "layer_norm"):
        raise ValueError(
            f"{where}: normalize_activations must be none or layer_norm, got {shorten(kind)}; no normalisation here "
            "does the same."
        )
    return kind == "layer_norm"


def _site(about: Mapping[str, Any], config: Mapping[str, Any], where: str) -> str | None:
    """Return the site, or refuse a dictionary of one head: a site here holds all heads."""
    if about.get("hook_head_index") is not None:
        raise ValueError(f"{where}: the dictionary reads one head only ({shorten(about['hook_head_index'])}).")
    shape = setting(config, "reshape_activations", str, where, "none")
    if shape not in ("none", "hook_z"):  # heads side by side, as everywhere here
        raise ValueError(f"{where}: reshape_activations must be none or hook_z, got {shorten(shape)}.")
    return site_name(about.get("hook_name"))
