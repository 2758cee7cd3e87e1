"""What a stranger's dictionary computes, in one form for all formats, and the same as a `Sae`.

    pre = (x - c b_dec) W_enc^T + b_enc,  c 1 or 0        z = rule(pre)        x_hat = z W_dec + b_dec (+ x W_skip^T)

A `Sae` has atoms of length 1 and always subtracts b_dec (a transcoder never does), so W_enc, b_enc and what the rule
compares with are rewritten; each step is exact in real numbers:

    c = 0            b_enc + W_enc b_dec takes the place of b_enc
    ||W_dec[i]||=n   encoder row, biases and threshold times n, atom / n: z_i comes out n times as large
    layer norm       (x - mean) / std with n - 1 in the std: W_enc / r, W_dec r, b_dec r with r = sqrt(d / (d - 1))

A top-k over pre-activations in other units would pick other latents, so where such atoms differ in length they keep it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.names import unknown
from sae.config import SaeConfig, Scalar, TargetConfig
from sae.model import Sae
from sae.rules import RULES

IN_PRE_UNITS = ("threshold", "b_mag")
"""Tensors of a rule, one number for each latent, that count in units of a pre-activation."""

EQUAL = 1e-5
"""Thresholds that differ by less than this share are one."""

UNIT = 1e-4
"""Atoms whose lengths differ by less than this share of 1 are taken as equally long."""

MODELS = {
    "gpt2-small": "openai-community/gpt2",
    "gpt2": "openai-community/gpt2",
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-2b-it": "google/gemma-2-2b-it",
    "gemma-2-9b": "google/gemma-2-9b",
    "gemma-2-9b-it": "google/gemma-2-9b-it",
    "gemma-2-27b": "google/gemma-2-27b",
    **{f"pythia-{size}": f"EleutherAI/pythia-{size}" for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b")},
    **{f"pythia-{size}-deduped": f"EleutherAI/pythia-{size}-deduped" for size in ("70m", "160m", "410m", "1b", "1.4b")},
}
"""Names that other libraries give to models -> hub id."""


@dataclass(frozen=True)
class Foreign:
    """A dictionary as its files describe it."""

    rule: str
    """Name in `sae.rules.RULES`."""
    W_enc: Float[Tensor, "d_sae d_in"]
    """Encoder rows."""
    b_enc: Float[Tensor, " d_sae"]
    """Encoder biases; those of the gate where there is one."""
    W_dec: Float[Tensor, "d_sae d_out"]
    """Atoms."""
    b_dec: Float[Tensor, " d_out"]
    """Bias of the reconstruction."""
    subtracts: bool
    """Whether the encoder subtracts b_dec."""
    args: dict[str, Scalar] = field(default_factory=dict)
    """Arguments of the rule."""
    state: dict[str, Float[Tensor, "*shape"]] = field(default_factory=dict)
    """Tensors of the rule; a `threshold` is given for each latent."""
    by_length: bool = False
    """Whether a top-k ranks pre-activations times the length of the atom."""
    layer_norm: bool = False
    """Whether rows are normalised to mean 0 and standard deviation 1 (with n - 1) first."""
    target: TargetConfig = field(default_factory=TargetConfig)
    """What it reconstructs."""
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    """A transcoder's map past the code."""
    model: str | None = None
    """Model that it belongs to, None where the files do not say or the name could be a path."""
    site: str | None = None
    """Site that it reads, in our words; None where the files do not say."""
    site_out: str | None = None
    """Site that a transcoder writes."""
    notes: tuple[str, ...] = ()
    """What a reader should know."""


@torch.no_grad()
def to_sae(foreign: Foreign) -> Sae:
    """Return the dictionary as a `Sae` in evaluation mode, atoms of length 1 wherever that changes nothing.

    Raises:
        ValueError: this version has no such rule.
    """
    if foreign.layer_norm:
        foreign = _population_norm(foreign)
    foreign = _centre(foreign)
    if not keeps_lengths(foreign):
        foreign = _unit(foreign)
    foreign = _threshold(foreign)
    if foreign.rule not in RULES:
        raise ValueError(f"{unknown('rule', foreign.rule, RULES)} The dictionary needs it; upgrade mechscope.")
    d_sae, d_in = foreign.W_enc.shape
    norm = "layer" if foreign.layer_norm else "none"
    sae = Sae(SaeConfig(d_in, d_sae, foreign.rule, foreign.args, norm, target=foreign.target))
    sae.W_enc.copy_(foreign.W_enc)
    sae.b_enc.copy_(foreign.b_enc)
    sae.W_dec.copy_(foreign.W_dec)
    sae.b_dec.copy_(foreign.b_dec)
    own = sae.rule.state_dict(keep_vars=True)
    for name, value in foreign.state.items():
        own[name].data.copy_(value.reshape(own[name].shape))
    if foreign.W_skip is not None:
        sae.target.state_dict(keep_vars=True)["W_skip"].data.copy_(foreign.W_skip)
    return sae.eval()


def lengths(foreign: Foreign) -> Float[Tensor, " d_sae"]:
    """Return the lengths of the atoms, above 0."""
    return foreign.W_dec.norm(dim=1).clamp_min(1e-8)


def keeps_lengths(foreign: Foreign) -> bool:
    """Return whether unit atoms would change which latents a top-k picks."""
    if foreign.rule not in ("topk", "abs_topk", "group_max") or foreign.by_length:
        return False
    length = lengths(foreign)
    return bool((length - length.mean()).abs().max() > UNIT * length.mean())


def _population_norm(foreign: Foreign) -> Foreign:
    """Return the dictionary for rows divided by the standard deviation with n instead of n - 1."""
    d_in = foreign.W_enc.shape[1]
    r = math.sqrt(d_in / max(1, d_in - 1))
    return replace(foreign, W_enc=foreign.W_enc / r, W_dec=foreign.W_dec * r, b_dec=foreign.b_dec * r)


def _centre(foreign: Foreign) -> Foreign:
    """Return the dictionary with the encoder's centre where a `Sae` has it."""
    wanted = foreign.target.kind != "transcoder"
    if foreign.subtracts == wanted:
        return foreign
    shift = (foreign.W_enc @ foreign.b_dec) * (1 if wanted else -1)
    state = dict(foreign.state)
    if "b_mag" in state:
        state["b_mag"] = state["b_mag"] + state["r"].exp() * shift
    return replace(foreign, b_enc=foreign.b_enc + shift, state=state, subtracts=wanted)


def _unit(foreign: Foreign) -> Foreign:
    """Return the dictionary with atoms of length 1 and values counted in units of the old length."""
    length = lengths(foreign)
    # What ranks by length compares its threshold with the pre-activation times the length already.
    factor = torch.ones_like(length) if foreign.by_length else length
    column = length.unsqueeze(1)
    return replace(
        foreign,
        W_enc=foreign.W_enc * column,
        b_enc=foreign.b_enc * length,
        W_dec=foreign.W_dec / column,
        state={name: value * factor if name in IN_PRE_UNITS else value for name, value in foreign.state.items()},
    )


def _threshold(foreign: Foreign) -> Foreign:
    """Return the dictionary under the rule that its thresholds need: one number for all latents, or one for each."""
    if "threshold" not in foreign.state:
        return foreign
    threshold = foreign.state["threshold"].clamp_min(0)  # below 0 the ReLU decides
    if foreign.rule == "jump_relu":
        return replace(foreign, state={"threshold": threshold})
    if float(threshold.max() - threshold.min()) <= EQUAL * float(threshold.max()):
        return replace(foreign, state={"threshold": threshold.mean()})
    return replace(foreign, rule="jump_relu", args={}, state={"threshold": threshold})


def model_name(name: object) -> str | None:
    """Return the hub id or embedded name that `name` from a stranger's file means, None where it could be a path."""
    if not isinstance(name, str) or not re.fullmatch(
        r"[A-Za-z0-9][\w-]*(\.\d+\w*)?([\w-]*)(/[A-Za-z0-9][\w.-]*)?", name
    ):
        return None
    return MODELS.get(name, name)


def site_name(name: object) -> str | None:
    """Return the site that `name` (transformer-lens' or ours) means, None where there is no such site."""
    from interp.sites import Site

    try:
        return str(Site.parse(name)) if isinstance(name, str) else None
    except ValueError:
        return None
