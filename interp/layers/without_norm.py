"""A GPT-2 whose layer norms stop dividing by each token's own deviation, one after the other, while it is tuned.

    norm(x) = (x - mean x) / sigma(x) * gain + bias        becomes        (x - mean x) / sigma * gain + bias

with sigma the average deviation of that place, frozen when it is removed (Baroni et al. 2025; Heimersheim 2024). What
is left is affine: `folded` writes it as a plain GPT-2 whose eps is so large that each division is by the same number.

Order: the MLPs' norms, then attention's for q and k, then for v, layer by layer, then the final norm. Position 0 and
end-of-text tokens, whose deviation is far from that of others, keep averages of their own until the end: first
end-of-text gives its up, then position 0.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

EPS = 1e12
"""eps of a folded model: in float32 a variance below 60 000 is lost in it, so that every token is divided by 1e6."""
PARTS = ("mlp", "qk", "v")
"""What a block's norms are read by, in the order of removal."""
EOT_AFTER, BOS_AFTER = 2, 10
"""Steps from the final norm's removal to end-of-text's, and from there to position 0's."""
ORDINARY, FIRST, END = range(3)


@dataclass(frozen=True)
class Schedule:
    """When each norm is removed, in steps; the published one for GPT-2 small."""

    start: int = 20
    """Step of the first removal."""
    gaps: tuple[int, int, int] = (2, 2, 3)
    """Steps from one block's removal to the next: MLP, q and k, v."""

    def __post_init__(self) -> None:
        if self.start < 1 or len(self.gaps) != 3 or min(self.gaps) < 1:
            raise ValueError(f"start and the three gaps must be 1 or more, got {self.start} and {self.gaps}.")

    def steps(self, layers: int) -> dict[tuple[str, int | None], int]:
        """Return {(part, layer): step} of every removal; `final`, `eot` and `bos` have no layer."""
        found: dict[tuple[str, int | None], int] = {}
        step = self.start
        for part, gap in zip(PARTS, self.gaps, strict=True):
            for layer in range(layers):
                found[part, layer] = step
                step += gap
        found["final", None] = step
        found["eot", None] = step + EOT_AFTER
        found["bos", None] = step + EOT_AFTER + BOS_AFTER
        return found


class Scale(nn.Module):
    """What a norm divides by: each token's own deviation, or once `fixed` its average."""

    average: Float[Tensor, " kind"]
    """Mean deviation of ordinary tokens, of position 0, and of end-of-text."""
    seen: Float[Tensor, " kind"]
    """1 for those that occurred."""

    def __init__(self, eps: float, momentum: float) -> None:
        """Begin with each token's own; averages move by 1 - `momentum` in each step of training."""
        super().__init__()
        self.eps, self.momentum, self.fixed = eps, momentum, False
        self.apart: tuple[int, ...] = (FIRST, END)
        self.register_buffer("average", torch.ones(3))
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, centred: Float[Tensor, "batch pos d"], kinds: Int[Tensor, "batch pos"]) -> Tensor:
        """Return the divisors [batch pos 1]."""
        if self.fixed:
            kinds = sum((torch.where(kinds == kind, kind, 0) for kind in self.apart), torch.zeros_like(kinds))
            return self.average[kinds][..., None]
        own = (centred.square().mean(-1) + self.eps).sqrt()
        if self.training:
            self._move(own.detach(), kinds)
        return own[..., None]

    def _move(self, own: Tensor, kinds: Tensor) -> None:
        for kind in (ORDINARY, FIRST, END):
            values = own[kinds == kind]
            if len(values):
                keep = self.momentum * self.seen[kind]  # nothing to keep the first time
                self.average[kind] = keep * self.average[kind] + (1 - keep) * values.mean()
                self.seen[kind] = 1.0

    def settle(self) -> None:
        """Give kinds that never occurred the average of ordinary tokens."""
        self.average.copy_(torch.where(self.seen > 0, self.average, self.average[ORDINARY]))


class _Reading(nn.Module):
    """What the norms of one model share: the kinds of the tokens that are read."""

    kinds: Tensor | None = None


class FadingNorm(nn.Module):
    """A layer norm whose divisor can be frozen."""

    def __init__(self, norm: nn.LayerNorm, momentum: float, reading: _Reading) -> None:
        """Take over gain and bias."""
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.scale = Scale(norm.eps, momentum)
        self._reading = [reading]  # in a list: no part of the module's own state
        self.deviation: Tensor | None = None

    def forward(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        """Return the normalised stream; `deviation` is each token's own afterwards, with its graph."""
        centred = x - x.mean(-1, keepdim=True)
        self.deviation = (centred.square().mean(-1) + self.scale.eps).sqrt()
        return centred / self.scale(centred, _kinds(self._reading[0], x)) * self.weight + self.bias


class FadingQkv(nn.Module):
    """GPT-2's fused q, k and v behind one norm that can be frozen for q and k, and for v, at different steps."""

    def __init__(self, norm: nn.LayerNorm, projection: Any, momentum: float, reading: _Reading) -> None:
        """Take over the norm's gain and bias and the projection."""
        super().__init__()
        self.weight, self.bias, self.projection = norm.weight, norm.bias, projection
        self.qk, self.v = Scale(norm.eps, momentum), Scale(norm.eps, momentum)
        self._reading = [reading]

    def forward(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos qkv"]:
        """Return [q | k | v] of the stream before the norm."""
        centred = x - x.mean(-1, keepdim=True)
        kinds, d = _kinds(self._reading[0], x), x.shape[-1]
        weight, bias = self.projection.weight, self.projection.bias
        read = [centred / scale(centred, kinds) * self.weight + self.bias for scale in (self.qk, self.v)]
        parts = (slice(0, 2 * d), slice(2 * d, 3 * d))
        return torch.cat([y @ weight[:, part] + bias[part] for y, part in zip(read, parts, strict=True)], -1)


def _kinds(reading: _Reading, x: Tensor) -> Tensor:
    if reading.kinds is None or reading.kinds.shape != x.shape[:2]:
        raise RuntimeError("The norms do not know which tokens are read; call NormRemoval.read(tokens) first.")
    return reading.kinds


class NormRemoval:
    """The norms of one GPT-2, and how many of them are removed."""

    def __init__(
        self, module: Any, schedule: Schedule | None = None, *, momentum: float = 0.9, eot: int | None = None
    ) -> None:
        """Put fading norms in the place of those of `module`, which computes the same until `at` removes some.

        Args:
            module: a Hugging Face GPT-2 with a head.
            schedule: when each is removed.
            momentum: of the averages.
            eot: the end-of-text token, which has averages of its own; None: there is none.

        Raises:
            ValueError: another architecture, or norms that are not plain layer norms any more.
        """
        if module.config.model_type != "gpt2":
            raise ValueError(f"Norms can be removed from a GPT-2, got {module.config.model_type}.")
        self.module, self.eot, self._reading = module, eot, _Reading()
        blocks = module.transformer.h
        norms = [module.transformer.ln_f, *(norm for block in blocks for norm in (block.ln_1, block.ln_2))]
        if not all(isinstance(norm, nn.LayerNorm) and norm.elementwise_affine for norm in norms):
            raise ValueError("Norms can be removed where they are layer norms with gain and bias; these are not.")
        self._steps = (schedule or Schedule()).steps(len(blocks))
        self._scales: dict[tuple[str, int | None], Scale] = {}
        for layer, block in enumerate(blocks):
            block.ln_2 = FadingNorm(block.ln_2, momentum, self._reading)
            block.attn.c_attn = FadingQkv(block.ln_1, block.attn.c_attn, momentum, self._reading)
            block.ln_1 = nn.Identity()
            found = (block.ln_2.scale, block.attn.c_attn.qk, block.attn.c_attn.v)
            self._scales |= {(part, layer): scale for part, scale in zip(PARTS, found, strict=True)}
        self._final = FadingNorm(module.transformer.ln_f, momentum, self._reading)
        module.transformer.ln_f = self._final
        self._scales["final", None] = self._final.scale

    @property
    def last_step(self) -> int:
        """The step from which on nothing is left to remove."""
        return max(self._steps.values())

    def at(self, step: int) -> int:
        """Remove what the schedule has removed by `step`, and nothing else; return how many norms that is."""
        apart = tuple(kind for kind, name in ((FIRST, "bos"), (END, "eot")) if step < self._steps[name, None])
        for place, scale in self._scales.items():
            scale.fixed, scale.apart = step >= self._steps[place], apart
            if scale.fixed:
                scale.settle()
        return sum(scale.fixed for scale in self._scales.values())

    def read(self, tokens: Int[Tensor, "batch pos"]) -> None:
        """Say which tokens the next forward reads."""
        kinds = torch.full_like(tokens, ORDINARY)
        if self.eot is not None:
            kinds[tokens == self.eot] = END
        kinds[:, 0] = FIRST
        self._reading.kinds = kinds

    def spread(self) -> Float[Tensor, ""]:
        """Return the auxiliary loss of the last forward.

        It is the mean squared distance of the final norm's deviations from the mean one of ordinary tokens.
        """
        own, kinds = self._final.deviation, self._reading.kinds
        if own is None or kinds is None:
            raise RuntimeError("There was no forward yet whose deviations could be compared.")
        return (own - own[kinds == ORDINARY].mean().detach()).square().mean()

    def folded(self) -> Any:
        """Return a plain GPT-2 in float32 that computes the same, all of whose norms are affine.

        Raises:
            ValueError: some norm still divides by each token's own deviation.
        """
        if not all(scale.fixed and not scale.apart for scale in self._scales.values()):
            raise ValueError(f"Norms are left; go on until at({self.last_step}).")
        module = copy.deepcopy(self.module).float()
        for block in module.transformer.h:
            block.ln_1 = _fold_qkv(block.attn)
            block.ln_2 = _fold(block.ln_2)
        module.transformer.ln_f = _fold(module.transformer.ln_f)
        module.config.layer_norm_epsilon = EPS
        return module.eval().requires_grad_(False)


def _plain(weight: Tensor, bias: Tensor, divisor: Tensor) -> nn.LayerNorm:
    norm = nn.LayerNorm(len(weight), eps=EPS)
    norm.weight = nn.Parameter(weight.detach() * (EPS**0.5 / divisor))
    norm.bias = nn.Parameter(bias.detach().clone())
    return norm


def _fold(norm: FadingNorm) -> nn.LayerNorm:
    return _plain(norm.weight, norm.bias, norm.scale.average[ORDINARY])


@torch.no_grad()
def _fold_qkv(attention: Any) -> nn.LayerNorm:
    """Put the projection back and return its norm; what v is divided by in place of q and k goes into v's weights."""
    fading = attention.c_attn
    projection, d = fading.projection, len(fading.weight)
    ratio = fading.qk.average[ORDINARY] / fading.v.average[ORDINARY]
    weight, bias = projection.weight.clone(), projection.bias.clone()
    bias[2 * d :] += (1 - ratio) * fading.bias @ weight[:, 2 * d :]
    weight[:, 2 * d :] *= ratio
    projection.weight, projection.bias = nn.Parameter(weight), nn.Parameter(bias)
    attention.c_attn = projection
    return _plain(fading.weight, fading.bias, fading.qk.average[ORDINARY])
