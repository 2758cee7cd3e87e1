from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.compression.steps import Magnitude, Rtn, SkipLayers, Svd, WeightNoise
from interp.compression.storage import dense
from interp.models import ModelSpec, load_model
from interp.types import Recipe

Make = Callable[..., Any]


def storage(folder: Path, *recipe: Any, dtype: str = "float32") -> Any:
    steps: Recipe = recipe
    return load_model(ModelSpec(str(folder), dtype=dtype, recipe=steps), device="cpu").storage


def module(found: Any, name: str) -> Any:
    return next(one for one in found.modules if one.module == name)


UP = "model.layers.1.mlp.up_proj"  # [48 32]
N = 48 * 32


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("float16", 16), ("bfloat16", 16), ("float64", 64)])
def test_a_model_as_stored_takes_its_format(dtype: str, bits: int, llama_folder: Path) -> None:
    found = storage(llama_folder, dtype=dtype)
    assert found.bits_per_parameter == found.matrix_bits == bits
    assert found.coverage == 0
    assert found.stored == found.parameters == sum(one.parameters + one.rest for one in found.modules)


@pytest.mark.parametrize(
    ("recipe", "bits"),
    [
        ((Rtn(4),), 4 * N + 48 * 16),
        ((Rtn(4, "asymmetric"),), 4 * N + 48 * (16 + 4)),
        ((Rtn(3, "asymmetric", 8),), 3 * N + 48 * 4 * (16 + 3)),
        ((Rtn(8), Rtn(4)), 4 * N + 48 * 16),
        ((Magnitude(0.25),), 0.75 * N * 32 + N),
        ((Magnitude(0.25), Rtn(4)), 0.75 * N * 4 + N + 48 * 16),
        ((Magnitude(0.25), Magnitude(0.5), Rtn(4)), 0.5 * N * 4 + N + 48 * 16),
        ((Svd(rank=8),), 8 * (48 + 32) * 32),
        ((Svd(rank=8), Rtn(4)), 8 * (48 + 32) * 4 + (48 + 8) * 16),
        ((Svd(rank=8), Rtn(4, group=8)), 8 * (48 + 32) * 4 + (48 + 8 * 4) * 16),
        ((Rtn(4), Svd(rank=8)), 8 * (48 + 32) * 32),
        ((Svd(rank=24),), N * 32),  # 24 (48 + 32) > 48 * 32: stored whole
        ((Svd(rank=24), Rtn(4)), 4 * N + 48 * 16),
        ((Magnitude(0.25), Rtn(4), WeightNoise(0.1)), N * 32),
        ((Rtn(4), SkipLayers((1,))), 0),
        ((SkipLayers((1,)), Rtn(4)), 0),
    ],
    ids=lambda value: "+".join(step.describe() for step in value) if isinstance(value, tuple) else "",
)
def test_bits_of_a_matrix_over_the_steps(recipe: tuple, bits: float, llama_folder: Path) -> None:
    one = module(storage(llama_folder, *recipe), UP)
    assert one.parameters == N
    assert one.bits == bits
    assert one.bits_per_parameter == bits / N


def test_the_known_formula_for_groups(llama_folder: Path) -> None:
    """b + (16 + b) / g bits a weight for asymmetric groups of g."""
    assert storage(llama_folder, Rtn(4, "asymmetric", 16)).matrix_bits == 4 + (16 + 4) / 16


def test_rounded_zeros_are_stored_where_no_mask_says_otherwise() -> None:
    part = dense(100, 32).pruned(60).rounded(4, 10, zero_points=False)
    assert (part.kept, part.bits) == (60, 60 * 4 + 100 + 10 * 16)
    assert dense(100, 16).rounded(2, 10, zero_points=True).bits == 100 * 2 + 10 * 18


def test_the_whole_model_counts_what_no_step_touches(llama_folder: Path) -> None:
    found = storage(llama_folder, Rtn(4))
    assert found.coverage == 1.0
    untouched = sum(one.rest + (0 if one.eligible else one.parameters) for one in found.modules)
    matrices = found.parameters - untouched
    assert found.bits == round(found.matrix_bits * matrices) + 32 * untouched
    assert 4 < found.matrix_bits < found.bits_per_parameter < 32


def test_a_skipped_block_takes_nothing(gpt2: Any, model_folder: Path) -> None:
    found = storage(model_folder, SkipLayers((0, 2)))
    gone = [one for one in found.modules if one.module.startswith(("transformer.h.0.", "transformer.h.2."))]
    assert gone
    assert all(one.bits == one.rest_bits == 0 for one in gone)
    assert found.coverage == pytest.approx(2 / 3)
    left = sum(p.numel() for name, p in gpt2.module.named_parameters() if ".h.0." not in name and ".h.2." not in name)
    assert found.bits == 32 * left
    assert found.stored == left
    assert found.parameters == gpt2.n_parameters


def test_factors_are_rounded_themselves(make_module: Make) -> None:
    """What is stored is two rounded factors, so the weight is their product, and not a rounded product."""
    module = make_module("llama").requires_grad_(False)
    Svd(rank=4).apply(module)
    low_rank = module.model.layers[0].mlp.up_proj.weight.clone()
    Rtn(4).apply(module)
    weight = module.model.layers[0].mlp.up_proj.weight
    assert int(torch.linalg.matrix_rank(weight.double(), tol=1e-4)) == 4
    assert 0.01 < float((weight - low_rank).norm() / low_rank.norm()) < 0.4
