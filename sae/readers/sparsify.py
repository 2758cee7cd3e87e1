"""Dictionaries of EleutherAI's sparsify: cfg.json + sae.safetensors.

    pre = relu((x - b_dec) W_enc^T + b_enc)        z = the k largest, or with `groupmax` the largest of k equal groups
    x_hat = z W_dec + b_dec (+ x W_skip^T)

A transcoder (`transcode`) does not subtract b_dec. The encoder is a linear layer, `encoder.weight [d_sae d_in]`; the
atoms are the rows of `W_dec [d_sae d_out]`. The folder is named after the module that is read, such as `layers.20.mlp`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from interp.names import shorten, unknown
from interp.runs.files import shown
from sae.config import TargetConfig
from sae.readers.files import read_config, read_tensors, setting, take
from sae.readers.foreign import Foreign, model_name

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"

TENSORS: dict[str, tuple[str, ...]] = {
    "encoder.weight": ("d_sae", "d_in"),
    "encoder.bias": ("d_sae",),
    "W_dec": ("d_sae", "d_out"),
    "b_dec": ("d_out",),
}

KNOWN = frozenset(
    {"d_in", "activation", "expansion_factor", "normalize_decoder", "num_latents", "k", "multi_topk"}
    | {"skip_connection", "transcode", "signed"}
)
"""Keys of its configurations; another one could change what the dictionary computes."""

RULE = {"topk": "topk", "groupmax": "group_max"}
MODULES = {"": "resid_post", "mlp": "mlp_out", "attention": "attn_out", "attn": "attn_out", "self_attn": "attn_out"}
"""What follows the layer's number in a module's name -> kind of site (what the module returns)."""


def matches(folder: Path) -> bool:
    """Return whether `folder` holds a dictionary of this format."""
    return (folder / WEIGHTS).is_file()


def read(folder: Path) -> Foreign:
    """Return the dictionary in `folder`.

    Raises:
        ValueError: a file, key or tensor is missing, unknown or of another form than sparsify writes.
    """
    where = shown(folder / CONFIG)
    config = _config(folder / CONFIG)
    skip = setting(config, "skip_connection", bool, where, False)
    transcode = setting(config, "transcode", bool, where, False)
    activation, k = setting(config, "activation", str, where, "topk"), setting(config, "k", int, where)
    tensors = read_tensors(folder / WEIGHTS)
    sizes = take(tensors, TENSORS | ({"W_skip": ("d_out", "d_in")} if skip else {}), folder / WEIGHTS)
    d_in, d_sae = setting(config, "d_in", int, where), sizes["d_sae"]
    expanded = d_in * setting(config, "expansion_factor", int, where, 32)
    latents = setting(config, "num_latents", int, where, 0) or expanded
    if (d_in, latents) != (sizes["d_in"], d_sae):
        raise ValueError(
            f"{where} says d_in={d_in} and {latents} latents, the weights have {sizes['d_in']} and {d_sae}; fetch both "
            "again."
        )
    if not 1 <= k <= d_sae or (activation == "groupmax" and d_sae % k):
        raise ValueError(f"{where}: k must lie in 1..{d_sae} (and divide it for groupmax), got {k}.")
    straight = transcode or skip  # a skip connection is a transcoder's, also from a site to itself
    return Foreign(
        rule=RULE[activation],
        W_enc=tensors["encoder.weight"],
        b_enc=tensors["encoder.bias"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        subtracts=not transcode,
        args={"k": k},
        target=TargetConfig("transcoder", d_out=sizes["d_out"], skip=skip) if straight else TargetConfig(),
        W_skip=tensors.get("W_skip"),
        model=_model(folder),
        site=None if transcode else _site(folder.name),
        site_out=_site(folder.name) if transcode else None,
    )


def _config(path: Path) -> dict[str, Any]:
    """Return the configuration, all of its keys and its activation known."""
    where = shown(path)
    config = read_config(path)
    for key in config:
        if key not in KNOWN:
            raise ValueError(unknown(f"key in {where}:", key, KNOWN))
    if config.get("signed"):
        raise ValueError(f"{where}: signed codes of early versions are not read; train it again, or export it as topk.")
    activation = setting(config, "activation", str, where, "topk")
    if activation not in RULE:
        raise ValueError(f"{where}: activation must be topk or groupmax, got {shorten(activation)}.")
    return config


def _model(folder: Path) -> str | None:
    """Return the model that the run's config.json, one folder up, names."""
    path = folder.parent / "config.json"
    return model_name(read_config(path).get("model")) if path.is_file() else None


def _site(module: str) -> str | None:
    """Return the site that a module's name stands for, such as layers.20.mlp or transformer.h.5."""
    found = re.fullmatch(r"(?:[\w]+\.)*(?:layers|h)\.(\d+)(?:\.(\w+))?", module)
    kind = MODULES.get(found[2] or "") if found else None
    return f"{kind}.{found[1]}" if found and kind else None
