"""Means over tokens against one text at a time; the probe and the balanced draw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.studies.pooled import balanced, fit_probe, pool
from interp.hooks import capture
from interp.models import ModelHandle
from sae.config import SaeConfig, TargetConfig
from sae.initialise import initialise
from sae.model import Sae

TEXTS = ["the cat sat", "the king and the queen of the land went to the sea; the sea was calm.", "log", "a dog " * 40]


def fitted(model: ModelHandle, rule: str, normalise: str, site: str) -> Sae:
    sae = Sae(SaeConfig(model.width(site), 48, rule, {"k": 6}, normalise))  # type: ignore[arg-type]
    with capture(model, site) as taken:
        model.forward(torch.randint(1, 300, (8, 30), generator=torch.Generator().manual_seed(3)))
    initialise(sae, taken[site].flatten(2).flatten(0, 1), seed=9)
    return sae.eval()


@pytest.mark.parametrize("rule", ["topk", "abs_topk", "batch_topk"])
@pytest.mark.parametrize("normalise", ["scalar", "layer", "none"])
def test_pooling_is_the_mean_over_tokens(gpt2: ModelHandle, rule: str, normalise: str) -> None:
    sae = fitted(gpt2, rule, normalise, "resid_post.1")
    found = pool(gpt2, "resid_post.1", sae, TEXTS, context=20, batch=3)
    assert found.cut == 1 + (len(gpt2.tokens(TEXTS[1])[0]) > 20)
    for row, text in enumerate(TEXTS):
        with capture(gpt2, "resid_post.1") as taken:
            gpt2.forward(gpt2.tokens(text)[:, :20])
        x = taken["resid_post.1"][0, 1:]
        written = torch.zeros(48)
        for one in x:
            normalised, scale = sae.normaliser.into(one[None])
            written += sae.encode_normalised(normalised).dense()[0].detach() * scale.factor.reshape(()) / len(x)
        assert torch.allclose(found.raw[row], x.mean(0), atol=1e-4)
        assert torch.allclose(found.codes[row], written, atol=1e-3)


@pytest.mark.parametrize("normalise", ["scalar", "layer"])
def test_ablation_of_means_is_the_mean_of_ablated_rows(gpt2: ModelHandle, normalise: str) -> None:
    from sae.steering import steer

    sae = fitted(gpt2, "topk", normalise, "resid_post.1")
    found = pool(gpt2, "resid_post.1", sae, TEXTS[1:2])
    latent = int(found.codes[0].abs().argmax())
    with steer(gpt2, "resid_post.1", sae, latent, "ablate"), capture(gpt2, "resid_post.1") as taken:
        gpt2.forward(gpt2.tokens(TEXTS[1]))
    assert torch.allclose(found.without(torch.tensor([latent]))[0], taken["resid_post.1"][0, 1:].mean(0), atol=1e-4)
    assert not torch.allclose(found.raw[0], taken["resid_post.1"][0, 1:].mean(0), atol=1e-2)


def test_heads_and_batches(model: ModelHandle) -> None:
    sae = fitted(model, "topk", "scalar", "head_out.1")
    one, many = (pool(model, "head_out.1", sae, TEXTS, context=30, batch=batch) for batch in (1, 4))
    assert torch.allclose(one.raw, many.raw, atol=1e-4)
    assert torch.allclose(one.codes, many.codes, atol=1e-3)


def test_refusals(gpt2: ModelHandle) -> None:
    sae = fitted(gpt2, "topk", "scalar", "resid_post.1")
    with pytest.raises(ValueError, match="Text 1 has no token to average"):
        pool(gpt2, "resid_post.1", sae, ["cat", ""])
    with pytest.raises(ValueError, match="does not reconstruct mlp_act.1, which has 128"):
        pool(gpt2, "mlp_act.1", sae, TEXTS)
    other = Sae(SaeConfig(32, 48, "topk", {"k": 4}, target=TargetConfig("transcoder"))).eval()
    with pytest.raises(ValueError, match=r"The dictionary \(transcoder, d_in=32\) does not"):
        pool(gpt2, "resid_post.1", other, TEXTS)


def planted(n: int = 200) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(4)
    y = torch.rand(n, generator=g) < 0.5
    return torch.randn(n, 6, generator=g) + 6 * y[:, None] * torch.eye(6)[2], y


def test_a_probe_finds_the_direction_in_any_unit() -> None:
    x, y = planted()
    probe = fit_probe(x, y)
    assert probe.accuracy(x, y) > 0.98
    assert float(probe.w[2] / probe.w.norm()) > 0.9
    other = fit_probe(1000 * x + 7, y)
    assert torch.allclose(other.w * 1000, probe.w, rtol=1e-2, atol=1e-4)
    assert other.accuracy(1000 * x + 7, y) == pytest.approx(probe.accuracy(x, y), abs=0.011)
    with pytest.raises(ValueError, match="rows of both classes"):
        fit_probe(x, torch.ones(200, dtype=torch.bool))


def test_balanced() -> None:
    cells = torch.tensor([0, 0, 0, 1, 1, 2, 0, 2, 1])
    rows = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 0]).bool()
    chosen = balanced(cells, rows, seed=1)
    assert cells[chosen].bincount().tolist() == [2, 2, 2]
    assert rows[chosen].all()
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    with pytest.raises(ValueError, match=r"got \[4, 2, 0\]"):
        balanced(cells, rows & (cells != 2))


def test_the_last_token_alone(gpt2: ModelHandle) -> None:
    sae = fitted(gpt2, "topk", "layer", "resid_post.1")
    found = pool(gpt2, "resid_post.1", sae, TEXTS, context=20, batch=3, positions="last")
    for row, text in enumerate(TEXTS):
        with capture(gpt2, "resid_post.1") as taken:
            gpt2.forward(gpt2.tokens(text)[:, :20])
        x = taken["resid_post.1"][0, -1:]
        normalised, scale = sae.normaliser.into(x)
        written = sae.encode_normalised(normalised).dense()[0].detach() * scale.factor.reshape(())
        assert torch.allclose(found.raw[row], x[0], atol=1e-4)
        assert torch.allclose(found.codes[row], written, atol=1e-3)
    assert found.active == 6
    with pytest.raises(ValueError, match="Unknown positions 'first'"):
        pool(gpt2, "resid_post.1", sae, TEXTS, positions="first")
