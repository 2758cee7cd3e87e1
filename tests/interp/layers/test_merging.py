"""Layer-scaled merging: its ends, a slow sum, and what does not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from interp.layers.merging import layer_scales, merged_weights
from interp.models import ModelHandle
from interp.models.taps import BLOCKS


def tuned_from(base: nn.Module, seed: int) -> Any:
    other = copy.deepcopy(base)
    with torch.no_grad():
        for i, parameter in enumerate(other.parameters()):
            g = torch.Generator().manual_seed(100 * seed + i)
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return other


def test_scales_run_from_alpha_to_alpha_plus_beta() -> None:
    found = layer_scales(5, 0.2, 0.6)
    assert found.tolist() == pytest.approx([0.2, 0.35, 0.5, 0.65, 0.8])
    assert layer_scales(1, 0.2, 0.8).tolist() == [1.0]
    with pytest.raises(ValueError, match="layers must be 1 or more"):
        layer_scales(0, 0.5, 0.5)


def test_one_task_keeps_its_last_block_and_scales_the_rest(model: ModelHandle) -> None:
    base, tuned = model.module, tuned_from(model.module, 1)
    merged = merged_weights(base, [tuned], alpha=0.3)
    scales = {0: 0.3, 1: 0.65, 2: 1.0}
    before, after = base.state_dict(), tuned.state_dict()
    assert merged.keys() == before.keys()
    prefix = BLOCKS[model.family] + "."
    for name, weight in merged.items():
        if not weight.is_floating_point():
            continue
        scale = scales[int(name.removeprefix(prefix).split(".")[0])] if name.startswith(prefix) else 0.3
        assert torch.allclose(weight, before[name] + scale * (after[name] - before[name]), atol=1e-6), name
    last = [name for name in merged if name.startswith(f"{prefix}2.")]
    assert last
    assert all(torch.equal(merged[name], after[name]) for name in last)


def test_the_ends_are_the_models_bit_by_bit_and_no_model_is_changed(model: ModelHandle) -> None:
    base, tuned = model.module, tuned_from(model.module, 2)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    none = merged_weights(base, [tuned], alpha=0.0, beta=0.0)
    full = merged_weights(base, [tuned], alpha=1.0)
    assert all(torch.equal(none[name], weight) for name, weight in before.items())
    assert all(torch.equal(full[name], weight) for name, weight in tuned.state_dict().items())
    assert all(torch.equal(base.state_dict()[name], weight) for name, weight in before.items())
    loaded = copy.deepcopy(base)
    loaded.load_state_dict(full)
    tokens = torch.arange(12)[None]
    assert torch.equal(loaded(tokens).logits, tuned(tokens).logits)


def test_several_tasks_add_up_in_any_order(gpt2: ModelHandle) -> None:
    base = gpt2.module
    one, two = tuned_from(base, 3), tuned_from(base, 4)
    merged = merged_weights(base, [one, two], alpha=0.5, beta=0.2)
    again = merged_weights(base, [two, one], alpha=0.5, beta=0.2)
    name = "transformer.h.1.mlp.c_fc.weight"
    tau = [other.state_dict()[name] - base.state_dict()[name] for other in (one, two)]
    assert torch.allclose(merged[name], base.state_dict()[name] + 0.6 * (tau[0] + tau[1]), atol=1e-6)
    assert all(torch.allclose(merged[name], again[name], atol=1e-6) for name in merged)


def test_models_that_do_not_fit_are_refused(gpt2: ModelHandle, make_module: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="at least one tuned model"):
        merged_weights(gpt2.module, [], alpha=0.5)
    odd = nn.Linear(2, 2)
    odd.config = SimpleNamespace(model_type="bloom", num_hidden_layers=1)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="architecture 'bloom'"):
        merged_weights(odd, [odd], alpha=0.5)
    with pytest.raises(ValueError, match="beta has a default for one tuned model only"):
        merged_weights(gpt2.module, [gpt2.module, gpt2.module], alpha=0.5)
    with pytest.raises(ValueError, match="only one of the two has"):
        merged_weights(gpt2.module, [make_module("gpt2", n_layer=2)], alpha=0.5)
    with pytest.raises(ValueError, match=r"is \[.*\] there and \[.*\] here"):
        merged_weights(gpt2.module, [make_module("gpt2", n_inner=64)], alpha=0.5)
