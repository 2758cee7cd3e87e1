"""Conservation of relevance, layer by layer: exact where it must be, a reported gap where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.attribution.relevance import PRESETS, Rules, check_conservation, relevance
from interp.compression.steps import ActivationNoise
from interp.models import load_model

if TYPE_CHECKING:
    from interp.models import ModelHandle

EXACT = ("alpha_beta", "cp_lrp", "gamma", "relp", "z_plus")
LEAKING = ("attn_lrp", "epsilon", "gradient", "relp_qk")


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 300, (3, 6), generator=torch.Generator().manual_seed(2))


def build(family: str, make_module: Callable[..., torch.nn.Module], biases: bool) -> ModelHandle:
    module = make_module(family).double()
    if not biases:
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if name.endswith("bias"):
                    weight.zero_()
    return load_model(module)


@pytest.fixture(scope="module")
def models(make_module: Callable[..., torch.nn.Module]) -> dict[tuple[str, bool], ModelHandle]:
    return {(f, b): build(f, make_module, b) for f in ("gpt2", "neox", "llama") for b in (False, True)}


Models = dict[tuple[str, bool], "ModelHandle"]


def columns(table: object) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in table.to_pydict().items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("view", ["hf", "bridge"])
@pytest.mark.parametrize("preset", EXACT)
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_nothing_is_lost_without_biases(family: str, preset: str, view: str, models: Models, tokens: Tensor) -> None:
    found = columns(check_conservation(models[family, False], tokens, preset=preset, view=view))
    assert found["layer"].tolist() == [0, 1, 2, 3]
    assert np.abs(found["gap"]).max() < 1e-8
    assert np.abs(found["bias"]).max() < 1e-12
    assert abs(found["relevance"][0] - found["target"][-1]) < 1e-8  # from the logits down to the embeddings
    assert abs(found["target"][-1]) > 0.1


@pytest.mark.parametrize("view", ["hf", "bridge"])
@pytest.mark.parametrize("preset", EXACT)
@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_with_biases_they_account_for_the_whole_gap(
    family: str, preset: str, view: str, models: Models, tokens: Tensor
) -> None:
    found = columns(check_conservation(models[family, True], tokens, preset=preset, view=view))
    assert np.abs(found["gap"]).max() > 1e-3
    assert np.abs(found["rest"]).max() < 1e-8


@pytest.mark.parametrize("preset", LEAKING)
def test_rules_that_leak_are_shown_to(preset: str, models: Models, tokens: Tensor) -> None:
    found = columns(check_conservation(models["gpt2", False], tokens, preset=preset))
    worst = np.abs(found["gap"]).max()
    assert worst > (1e-7 if preset == "epsilon" else 1e-2)
    assert np.abs(found["bias"]).max() < 1e-12


def test_epsilon_leaks_in_proportion(models: Models, tokens: Tensor) -> None:
    gaps = [
        columns(check_conservation(models["llama", False], tokens, preset=Rules(linear="epsilon", epsilon=eps)))["gap"]
        for eps in (1e-8, 1e-6)
    ]
    np.testing.assert_allclose(gaps[1], 100 * gaps[0], rtol=0.05)


def test_the_plain_gamma_rule_conserves_too(models: Models, tokens: Tensor) -> None:
    found = columns(check_conservation(models["neox", False], tokens, preset=Rules(linear="plain_gamma")))
    assert np.abs(found["gap"]).max() < 1e-6  # its denominators come near zero here, so rounding grows


def test_a_rule_of_early_layers_is_checked_as_well(models: Models, tokens: Tensor) -> None:
    rules = Rules(linear="gamma", layers=(0, 2), elsewhere="z_plus")
    for view in ("hf", "bridge"):
        found = columns(check_conservation(models["gpt2", True], tokens, preset=rules, view=view))
        assert np.abs(found["rest"]).max() < 1e-8


def test_it_agrees_with_the_scores(models: Models, tokens: Tensor) -> None:
    found = columns(check_conservation(models["gpt2", True], tokens, preset="cp_lrp"))
    scores = relevance(models["gpt2", True], tokens, sites="resid_pre")
    np.testing.assert_allclose(scores.map("resid_pre").sum(1), found["relevance"][:3])
    assert scores.values["output"] == pytest.approx(found["target"][-1])


def test_every_preset_is_either_exact_or_known_to_leak() -> None:
    assert {*EXACT, *LEAKING} == set(PRESETS)


def test_batches_change_nothing_and_bad_input_is_refused(models: Models, tokens: Tensor) -> None:
    whole, parts = (check_conservation(models["neox", True], tokens, batch=batch) for batch in (16, 2))
    for name, values in columns(whole).items():
        np.testing.assert_allclose(columns(parts)[name], values, atol=1e-12)
    with pytest.raises(ValueError, match="did you mean 'gamma'"):
        check_conservation(models["neox", True], tokens, preset="gama")
    with pytest.raises(ValueError, match="'<lambda>' has no gradient"):
        check_conservation(models["neox", True], tokens, lambda logits, _: logits[:, -1].argmax(-1).float())
    assert torch._C._len_torch_function_stack() == 0


def test_a_step_that_computes_in_float64_is_left_alone(
    make_module: Callable[..., torch.nn.Module], tokens: Tensor
) -> None:
    noisy = load_model(make_module("gpt2"))
    ActivationNoise(0.01).attach(noisy)
    found = columns(check_conservation(noisy, tokens))
    scores = relevance(noisy, tokens, sites="resid_pre")
    np.testing.assert_allclose(scores.map("resid_pre").sum(1), found["relevance"][:3], rtol=1e-4, atol=1e-5)
