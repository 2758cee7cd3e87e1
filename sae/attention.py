"""Dictionaries on the concatenated heads of an attention layer (site head_out): which heads, and which sources.

    weight-based   share_ih = ||W_dec[i, head h]|| / sum_l ||W_dec[i, head l]||
    by source      z_h[t] = sum_s A_h[t, s] v_h[s]; with the row u_i that reads raw activations and its constant c_i
                   pre_i[t] = sum_s sum_h A_h[t, s] <v_h[s], u_ih> + c_i, exactly
    further back   v_h[s] = W_Vh^T LN(r[s]) + b_Vh is affine in the stream r while the scale sigma of LN at s is held:
                   pre_i[t] = sum_s <r[s], g_i[s]> + c'_i,  g_i[s] = LN'^T( sum_h A_h[t, s] W_Vh u_ih ) / sigma[s]

Kissane et al. 2024, arXiv 2406.17759 (direct feature attribution). Their code leaves out sigma in the last line, and
without it the parts do not add up. Everything here is about pre-activations, which are linear in the row whatever the
rule makes of them. Patterns exist in the bridge only, so attribution runs there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.hooks import capture
from interp.models import ModelHandle
from interp.models.taps import BLOCKS, TAPS, slice_view
from interp.sites import Site
from sae.model import Sae

NORMS = {"gpt2": "ln_1", "gpt_neox": "input_layernorm", "llama": "input_layernorm"}
"""Family -> the norm before attention, within a block."""


@dataclass(frozen=True)
class BySource:
    """What the positions of a text, head by head, contribute to pre-activations at one position."""

    contributions: Float[Tensor, "batch latent source head"]
    """A_h[t, s] <v_h[s], u_i,h>."""
    constant: Float[Tensor, "batch latent"]
    """What no source contributes: the biases."""
    pre: Float[Tensor, "batch latent"]
    """The pre-activation as the dictionary computes it."""

    @property
    def by_source(self) -> Float[Tensor, "batch latent source"]:
        """Contributions summed over heads."""
        return self.contributions.sum(-1)

    @property
    def error(self) -> float:
        """Largest absolute difference between the sum of all parts and the pre-activation."""
        return float((self.contributions.sum((-1, -2)) + self.constant - self.pre).abs().max())


def head_shares(sae: Sae, n_heads: int) -> Float[Tensor, "d_sae head"]:
    """Return how much of each atom lies in each head: lengths of its parts over their sum, so rows sum to 1.

    Raises:
        ValueError: the atoms do not fall into `n_heads` equal parts.
    """
    if n_heads < 1 or sae.d_out % n_heads:
        raise ValueError(f"Atoms of width {sae.d_out} do not fall into {n_heads} equal heads.")
    lengths = sae.unit()[2].detach().unflatten(1, (n_heads, -1)).norm(dim=-1)
    return lengths / lengths.sum(1, keepdim=True).clamp_min(torch.finfo(lengths.dtype).tiny)


@torch.no_grad()
def attribute_sources(
    model: ModelHandle,
    site: Site | str,
    sae: Sae,
    tokens: Int[Tensor, "batch pos"],
    latents: Sequence[int],
    position: int,
) -> BySource:
    """Return what each source position and head contributes to the pre-activations of `latents` at `position`.

    Args:
        model: the model.
        site: a head_out site.
        sae: a dictionary that reads it.
        tokens: the texts.
        latents: which latents.
        position: where they are read; negative ones count from the end.

    Raises:
        ValueError: another kind of site, a dictionary of another width, a latent or position that is not there.
    """
    place = check_heads(model, site, sae)
    at = check_place(sae, tokens.shape[1], latents, position)
    pattern, value = Site(place.layer, "pattern"), Site(place.layer, "v")
    with capture(model, [place, pattern, value], view="bridge", stop=True) as found:
        model.forward(tokens, view="bridge")
    rows = found[place][:, at].flatten(1)
    reading, constant = encoder(sae, rows, latents)
    heads = reading.unflatten(-1, (model.n_heads, model.d_head))
    weights = found[pattern][:, :, at]
    spread = found[value].repeat_interleave(model.n_heads // found[value].shape[2], dim=2)
    parts = torch.einsum("bhs,bshd,bihd->bish", weights, spread, heads)
    pre = sae.pre(sae.normaliser.into(rows.to(sae.W_enc.dtype))[0])[:, list(latents)]
    return BySource(parts, constant, pre)


def encoder(
    sae: Sae, rows: Float[Tensor, "row d_in"], latents: Sequence[int]
) -> tuple[Float[Tensor, "row latent d_in"], Float[Tensor, "row latent"]]:
    """Return (u, c) with pre_i = <x, u_i> + c_i for raw rows x; with layer normalisation their spread is held."""
    weight, bias, _ = (part.detach() for part in sae.unit())
    chosen, constant = weight[list(latents)], bias[list(latents)]
    if sae.centre is not None:
        constant = constant - chosen @ sae.centre.detach()
    _, scale = sae.normaliser.into(rows.to(weight.dtype))
    if scale.shift is not None:  # subtracting a row's mean from it is subtracting the mean of u from u
        if sae.config.target.blocks:
            raise ValueError("Attribution through the layer normalisation of a crosscoder is not defined here.")
        chosen = chosen - chosen.mean(1, keepdim=True)
    factor = scale.factor.expand(len(rows), 1) if scale.factor.ndim == 0 else scale.factor.expand(len(rows), -1)
    return chosen / factor.unsqueeze(1), constant.expand(len(rows), -1)


@torch.no_grad()
def stream_directions(
    model: ModelHandle,
    layer: int,
    reading: Float[Tensor, "latent d_in"],
    pattern: Float[Tensor, "head source"],
    stream: Float[Tensor, "source d_model"],
) -> tuple[Float[Tensor, "latent source d_model"], Float[Tensor, " latent"]]:
    """Return (g, c) with sum_s <r[s], g_i[s]> + c_i = sum_s sum_h A_h[s] <v_h[s], u_i,h>, LN's scale held.

    Args:
        model: the model.
        layer: whose attention.
        reading: u, rows that read head_out.
        pattern: A of one destination.
        stream: resid_pre of the layer, which gives LN's scale.
    """
    weight, bias = value_weights(model, layer)
    heads = reading.unflatten(-1, (model.n_heads, model.d_head))
    back = torch.einsum("hs,dhe,ihe->isd", pattern, weight, heads)
    constant = torch.einsum("hs,he,ihe->i", pattern, bias, heads)
    gain, offset, centred, sigma = held_norm(model, layer, stream)
    constant = constant + (back * offset).sum((-1, -2))
    back = back * gain
    if centred:
        back = back - back.mean(-1, keepdim=True)
    return back / sigma.unsqueeze(-1), constant


def value_weights(
    model: ModelHandle, layer: int
) -> tuple[Float[Tensor, "d_model head d_head"], Float[Tensor, "head d_head"]]:
    """Return W_V and b_V, one for each query head."""
    tap = TAPS[model.family]["v"]
    weight, bias = _linear(model, layer, tap.module)
    parts = [slice_view(part, tap.view, model.d_head) for part in (weight, bias)]
    times = model.n_heads // parts[0].shape[1]
    return parts[0].repeat_interleave(times, dim=1), parts[1].repeat_interleave(times, dim=0)


def output_weights(model: ModelHandle, layer: int) -> Float[Tensor, "d_in d_model"]:
    """Return W_O, from the concatenated heads to the stream."""
    return _linear(model, layer, TAPS[model.family]["head_out"].module)[0]


def held_norm(
    model: ModelHandle, layer: int, stream: Float[Tensor, "source d_model"]
) -> tuple[Tensor, Tensor, bool, Float[Tensor, " source"]]:
    """Return (gain, offset, whether the mean is subtracted, scale at each position) of the norm before attention."""
    norm = model.module.get_submodule(f"{BLOCKS[model.family]}.{layer}.{NORMS[model.family]}")
    gain = norm.weight.detach()
    offset = getattr(norm, "bias", None)
    centred = isinstance(norm, nn.LayerNorm)
    eps = norm.eps if centred else norm.variance_epsilon
    wide = stream.float()
    wide = wide - wide.mean(-1, keepdim=True) if centred else wide
    sigma = (wide.square().mean(-1) + eps).sqrt().to(stream.dtype)
    return gain, torch.zeros_like(gain) if offset is None else offset.detach(), centred, sigma


def _linear(model: ModelHandle, layer: int, path: str) -> tuple[Float[Tensor, "d_in width"], Float[Tensor, " width"]]:
    """Return (weight as inputs by outputs, bias) of a projection."""
    module = model.module.get_submodule(f"{BLOCKS[model.family]}.{layer}.{path}")
    weight = module.weight.detach()
    weight = weight.t() if isinstance(module, nn.Linear) else weight  # GPT-2's Conv1D holds [inputs outputs]
    bias = getattr(module, "bias", None)
    return weight, weight.new_zeros(weight.shape[1]) if bias is None else bias.detach()


def check_heads(model: ModelHandle, site: Site | str, sae: Sae) -> Site:
    """Return `site` if it is a head_out that `sae` reads.

    Raises:
        ValueError: it is not.
    """
    place = model.check_site(site)
    if place.kind != "head_out":
        raise ValueError(
            f"Attribution to heads and sources is for dictionaries at head_out.{place.layer}, got {place}."
        )
    if sae.d_in != model.width(place):
        raise ValueError(f"The dictionary reads d_in={sae.d_in} numbers, but {place} has {model.width(place)}.")
    return place


def check_place(sae: Sae, length: int, latents: Sequence[int], position: int) -> int:
    """Return `position` counted from 0.

    Raises:
        ValueError: it lies outside of the text, or a latent outside of the dictionary.
    """
    for latent in latents:
        if not 0 <= latent < sae.d_sae:
            raise ValueError(f"Latents must lie in 0..d_sae-1={sae.d_sae - 1}, got {latent}.")
    if not -length <= position < length:
        raise ValueError(f"position must lie in 0..{length - 1}, got {position}.")
    return position % length
