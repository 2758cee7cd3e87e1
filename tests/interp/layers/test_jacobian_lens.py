"""The Jacobian lens against autograd from the definition, against transformer-lens, and where it is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp.data import Blocks
from interp.hooks import capture, patch
from interp.layers.jacobian_lens import fit_jacobian_lens, mean_jacobians
from interp.layers.lens import lens_logits, stream_site
from interp.layers.lens_config import JacobianLensConfig
from interp.layers.lens_runs import lens_run, load_lens
from interp.models import ModelHandle, load_model
from interp.models.compiled.blank import blank, write_mlp


def some_tokens(count: int, length: int) -> Tensor:
    return torch.randint(1, 300, (count, length), generator=torch.Generator().manual_seed(3))


def as_blocks(tokens: Tensor) -> Blocks:
    return Blocks(tokens, torch.ones_like(tokens, dtype=torch.bool), 1, True, None)


def by_definition(handle: ModelHandle, tokens: Tensor, layer: int, skip: int) -> Tensor:
    """Return 1/|V| sum over t in V, t' in V, t' >= t of d h_last,t' / d h_layer,t, from the whole Jacobian."""
    site = stream_site(layer)
    with capture(handle, site) as acts:
        handle.forward(tokens[None])
    start = acts[site][0].clone()

    def last(stream: Tensor) -> Tensor:
        final = stream_site(handle.n_layers - 1)
        with patch(handle, site, lambda _: stream[None]), capture(handle, final, grad=True) as found:
            handle.forward(tokens[None], grad=True)
        return found[final][0]

    whole = torch.autograd.functional.jacobian(last, start)  # [t' d t d]
    assert isinstance(whole, Tensor)
    valid = range(skip, len(tokens) - 1)
    total = torch.zeros(handle.d_model, handle.d_model)
    for t in valid:
        for later in valid:
            if later >= t:
                total += whole[later, :, t, :]
    return total / len(valid)


def test_it_is_the_mean_jacobian(model: ModelHandle) -> None:
    tokens = some_tokens(1, 4)[0]
    found = mean_jacobians(model, tokens, skip=1, dims=5)
    for layer in (-1, 1):
        assert torch.allclose(found[layer + 1].float(), by_definition(model, tokens, layer, 1), atol=1e-4)


def test_how_many_dimensions_go_together_changes_nothing(gpt2: ModelHandle) -> None:
    tokens = some_tokens(1, 7)[0]
    one, many = (mean_jacobians(gpt2, tokens, skip=1, dims=dims) for dims in (1, 32))
    assert torch.allclose(one, many, atol=1e-5)


def test_it_agrees_with_transformer_lens(model: ModelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.tools.analysis import JacobianLens

    tokens = some_tokens(2, 9)
    prompts = {str(i): row[None] for i, row in enumerate(tokens)}
    # Its fit reads texts with the tokenizer of the bridge; here each text stands for its tokens.
    monkeypatch.setattr(type(model.bridge), "to_tokens", lambda _, prompt: prompts[prompt])
    peer = JacobianLens.fit(
        model.bridge, list(prompts), corpus="random", skip_first_positions=2, show_progress=False, dim_batch=7
    )
    config = JacobianLensConfig(context=9, skip=2)
    lens = fit_jacobian_lens(model, as_blocks(tokens), config)
    eye = torch.eye(model.d_model)
    for layer in (0, 1):
        assert torch.allclose(lens.delta[layer + 1] + eye, peer.jacobians[layer], atol=1e-4)
    read = peer.readout(model.bridge, tokens[:1], return_full_logits=True)
    assert read.lens_logits is not None
    with capture(model, "resid_post.1") as acts:
        model.forward(tokens[:1])
    assert torch.allclose(lens.logits(model, 1, acts["resid_post.1"])[0], read.lens_logits[1], atol=1e-3)


def test_it_is_exact_for_a_linear_model_and_is_kept(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 1, "n_embd": 6, "n_inner": 6, "vocab_size": 300, "n_positions": 16}
    module = blank(sizes | {"activation_function": "linear", "bos_token_id": 0})
    module.transformer.wte.weight.copy_(torch.randn(300, 6, generator=g))
    module.lm_head.weight.copy_(torch.randn(300, 6, generator=g))
    change = torch.randn(6, 6, generator=g, dtype=torch.float64)
    write_mlp(module, 1, torch.eye(6, dtype=torch.float64), change)
    handle = load_model(module.float())
    blocks, config = as_blocks(some_tokens(3, 8)), JacobianLensConfig(sequences=2, context=8, skip=1)
    seen: list[tuple[int, int]] = []
    with lens_run(handle, blocks, config, tmp_path) as run:
        lens = fit_jacobian_lens(handle, blocks, config, run, lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]
    assert torch.allclose(lens.delta[1], change.T.float(), atol=1e-5)
    with capture(handle, "resid_post.0") as acts:
        logits = handle.logits(blocks.tokens)
    assert torch.allclose(lens.logits(handle, 0, acts["resid_post.0"]), logits, atol=1e-4)
    assert not torch.allclose(lens_logits(handle, acts["resid_post.0"]), logits, atol=1.0)
    found = load_lens(run, handle)
    assert torch.equal(found.delta, lens.delta)
    assert found.name == "jacobian"


def test_a_text_that_is_too_short_is_refused(gpt2: ModelHandle) -> None:
    blocks = as_blocks(some_tokens(2, 9))
    with pytest.raises(ValueError, match="needs blocks of skip \\+ 2 = 18 real tokens or more, got 2 blocks of 9"):
        fit_jacobian_lens(gpt2, blocks)
    padded = Blocks(blocks.tokens, torch.arange(9).expand(2, 9) < 5, 1, True, None)
    with pytest.raises(ValueError, match="got 0 blocks"):
        fit_jacobian_lens(gpt2, padded, JacobianLensConfig(context=9, skip=2))
