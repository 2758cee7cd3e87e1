"""Dictionaries of dictionary_learning, once their user has turned ae.pt, which is a pickle, into ae.safetensors.

    AutoEncoder                           z = relu(encoder(x - bias))
    AutoEncoderNew                        z = relu(encoder(x))
    AutoEncoderTopK                       z = the k largest of relu(encoder(x - b_dec))
    BatchTopKSAE, MatryoshkaBatchTopKSAE  z = relu(pre) where it exceeds one threshold, pre with x - b_dec
    GatedAutoEncoder                      z = relu(exp(r_mag) c + mag_bias) where c + gate_bias > 0
    JumpReluAutoEncoder                   z = relu(pre) where pre > threshold_i, pre = x W_enc + b_enc

Linear layers store the decoder as `[d_in d_sae]`. config.json, beside the weights, says which class they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.names import shorten, unknown
from interp.runs.files import shown
from sae.config import Scalar
from sae.readers.files import read_config, read_tensors, setting, take
from sae.readers.foreign import Foreign, model_name

CONFIG, WEIGHTS, PICKLE = "config.json", "ae.safetensors", "ae.pt"

CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "w = torch.load('ae.pt', map_location='cpu', weights_only=True); "
    "s.save_file({k: v.contiguous() for k, v in w.items()}, 'ae.safetensors')\""
)
"""A user's own command that turns pickled weights into safetensors without running code from the file."""

LINEAR = {"encoder.weight": ("d_sae", "d_in"), "decoder.weight": ("d_in", "d_sae")}
MATRICES = {"W_enc": ("d_in", "d_sae"), "b_enc": ("d_sae",), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}
BATCH = {"k": (), "threshold": ()}

TENSORS: dict[str, dict[str, tuple[str, ...]]] = {
    "AutoEncoder": LINEAR | {"encoder.bias": ("d_sae",), "bias": ("d_in",)},
    "AutoEncoderNew": LINEAR | {"encoder.bias": ("d_sae",), "decoder.bias": ("d_in",)},
    "AutoEncoderTopK": LINEAR | {"encoder.bias": ("d_sae",), "b_dec": ("d_in",)} | BATCH,
    "BatchTopKSAE": LINEAR | {"encoder.bias": ("d_sae",), "b_dec": ("d_in",)} | BATCH,
    "MatryoshkaBatchTopKSAE": MATRICES | BATCH | {"group_sizes": ("groups",)},
    "GatedAutoEncoder": LINEAR
    | {"decoder_bias": ("d_in",), "r_mag": ("d_sae",), "gate_bias": ("d_sae",), "mag_bias": ("d_sae",)},
    "JumpReluAutoEncoder": MATRICES | {"threshold": ("d_sae",)},
}
"""Class -> its tensors and their axes."""

RULE = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk",
    "MatryoshkaBatchTopKSAE": "matryoshka",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jump_relu",
}


def matches(folder: Path) -> bool:
    """Return whether `folder` holds a dictionary of this format, converted or not."""
    return any((folder / name).is_file() for name in (WEIGHTS, PICKLE))


def read(folder: Path) -> Foreign:
    """Return the dictionary in `folder`.

    Raises:
        ValueError: the weights are a pickle still, or a key or tensor is missing, unknown or of another form.
    """
    if not (folder / WEIGHTS).is_file():
        raise ValueError(
            f"{shown(folder / PICKLE)} is a pickle, which can run code when opened, and is never read. In its folder, "
            f"convert it yourself: {CONVERT} Then import the folder again."
        )
    where = shown(folder / CONFIG)
    trainer = setting(read_config(folder / CONFIG), "trainer", dict, where)
    kind = setting(trainer, "dict_class", str, where)
    if kind not in TENSORS:
        raise ValueError(unknown(f"dict_class in {where}:", kind, TENSORS))
    tensors = read_tensors(folder / WEIGHTS)
    needed = TENSORS[kind]
    if kind == "AutoEncoderTopK":  # before it had a threshold for evaluation, which is not used unless asked for
        needed = {name: axes for name, axes in needed.items() if name != "threshold" or name in tensors}
    sizes = take(tensors, needed, folder / WEIGHTS)
    for axis, key in (("d_in", "activation_dim"), ("d_sae", "dict_size")):
        if setting(trainer, key, int, where, sizes[axis]) != sizes[axis]:
            raise ValueError(f"{where} says {key}={trainer[key]}, the weights have {sizes[axis]}; fetch both again.")
    return _foreign(kind, tensors, sizes["d_sae"], trainer, where)


def _foreign(kind: str, tensors: Mapping[str, Tensor], d_sae: int, trainer: Mapping[str, Any], where: str) -> Foreign:
    """Return the dictionary of class `kind`."""

    def first(*names: str) -> Tensor:
        return next(tensors[name] for name in names if name in tensors)

    linear = "encoder.weight" in tensors
    state: dict[str, Tensor] = {}
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        state = {"threshold": tensors["threshold"].expand(d_sae).clone()}
    elif kind == "JumpReluAutoEncoder":
        state = {"threshold": tensors["threshold"]}
    elif kind == "GatedAutoEncoder":
        state = {"r": tensors["r_mag"], "b_mag": tensors["mag_bias"]}
    k = int(tensors["k"]) if "k" in tensors else None
    if k is not None and not 1 <= k <= d_sae:
        raise ValueError(f"{where}: k must lie in 1..{d_sae}, got {k}.")
    args: dict[str, Scalar] = {} if k is None else {"k": k}
    if "group_sizes" in tensors:
        if int(tensors["group_sizes"].sum()) != d_sae:
            raise ValueError(f"{where}: group_sizes must add up to {d_sae}, got {tensors['group_sizes'].tolist()}.")
        args["sizes"] = " ".join(str(size) for size in tensors["group_sizes"].cumsum(0).tolist()[:-1])
    return Foreign(
        rule=RULE[kind],
        W_enc=tensors["encoder.weight"] if linear else tensors["W_enc"].t().contiguous(),
        b_enc=first("encoder.bias", "gate_bias", "b_enc"),
        W_dec=tensors["decoder.weight"].t().contiguous() if linear else tensors["W_dec"],
        b_dec=first("b_dec", "decoder_bias", "decoder.bias", "bias"),
        subtracts=kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
        args=args,
        state=state,
        model=model_name(trainer.get("lm_name")),
        site=_site(trainer),
    )


def _site(trainer: Mapping[str, Any]) -> str | None:
    """Return the site: the residual stream after a layer, unless the submodule's name says something else."""
    layer, name = trainer.get("layer"), trainer.get("submodule_name")
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        return None
    known = {None: "resid_post", f"resid_post_layer_{layer}": "resid_post"}
    if name is not None and not isinstance(name, str):
        raise ValueError(f"submodule_name must be text, got {shorten(name)}.")
    return f"{known[name]}.{layer}" if name in known else None
