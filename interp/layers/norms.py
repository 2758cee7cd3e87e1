"""A norm taken apart: y = gain * (x - mean x) / scale(x) + bias, scale(x) = sqrt(mean of squares + eps).

LayerNorm subtracts the mean before it measures the scale, RMSNorm does not and has no bias. Only the scale is not
linear in x: with the scale held fixed a logit is a sum over whatever x is a sum of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.taps import BLOCKS

if TYPE_CHECKING:
    from interp.models.handle import ModelHandle

IN_BLOCK = {
    "gpt2": {"attn": "ln_1", "mlp": "ln_2"},
    "gpt_neox": {"attn": "input_layernorm", "mlp": "post_attention_layernorm"},
    "llama": {"attn": "input_layernorm", "mlp": "post_attention_layernorm"},
}
"""Family -> part of a block -> the norm that it reads the stream through."""


@dataclass(frozen=True, eq=False)
class NormParts:
    """What a norm computes, in float64."""

    gain: Float[Tensor, " d"]
    """Factor of each dimension."""
    bias: Float[Tensor, " d"]
    """What is added at the end; zeros for RMSNorm."""
    centred: bool
    """Whether the mean is subtracted."""
    eps: float | None
    """What is added to the mean square; None: no division at all (a norm that was taken out)."""

    def centre(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return x without its mean, or as it is where the norm does not subtract it."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Return what each row is divided by."""
        x = x.double()
        if self.eps is None:
            return torch.ones(x.shape[:-1], dtype=torch.float64, device=x.device)
        return (self.centre(x).square().mean(-1) + self.eps).sqrt()

    def pull_back(self, u: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return u' with u · norm(x) = u' · x / scale(x) + u · bias."""
        return self.centre(u.double() * self.gain)

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return the norm's output in float64."""
        x = x.double()
        return self.centre(x) / self.scale(x)[..., None] * self.gain + self.bias


def norm_parts(norm: nn.Module, d: int, device: torch.device | None = None) -> NormParts:
    """Return what the module `norm` of `d` dimensions computes; without weights of its own it goes to `device`.

    Raises:
        ValueError: it is neither a LayerNorm nor an RMSNorm over the last axis, nor one that was taken out.
    """
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    where = weight.device if isinstance(weight, Tensor) else device
    one = torch.ones(d, dtype=torch.float64, device=where)
    gain, zero = weight.detach().double() if isinstance(weight, Tensor) else one, torch.zeros_like(one)
    if isinstance(norm, nn.Identity):
        return NormParts(gain, zero, False, None)
    if isinstance(norm, nn.LayerNorm) and tuple(norm.normalized_shape) == (d,):
        return NormParts(gain, bias.detach().double() if isinstance(bias, Tensor) else zero, True, norm.eps)
    if hasattr(norm, "variance_epsilon") and gain.shape == (d,) and bias is None:
        return NormParts(gain, zero, False, float(norm.variance_epsilon))  # type: ignore[arg-type]
    raise ValueError(
        f"A norm must be a LayerNorm or an RMSNorm over {d} dimensions to be taken apart, got {type(norm).__name__}."
    )


def final_norm(handle: ModelHandle) -> NormParts:
    """Return the norm before the unembedding."""
    return norm_parts(handle.final_norm, handle.d_model, handle.device)


def block_norm(handle: ModelHandle, layer: int, part: str) -> NormParts:
    """Return the norm through which `part` (`attn` or `mlp`) of a block reads the stream."""
    path = f"{BLOCKS[handle.family]}.{layer}.{IN_BLOCK[handle.family][part]}"
    return norm_parts(handle.module.get_submodule(path), handle.d_model, handle.device)
