"""Nulls: damage that means nothing, of a size that can be compared.

What compression does to features, heads or layers says something only beside what any change of that size does. A null
is the same model with Gaussian noise on its weights or activations, or with random weights pruned, so strong that
KL(a || null) is that of the model in question on the same tokens:

    target = mean_kl(a, b, some)
    null = matched_null("weight_noise", spec_a, target, some)
    compare(spec_a, replace(spec_a, recipe=spec_a.recipe + null), panels, blocks=blocks)

The strength is found by bisection (between the ends of an interval that brackets the target, on a logarithmic scale,
guided by the slope of log KL). Where the panels of the null and of the model in question agree, the size of the damage
explains what is seen, not its kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from interp.compression.panel import predicting_positions
from interp.compression.steps import ActivationNoise, RandomPrune, WeightNoise
from interp.data import Blocks
from interp.layers.lens import Prediction, row_chunk
from interp.models import ModelHandle, ModelSpec, load_model
from interp.names import unknown
from interp.types import Recipe

TOLERANCE = 0.02
"""Largest relative difference between the null's KL and the target."""
NULL_TOKENS = 8192
"""Tokens on which a null is matched, unless others are given."""
LARGEST = {"weight_noise": 64.0, "activation_noise": 64.0, "random_prune": 1.0}
"""Kind of null -> its greatest strength."""
_HELD_FLOATS = 1 << 26  # logits of a that are kept between trials: 256 MiB
_LOGIT_FLOATS = 1 << 23
_START = 0.05
_TRIALS = 40


def null_recipe(kind: str, strength: float, seed: int = 0) -> Recipe:
    """Return the recipe of a null: `strength` is the relative size of the noise, or the share of weights pruned.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "weight_noise":
        return (WeightNoise(std=strength, seed=seed),)
    if kind == "activation_noise":
        return (ActivationNoise(std=strength, seed=seed),)
    if kind == "random_prune":
        return (RandomPrune(sparsity=strength, seed=seed),)
    raise ValueError(unknown("kind of null", str(kind), LARGEST))


def spread_blocks(blocks: Blocks, tokens: int = NULL_TOKENS) -> Blocks:
    """Return evenly spread blocks, as many as hold about `tokens` tokens, at least one."""
    wanted = max(1, min(len(blocks), tokens // blocks.context))
    return blocks.select(torch.arange(wanted) * len(blocks) // wanted)


def mean_kl(a: ModelHandle, b: ModelHandle, blocks: Blocks) -> float:
    """Return KL(a || b) of the next-token distributions, averaged over the positions that predict a token."""
    return _Reference(a, blocks).kl(b)


class _Reference:
    """Model a on some blocks; its logits are kept where that is not too much."""

    def __init__(self, a: ModelHandle, blocks: Blocks) -> None:
        self.a, self.blocks = a, blocks
        self._size = max(1, min(16, _LOGIT_FLOATS // (blocks.context * a.d_vocab)))
        self._keep = blocks.tokens.numel() * a.d_vocab <= _HELD_FLOATS
        self._held: dict[int, Tensor] = {}

    @torch.inference_mode()
    def kl(self, b: ModelHandle) -> float:
        """Return the mean KL to `b`, infinite where its logits are not finite."""
        total = 0.0
        parts = zip(self.blocks.tokens.split(self._size), self.blocks.keep.split(self._size), strict=True)
        for number, (tokens, keep) in enumerate(parts):
            clean = self._held.get(number)
            if clean is None:
                clean = self.a.logits(tokens)
                if self._keep:
                    self._held[number] = clean
            counted = (keep[:, :-1] & keep[:, 1:]).to(clean.device)
            rows = clean[:, :-1][counted], b.logits(tokens).to(clean.device)[:, :-1][counted]
            size = row_chunk(clean.shape[-1], clean.device)
            for x, y in zip(*(side.split(size) for side in rows), strict=True):
                total += float(Prediction(x).kl_to(Prediction(y)).double().sum())
        found = total / max(1, predicting_positions(self.blocks))
        return max(found, 0.0) if math.isfinite(found) else math.inf


def matched_null(
    kind: str,
    spec_a: ModelSpec | str,
    target_kl: float,
    blocks: Blocks,
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    a: ModelHandle | None = None,
    on_progress: Callable[[float, float], None] = lambda *_: None,
) -> Recipe:
    """Return the recipe of a null whose KL(a || null) on `blocks` is `target_kl`.

    Args:
        kind: `weight_noise`, `activation_noise` or `random_prune`.
        spec_a: the model; the null's steps come after its own.
        target_kl: in nats per token, measured on the same blocks (`mean_kl`).
        blocks: the text, all of it; `spread_blocks` takes a part that is enough.
        tolerance: largest relative difference from the target.
        seed: of the noise or the choice.
        a: the model of `spec_a` where it is loaded already.
        on_progress: hears (strength, KL) of each trial.

    Raises:
        ValueError: an unknown kind, a target that is not above 0, or one that no strength reaches.
    """
    null_recipe(kind, 0.0, seed)  # an unknown kind is told before anything is loaded
    if not (math.isfinite(target_kl) and target_kl > 0):
        raise ValueError(f"target_kl must be a number above 0, got {target_kl}: equal models need no null.")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance}.")
    spec = ModelSpec(spec_a) if isinstance(spec_a, str) else spec_a
    handle = load_model(spec) if a is None else a
    reference = _Reference(handle, blocks)

    def kl_at(strength: float) -> float:
        null = replace(spec, recipe=(*spec.recipe, *null_recipe(kind, strength, seed)))
        found = reference.kl(load_model(null, device=handle.device))
        on_progress(strength, found)
        return found

    return null_recipe(kind, solve(kl_at, target_kl, LARGEST[kind], tolerance), seed)


def solve(kl_at: Callable[[float], float], target: float, largest: float, tolerance: float) -> float:
    """Return the strength in (0, largest] at which `kl_at` is `target`, up to the relative `tolerance`.

    Raises:
        ValueError: the largest strength gives less, or no strength gives just that.
    """
    low, low_kl, high, high_kl = 0.0, 0.0, math.inf, math.inf
    strength = min(_START, largest)
    tried: list[tuple[float, float]] = []
    for _ in range(_TRIALS):
        found = kl_at(strength)
        tried.append((strength, found))
        if abs(found - target) <= tolerance * target:
            return strength
        if found < target:
            low, low_kl = strength, found
        else:
            high, high_kl = strength, found
        if low >= largest:
            raise ValueError(
                f"No strength up to {largest:g} gives a KL of {target:.4g} nats: {largest:g} gives {found:.4g}. The "
                "model in question does more damage than this null can; take another kind."
            )
        strength = _between(low, low_kl, high, high_kl, target, largest, len(tried))
    strength, found = min(tried, key=lambda trial: abs(trial[1] - target))
    raise ValueError(
        f"No strength gives a KL of {target:.4g} nats within {tolerance:.0%} in {_TRIALS} trials; {strength:.4g}, "
        f"which gives {found:.4g}, comes nearest. Allow a larger tolerance, or take more text."
    )


def _between(
    low: float, low_kl: float, high: float, high_kl: float, target: float, largest: float, trial: int
) -> float:
    """Return the next strength to try: inside the bracket, or a step further where there is none yet."""
    if math.isinf(high):
        # KL grows with the square of a small change.
        return min(largest, low * min(16.0, max(1.3, 1.1 * math.sqrt(target / low_kl))) if low_kl > 0 else low * 4)
    if low == 0:
        return high * max(1 / 16, 0.9 * math.sqrt(target / high_kl)) if math.isfinite(high_kl) else high / 4
    middle = math.sqrt(low * high)
    if (
        low_kl <= 0 or not math.isfinite(high_kl) or trial % 3 == 0
    ):  # every third time the plain middle: it never stalls
        return middle
    share = math.log(target / low_kl) / math.log(high_kl / low_kl)
    return low * (high / low) ** min(max(share, 0.02), 0.98)
