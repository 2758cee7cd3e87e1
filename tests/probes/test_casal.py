"""CASAL: one module learns the steering, reproduces it where it can, and nothing else changes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.compression import read_recipe
from interp.data import DataSpec, token_blocks
from interp.hooks import capture
from interp.models import ModelHandle, ModelSpec, load_model
from interp.sites import Site
from probes.capturing import capture_texts
from probes.casal import CasalConfig, casal
from probes.effects import cost
from probes.steering_vectors import mean_differences, steer_along

WORDS = ("the", "cat", "sat", "on", "mat", "and", "dog", "log")
SITE = Site(2, "resid_post")


def texts(n: int = 24) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(0)
    label = np.arange(n) % 2 == 0
    made = [" ".join([*rng.choice(WORDS, 4), "sea" if one else "king", f"{i}"]) for i, one in enumerate(label)]
    return made, label


@pytest.mark.parametrize(
    ("family", "module"),
    [
        ("gpt2", "down"),
        pytest.param("neox", "down", marks=pytest.mark.slow),
        ("llama", "down"),
        ("gpt2", "mlp"),
    ],
)
def test_an_exact_solution_is_reached(family: str, module: str, request: pytest.FixtureRequest) -> None:
    """24 rows of 48 numbers or more: a matrix that does what the hook does on all of them exists."""
    model: ModelHandle = request.getfixturevalue(family)
    made, label = texts()
    config = CasalConfig("flip", 2.0, module, steps=400, rate=2e-2, batch=64)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    found = casal(model, made, label, True, 2, config)
    assert found.missed["pushed"] < 1e-3
    assert found.missed["held"] < 1e-3
    assert found.losses[-1] < 1e-2 * found.losses[0]
    vectors = mean_differences(model, made, label, True, [str(SITE)])
    np.testing.assert_allclose(found.vector, vectors[SITE].vector, atol=1e-4)
    plain = capture_texts(model, made, [str(SITE)]).rows(str(SITE), "last")
    amortised = capture_texts(found.handle, made, [str(SITE)]).rows(str(SITE), "last")
    wanted = plain + 2.0 * np.outer(~label, found.vector)
    assert np.linalg.norm(amortised - wanted) < 0.05 * np.linalg.norm(wanted - plain)
    tokens = model.tokens(made[1])  # one of the rest, which is steered
    # After the last block a token's logits depend on its own stream alone; below it, other tokens move as well.
    with steer_along(model, vectors, 2.0, positions="last"):
        steered = model.logits(tokens)[0, -1]
    unsteered, amortised_ = model.logits(tokens)[0, -1], found.handle.logits(tokens)[0, -1]
    assert (amortised_ - steered).norm() < 0.1 * (unsteered - steered).norm()
    after = found.handle.module.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all(name.startswith(found.module + ".") for name in changed)
    assert all(torch.equal(tensor, model.module.state_dict()[name]) for name, tensor in before.items())
    hooks = [h for part in found.handle.module.modules() for h in (part._forward_hooks, part._forward_pre_hooks)]
    # transformers leaves hooks of its own in a model that was once asked for all its hidden states
    assert not any(getattr(hook, "_mechscope", False) for one in hooks for hook in one.values())
    assert not any(parameter.requires_grad for parameter in found.handle.module.parameters())


def test_plans_push_whom_they_say(gpt2: ModelHandle) -> None:
    made, label = texts()
    pushes = {"contrast": (1.0, -1.0), "amplify": (1.0, 0.0), "flip": (0.0, 1.0)}
    plain = capture_texts(gpt2, made, [str(SITE)]).rows(str(SITE), "last")
    for plan, (own, rest) in pushes.items():
        found = casal(gpt2, made, label, True, 2, CasalConfig(plan, steps=200, rate=2e-2))
        after = capture_texts(found.handle, made, [str(SITE)]).rows(str(SITE), "last")
        along = (after - plain) @ found.vector / (found.vector @ found.vector)
        assert along[label].mean() == pytest.approx(own, abs=0.1), plan
        assert along[~label].mean() == pytest.approx(rest, abs=0.1), plan


def test_kept_tokens_cost_less(gpt2: ModelHandle) -> None:
    made, label = texts()
    kept, held = token_blocks(gpt2, DataSpec(context=32, tokens=1600)).split(0.4)
    config = CasalConfig("flip", 2.0, steps=150, rate=1e-2)
    free = casal(gpt2, made, label, True, 1, config)
    bound = casal(gpt2, made, label, True, 1, config, keep=kept)
    assert bound.missed["kept"] < 0.2
    loose, tight = (cost(gpt2, held, lambda _: nullcontext(), other=one.handle)["kl_mean"] for one in (free, bound))
    assert tight < 0.5 * loose


def test_a_folder_and_a_recipe(model_folder: Path, tmp_path: Path) -> None:
    recipe = read_recipe("[{step: rtn, bits: 8}]")
    base = load_model(ModelSpec(str(model_folder), recipe=recipe), device="cpu")
    made, label = texts(8)
    found = casal(base, made, label, True, 0, CasalConfig(steps=20))
    found.handle.module.save_pretrained(tmp_path / "saved")
    found.handle.tokenizer.save_pretrained(tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"), device="cpu")
    assert again.digest() == found.handle.digest() != base.digest()
    tokens = base.tokens(made[0])
    with capture(again, "resid_post.0") as one, capture(found.handle, "resid_post.0") as other:
        assert torch.equal(again.logits(tokens), found.handle.logits(tokens))
    assert torch.equal(one["resid_post.0"], other["resid_post.0"])


def test_what_is_refused(gpt2: ModelHandle, model_folder: Path) -> None:
    made, label = texts(6)
    with pytest.raises(ValueError, match="layers are 0..2"):
        casal(gpt2, made, label, True, 3)
    with pytest.raises(ValueError, match="one token of each text"):
        casal(gpt2, made, label, True, 1, position="mean")
    with pytest.raises(ValueError, match="got no such rows"):
        casal(gpt2, made, [False] * 6, True, 1)
    running = load_model(ModelSpec(str(model_folder), recipe=read_recipe("[{step: skip_layers, layers: [1]}]")))
    with pytest.raises(ValueError, match="cannot be copied"):
        casal(running, made, label, True, 1)
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"plan": "flipp"}, "flip"),
        ({"module": "up"}, "module"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"rate": 0.0}, "rate must be above 0"),
    )
    for bad, message in wrong:
        with pytest.raises(ValueError, match=message):
            CasalConfig(**bad)
