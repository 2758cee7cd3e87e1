from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.compression.steps import ActivationNoise, QuantiseActivations, SkipLayers
from interp.compression.steps.counter import mixed, normals
from interp.compression.steps.rounding import round_tokens
from interp.hooks import capture, patch
from interp.models import ModelHandle, load_model
from interp.models.taps import BLOCKS
from interp.types import RuntimeStep

Make = Callable[..., Any]
VIEWS = ["hf", "bridge"]
IDS = torch.randint(300, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["gpt2", "neox", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def attach(family: str, make_model: Make) -> Callable[..., ModelHandle]:
    """Return a function: a random model of the family with these steps attached."""

    def build(*steps: RuntimeStep) -> ModelHandle:
        handle = make_model(family)
        for step in steps:
            step.attach(handle)
        return handle

    return build


def read(handle: ModelHandle, *sites: str, view: str = "hf", ids: Tensor = IDS, stop: bool = False) -> list[Tensor]:
    with capture(handle, sites, view=view, stop=stop) as acts:
        handle.forward(ids, view=view)
    return [acts[site] for site in sites]


# -- skipping


@pytest.mark.parametrize("view", VIEWS)
def test_a_skipped_block_passes_the_stream_on_to_the_bit(view: str, attach: Callable[..., ModelHandle]) -> None:
    handle = attach(SkipLayers((1,)))
    for stop in (False, True):
        pre, post, other, before = read(
            handle, "resid_pre.1", "resid_post.1", "resid_post.2", "resid_pre.2", view=view, stop=stop
        )
        assert torch.equal(pre, post)
        assert torch.equal(pre.signbit(), post.signbit())
        assert not torch.equal(before, other)
    (alone,) = read(handle, "resid_post.1", view=view, stop=True)
    assert torch.equal(alone, post)


def test_skipping_is_the_model_without_the_block(
    family: str, attach: Callable[..., ModelHandle], make_module: Make
) -> None:
    module = make_module(family)
    owner, _, last = BLOCKS[module.config.model_type].rpartition(".")
    blocks = getattr(module.get_submodule(owner), last)
    setattr(module.get_submodule(owner), last, nn.ModuleList([blocks[0], blocks[2]]))
    module.config.num_hidden_layers = 2
    shorter = load_model(module)
    handle = attach(SkipLayers((1,)))
    for view in VIEWS:
        assert torch.allclose(handle.logits(IDS, view=view), shorter.logits(IDS), atol=1e-5)
    assert handle.verify() < 1e-5


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_done_before_a_skipped_block_reaches_the_next(view: str, attach: Callable[..., ModelHandle]) -> None:
    handle = attach(SkipLayers((1,)))
    with (
        patch(handle, "resid_pre.1", lambda x: x * 2 + 1, view=view),
        capture(handle, ["resid_pre.1", "resid_post.1"], view=view) as acts,
    ):
        handle.forward(IDS, view=view)
    assert torch.equal(acts["resid_pre.1"], acts["resid_post.1"])
    assert not torch.equal(acts["resid_pre.1"], read(handle, "resid_pre.1", view=view)[0])


def test_gradients_run_through_a_skipped_block(attach: Callable[..., ModelHandle]) -> None:
    handle = attach(SkipLayers((1,)))
    with capture(handle, ["resid_pre.1", "resid_post.1"], grad=True) as acts:
        logits = handle.logits(IDS)
        logits[..., 5].sum().backward()
    assert acts["resid_pre.1"].grad is not None
    assert acts["resid_pre.1"].grad.abs().max() > 0
    assert torch.allclose(acts["resid_pre.1"].grad, acts["resid_post.1"].grad)


def test_threads_that_share_a_handle_skip_apart(attach: Callable[..., ModelHandle]) -> None:
    handle = attach(SkipLayers((0, 2)))
    expected = [handle.logits(IDS[i : i + 1]) for i in range(3)]
    found: dict[int, Tensor] = {}
    work = [threading.Thread(target=lambda i=i: found.update({i: handle.logits(IDS[i : i + 1])})) for i in range(3)]
    for one in work:
        one.start()
    for one in work:
        one.join()
    assert all(torch.equal(found[i], expected[i]) for i in range(3))


def test_skipping_everything_leaves_the_embedding(attach: Callable[..., ModelHandle]) -> None:
    handle = attach(SkipLayers((2, 0, 1)))
    first, last = read(handle, "resid_pre.0", "resid_post.2")
    assert torch.equal(first, last)


def test_layers_beyond_the_model(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match=r"skip_layers cannot skip layer 3: the layers of GPT2LMHeadModel are 0..2\."):
        SkipLayers((1, 3)).attach(gpt2)
    assert not gpt2._attached


# -- rounding


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
def test_activations_are_rounded_for_each_token(mode: Any, attach: Callable[..., ModelHandle]) -> None:
    plain, handle = attach(), attach(QuantiseActivations(4, ("resid_post.0",), mode))
    (before,), (after,) = read(plain, "resid_post.0"), read(handle, "resid_post.0")
    assert torch.equal(after, round_tokens(before, 4, mode))
    for row, token in zip(after.flatten(0, 1), before.flatten(0, 1), strict=True):
        assert len(row.unique()) <= 16
        assert float((row - token).abs().max()) <= float(token.max() - token.min()) / 6
    assert torch.equal(read(handle, "resid_post.0", ids=IDS[:1])[0], after[:1])


def test_heads_of_a_token_share_a_scale(attach: Callable[..., ModelHandle]) -> None:
    plain, handle = attach(), attach(QuantiseActivations(3, ("v.1", "k.*")))
    (before,), (after,) = read(plain, "k.0"), read(handle, "k.0")
    assert torch.equal(after, round_tokens(before.flatten(2), 3, "symmetric").reshape(before.shape))
    assert torch.equal(read(handle, "v.0")[0], read(plain, "v.0")[0])


def test_rounded_activations_agree_in_both_views(attach: Callable[..., ModelHandle]) -> None:
    assert attach(QuantiseActivations(8)).verify() < 1e-4


def test_gradients_pass_rounding_straight_through(attach: Callable[..., ModelHandle]) -> None:
    grads = []
    for handle in (attach(), attach(QuantiseActivations(8, ("resid_post.2",)))):
        with capture(handle, "resid_post.1", grad=True) as acts:
            handle.logits(IDS)[..., 5].sum().backward()
        grads.append(acts["resid_post.1"].grad)
    assert grads[0] is not None
    assert grads[1] is not None
    assert torch.cosine_similarity(grads[0].flatten(), grads[1].flatten(), dim=0) > 0.99


@pytest.mark.parametrize("step", [QuantiseActivations, ActivationNoise])
def test_sites_that_are_not_there(step: Any, gpt2: ModelHandle) -> None:
    for sites, message in (
        (("resid_pots.*",), "did you mean"),
        (("mlp_out.7",), "mlp_out.7 lies beyond this model"),
        (("resid_post.9*",), "the model has no such site"),
        (("pattern.1",), "it exists in the bridge only"),
        ((), "needs at least one site"),
    ):
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            step(sites=sites).attach(gpt2)
    assert not gpt2._attached


# -- noise


def test_noise_has_its_size_and_both_views_agree(attach: Callable[..., ModelHandle]) -> None:
    plain, handle = attach(), attach(ActivationNoise(0.2, ("resid_post.0",)))
    (before,), (after,) = read(plain, "resid_post.0"), read(handle, "resid_post.0")
    relative = ((after - before).norm(dim=-1) / before.norm(dim=-1)).flatten()
    assert float(relative.mean()) == pytest.approx(0.2, rel=0.05)
    assert relative.min() > 0.1
    assert relative.max() < 0.35
    assert handle.verify() < 1e-4


def test_noise_is_a_function_of_seed_site_and_text(attach: Callable[..., ModelHandle]) -> None:
    plain, handle = attach(), attach(ActivationNoise(0.1))
    (clean,) = read(plain, "resid_post.0")
    (noisy,) = read(handle, "resid_post.0")
    assert torch.equal(read(handle, "resid_post.0")[0], noisy)  # the same batch again
    for ids, part in ((IDS[2:], noisy[2:]), (IDS.flip(0), noisy.flip(0)), (IDS[:, :7], noisy[:, :7])):
        assert torch.allclose(read(handle, "resid_post.0", ids=ids)[0], part, atol=1e-5)
    again = read(attach(ActivationNoise(0.1, seed=1)), "resid_post.0")[0]
    assert not torch.allclose(again - clean, noisy - clean, atol=1e-2)
    # other tokens before it: other noise; another site: other noise
    changed = IDS.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 300
    with capture(plain, "resid_post.0") as a, capture(handle, "resid_post.0") as b:
        plain.forward(changed), handle.forward(changed)
    noise, other = noisy - clean, b["resid_post.0"] - a["resid_post.0"]
    assert torch.allclose(noise[:, :3], other[:, :3], atol=1e-5)
    unit, moved = nn.functional.normalize(noise[:, 4:], dim=-1), nn.functional.normalize(other[:, 4:], dim=-1)
    assert float((unit * moved).sum(-1).abs().mean()) < 0.3
    assert len({tuple(row) for row in noise.flatten(0, 1).round(decimals=4).tolist()}) == IDS.numel()


def test_noise_past_the_handle_has_no_text_to_go_by(attach: Callable[..., ModelHandle]) -> None:
    handle = attach(ActivationNoise(0.1))
    with torch.no_grad():
        once, again = (handle.module(input_ids=IDS, use_cache=False).logits for _ in range(2))
    assert torch.equal(once, again)
    assert handle.reading is None


def test_counted_normals_are_normal() -> None:
    found = normals(torch.arange(2000), 65)
    assert found.shape == (2000, 65)
    assert found.dtype == torch.float64
    assert abs(float(found.mean())) < 0.01
    assert float(found.std()) == pytest.approx(1, abs=0.01)
    assert float((found**4).mean()) == pytest.approx(3, abs=0.1)
    assert float(torch.corrcoef(found.T).fill_diagonal_(0).abs().max()) < 0.12  # 5 / sqrt(2000)
    assert float(torch.corrcoef(found[:60]).fill_diagonal_(0).abs().max()) < 0.65
    assert torch.equal(normals(torch.arange(5, 7), 65), found[5:7])
    assert len(mixed(torch.arange(-50_000, 50_000)).unique()) == 100_000


def test_mixed_is_splitmix64() -> None:
    """The generator's first outputs for the seed 1234567, as published with it."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + i * golden) % 2**64 for i in range(3)]
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
    assert [value % 2**64 for value in mixed(signed).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
