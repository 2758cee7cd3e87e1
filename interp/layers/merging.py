"""Layer-scaled merging (LiNeS; Wang et al. 2024): fine-tuning updates scaled by depth.

    theta = theta_0 + s_l tau,   tau = sum over tasks (theta_i - theta_0),   s_l = alpha + beta l / (L - 1)

for block l = 0..L-1; what lies in no block (embeddings, final norm, unembedding) is scaled by alpha. Early blocks,
which hold what all tasks share, stay near the original. For one task beta = 1 - alpha keeps the last block as tuned;
for several the published alpha is |sum tau_i|_1 / |tau|_1 / tasks, which for a plain sum is 1 / tasks. What remains,
alpha for one task and beta for several, is chosen by loss on held-out data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models.taps import BLOCKS
from interp.names import unknown


def layer_scales(layers: int, alpha: float, beta: float) -> Float[Tensor, " layer"]:
    """Return s_l of each block, from alpha to alpha + beta; a model of one block has alpha + beta, as its last.

    Raises:
        ValueError: there is no block.
    """
    if layers < 1:
        raise ValueError(f"layers must be 1 or more, got {layers}.")
    if layers == 1:
        return torch.tensor([alpha + beta], dtype=torch.float64)
    return alpha + beta * torch.arange(layers, dtype=torch.float64) / (layers - 1)


def merged_weights(base: Any, tuned: Sequence[Any], *, alpha: float, beta: float | None = None) -> dict[str, Tensor]:
    """Return the weights of `base` with the scaled updates of the `tuned` models; no model is changed.

    Load them with `copy.deepcopy(base).load_state_dict(...)`. Sums are float64, results have the base's format; buffers
    of whole numbers and masks are the base's. A scale of 1 gives one tuned model's weights, and of 0 the base's, bit by
    bit.

    Args:
        base: the Hugging Face module that all were tuned from (`ModelHandle.module`).
        tuned: one or more tuned modules.
        alpha: scale of the first block.
        beta: what the last block's scale adds to it; None: 1 - alpha for one model, so that its last block stays.

    Raises:
        ValueError: no tuned model, several without a beta, one whose weights do not fit the base's, or an unknown
            architecture.
    """
    if not tuned:
        raise ValueError("Merging takes at least one tuned model, got none.")
    if beta is None:
        if len(tuned) > 1:
            raise ValueError("beta has a default for one tuned model only, 1 - alpha; with several, choose it by loss.")
        beta = 1 - alpha
    scales = layer_scales(base.config.num_hidden_layers, alpha, beta)
    if base.config.model_type not in BLOCKS:
        raise ValueError(unknown("architecture", base.config.model_type, BLOCKS))
    start, states = base.state_dict(), [one.state_dict() for one in tuned]
    for state in states:
        _check(start, state)
    block = re.compile(re.escape(BLOCKS[base.config.model_type]) + r"\.(\d+)\.")
    merged = {}
    for name, weight in start.items():
        match = block.match(name)  # from the start of the name: `mlp.0.` elsewhere is no block
        scale = float(scales[int(match[1])]) if match else alpha
        merged[name] = _merge(weight, [state[name] for state in states], scale)
    return merged


def _merge(weight: Tensor, tuned: list[Tensor], scale: float) -> Tensor:
    if not weight.is_floating_point():
        return weight.clone()
    # (1 - s) theta_0 + s theta_1 is exact at s = 0 and 1, where theta_0 + s (theta_1 - theta_0) rounds.
    total = (1 - scale * len(tuned)) * weight.double()
    for other in tuned:
        total = total + scale * other.to(weight.device).double()
    return total.to(weight.dtype)


def _check(start: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    if start.keys() != state.keys():
        odd = sorted(start.keys() ^ state.keys())[0]
        raise ValueError(f"A tuned model must have the weights of the base; only one of the two has {odd}.")
    for name, weight in start.items():
        if weight.shape != state[name].shape:
            raise ValueError(
                f"A tuned model must have the weights of the base; {name} is {list(weight.shape)} there and "
                f"{list(state[name].shape)} here."
            )
