"""Dictionaries of Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147): params.npz, read with allow_pickle=False.

    pre = x W_enc + b_enc        z = relu(pre) where pre > threshold_i, 0 elsewhere        x_hat = z W_dec + b_dec

b_dec is not subtracted from the input. The archive says nothing of model and site; the folder's name on the hub does:
`gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71` is resid_post.20 of google/gemma-2-2b.
"""

from __future__ import annotations

import re
from pathlib import Path

from interp.runs.files import shown
from sae.config import TargetConfig
from sae.readers.files import read_npz, take
from sae.readers.foreign import Foreign

WEIGHTS = "params.npz"

TENSORS: dict[str, tuple[str, ...]] = {
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "W_dec": ("d_sae", "d_out"),
    "b_dec": ("d_out",),
    "threshold": ("d_sae",),
}

KINDS = {"res": "resid_post", "mlp": "mlp_out", "att": "head_out"}
"""Part of the repository's name -> kind of site."""


def matches(folder: Path) -> bool:
    """Return whether `folder` holds a dictionary of this format."""
    return (folder / WEIGHTS).is_file()


def read(folder: Path) -> Foreign:
    """Return the dictionary in `folder`.

    Raises:
        ValueError: the archive is damaged, or holds other arrays than a JumpReLU dictionary has.
    """
    tensors = read_npz(folder / WEIGHTS)
    # An older writer named matrices w_enc and w_dec.
    tensors = {f"W_{name[2:]}" if name in ("w_enc", "w_dec") else name: value for name, value in tensors.items()}
    sizes = take(tensors, TENSORS, folder / WEIGHTS)
    transcoder = re.search(r"gemma-scope-\d+b-\w+-transcoders", folder.as_posix()) is not None
    if sizes["d_in"] != sizes["d_out"] and not transcoder:
        raise ValueError(
            f"{shown(folder / WEIGHTS)} reads width {sizes['d_in']} and writes {sizes['d_out']}: it is a transcoder, "
            "which is recognised by a path such as gemma-scope-2b-pt-transcoders/layer_3/..."
        )
    model, site = where(folder)
    return Foreign(
        rule="jump_relu",
        W_enc=tensors["W_enc"].t().contiguous(),
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        subtracts=False,
        state={"threshold": tensors["threshold"]},
        target=TargetConfig("transcoder", d_out=sizes["d_out"]) if transcoder else TargetConfig(),
        model=model,
        site=site,
    )


def where(folder: Path) -> tuple[str | None, str | None]:
    """Return (model, site) that the path of a dictionary names, None for what it does not."""
    path = folder.as_posix()
    size = re.search(r"gemma-scope-(\d+b)-(pt|it)", path)
    layer = re.search(r"layer_(\d+)(?:/|$)", path)
    kind = re.search(r"gemma-scope-\d+b-\w+-(res|mlp|att)(?:-|/|$)", path)
    model = f"google/gemma-2-{size[1]}{'-it' if size[2] == 'it' else ''}" if size else None
    return model, f"{KINDS[kind[1]]}.{layer[1]}" if layer and kind and "embedding" not in path else None
