"""The model-randomisation check: an attribution that does not change when the weights do is not about the model.

The weights of every matrix are shuffled among themselves, so that each keeps its distribution and loses what it has
learned; then the scores before and after are correlated (Adebayo et al. 2018, "Sanity Checks for Saliency Maps"). A
correlation near 1 means that the method draws the input, or the architecture, and not what this model does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from interp.attribution.agreement import paired
from interp.attribution.result import Attribution
from interp.attribution.scoring import correlation
from interp.models.handle import ModelHandle
from interp.models.taps import BLOCKS, strip_hooks
from interp.types import RuntimeStep

if TYPE_CHECKING:
    import pyarrow as pa


def randomised(handle: ModelHandle, seed: int = 0, first_layer: int | None = None) -> ModelHandle:
    """Return a copy of the model whose weights are shuffled, tensor by tensor.

    Args:
        handle: the model; it is left as it is.
        seed: of the shuffling.
        first_layer: shuffle only the blocks from this one on; None: all of the model, embeddings included.

    Raises:
        ValueError: there is no such layer, or the model has steps that act while it runs, which a copy would lose.
    """
    if handle._attached or any(isinstance(step, RuntimeStep) for step in handle.spec.recipe):
        raise ValueError("A recipe with steps that act while the model runs cannot be copied; leave these steps out.")
    if first_layer is not None and not 0 <= first_layer < handle.n_layers:
        raise ValueError(f"first_layer must lie in 0..{handle.n_layers - 1}, got {first_layer}.")
    module = copy.deepcopy(handle.module)
    strip_hooks(module)
    generator = torch.Generator().manual_seed(seed)
    prefix = BLOCKS[handle.family] + "."
    with torch.no_grad():
        for name, parameter in module.named_parameters():  # a tied matrix comes once
            inside = name.startswith(prefix) and int(name.removeprefix(prefix).split(".")[0]) >= (first_layer or 0)
            if first_layer is None or inside:
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))
    return ModelHandle(replace(handle.spec, name=f"{handle.spec.name} (shuffled)", recipe=()), module, handle.tokenizer)


def randomisation_check(
    attribute: Callable[[ModelHandle], Attribution],
    handle: ModelHandle,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    first_layer: int | None = None,
) -> pa.Table:
    """Return how far the scores of a method survive when the weights are shuffled.

    Args:
        attribute: computes the attribution of a model, on the same prompts and with the same arguments every time.
        handle: the model.
        seeds: one shuffling for each.
        first_layer: as in `randomised`.

    Returns:
        A table with a row for each kind and seed: kind, seed, cells, pearson (of the scores), spearman (of their
        absolute values); null where one side is constant.

    Raises:
        ValueError: as of `randomised`, and of `attribute`.
    """
    import pyarrow as pa

    before = attribute(handle)
    rows = []
    for seed in seeds:
        after = attribute(randomised(handle, seed, first_layer))
        for kind in before.kinds:
            x, y, _ = paired(before, after, kind)
            signed, size = correlation(x, y, ranks=False), correlation(np.abs(x), np.abs(y), ranks=True)
            rows.append({"kind": kind, "seed": seed, "cells": len(x), "pearson": signed, "spearman": size})
    schema = {"kind": pa.string(), "seed": pa.int32(), "cells": pa.int32(), "pearson": pa.float64()}
    return pa.Table.from_pylist(rows, pa.schema(schema | {"spearman": pa.float64()}))
