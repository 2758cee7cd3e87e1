"""AtP*: the QK fix against patterns formed anew cell by cell, GradDrop against forwards with a layer detached."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.attribution.estimates import atp_star, attribution_patching
from interp.attribution.estimates.attention import Attention, key_effects, query_effects
from interp.hooks import capture, patch
from interp.models import ModelHandle
from interp.sites import Site
from interp.tasks import LogitDiff
from tests.interp.attribution.estimate_models import double_model, random_pairs

PAIRS = random_pairs(n=2, length=5)
METRIC = LogitDiff(PAIRS.correct, PAIRS.wrong)
ROWS = torch.arange(2)


def read(handle: ModelHandle, tokens: Tensor, site: Site, view: str = "hf") -> Tensor:
    with capture(handle, site, view=view) as found:
        handle.forward(tokens, view=view)
    return found[site]


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_qk_fix_forms_the_pattern_anew(family: str, direction: str) -> None:
    handle, layer = double_model(family), 1
    runs = (PAIRS.corrupt, PAIRS.clean) if direction == "denoising" else (PAIRS.clean, PAIRS.corrupt)
    sign = 1 if direction == "denoising" else -1
    pattern = Site(layer, "pattern")
    with capture(handle, pattern, view="bridge", grad=True) as found:
        METRIC(handle.logits(runs[0], view="bridge"), ROWS).sum().backward()
    gradient, before = found[pattern].grad, found[pattern].detach()
    assert gradient is not None
    star = atp_star(
        handle, PAIRS, ["q", "k"], parts=("pos", "head"), direction=direction, grad_drop=False, check=0, batch=1
    )
    for kind in ("q", "k"):
        site = Site(layer, kind)
        other = read(handle, runs[1], site, "bridge")
        scores = star.map(kind)[layer]
        for pos, head in ((1, 0), (3, 1), (4, 1)):

            def exchange(x: Tensor, pos: int = pos, head: int = head, other: Tensor = other) -> Tensor:
                x[:, pos, head] = other[:, pos, head]
                return x

            with patch(handle, site, exchange, view="bridge"):
                after = read(handle, runs[0], pattern, "bridge")
            slow = sign * ((after - before) * gradient).sum((1, 2, 3)).mean()
            assert scores[pos, head] == pytest.approx(float(slow), rel=1e-4, abs=1e-6)
            assert scores[pos, head] != 0 or pos == 0


def test_keys_without_positions_are_exchanged_together() -> None:
    handle, site = double_model("gpt2"), Site(2, "k")
    pattern = Site(2, "pattern")
    with capture(handle, pattern, view="bridge", grad=True) as found:
        METRIC(handle.logits(PAIRS.corrupt, view="bridge"), ROWS).sum().backward()
    gradient = found[pattern].grad
    assert gradient is not None
    other = read(handle, PAIRS.clean, site, "bridge")
    star = atp_star(handle, PAIRS, [site], parts=("head",), grad_drop=False, check=0)
    for head in range(4):

        def exchange(x: Tensor, head: int = head) -> Tensor:
            x[:, :, head] = other[:, :, head]
            return x

        with patch(handle, site, exchange, view="bridge"):
            after = read(handle, PAIRS.corrupt, pattern, "bridge")
        slow = ((after - found[pattern].detach()) * gradient).sum((1, 2, 3)).mean()
        assert star.map("k")[2, head] == pytest.approx(float(slow), rel=1e-8)


def attention(seed: int, spread: float, kv_heads: int = 2) -> Attention:
    g = torch.Generator().manual_seed(seed)
    query, out = (torch.randn(1, 4, 5, 3, generator=g, dtype=torch.float64) for _ in range(2))
    key, value = (torch.randn(1, kv_heads, 5, 3, generator=g, dtype=torch.float64) for _ in range(2))
    bias = torch.zeros(5, 5, dtype=torch.float64).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    out = out.requires_grad_()
    out.grad = torch.randn(1, 4, 5, 3, generator=g, dtype=torch.float64)
    return Attention(spread * query, key, value, bias, 1.0, out)


@pytest.mark.parametrize("spread", [1.0, 30.0, 300.0])
def test_closed_forms_hold_where_attention_is_saturated(spread: float) -> None:
    base, other = attention(0, spread), attention(1, spread)
    assert base.out.grad is not None
    gradient = base.out.grad @ base.value.repeat_interleave(2, 1).transpose(-1, -2)

    def pattern(query: Tensor, key: Tensor) -> Tensor:
        return (query @ key.repeat_interleave(2, 1).transpose(-1, -2) + base.bias).softmax(-1)

    before = pattern(base.query, base.key)
    queries, keys = query_effects(base, other), key_effects(base, other, 2, True)
    for pos in range(5):
        query, key = base.query.clone(), base.key.clone()
        query[:, :, pos] = other.query[:, :, pos]
        moved = (pattern(query, base.key) - before) * gradient
        torch.testing.assert_close(queries[..., pos], moved.sum((-1, -2)))
        for head in range(2):
            key = base.key.clone()
            key[:, head, pos] = other.key[:, head, pos]
            moved = (pattern(base.query, key) - before) * gradient
            torch.testing.assert_close(keys[0, head, pos], moved.sum(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_grad_drop_is_the_mean_over_forwards_with_a_layer_detached(family: str) -> None:
    handle = double_model(family)
    sites = [Site(layer, kind) for layer in (0, 1) for kind in ("resid_pre", "head_out", "mlp_out")]
    difference = {site: read(handle, PAIRS.clean, site) - read(handle, PAIRS.corrupt, site) for site in sites}
    totals = {site: torch.zeros(2, 5, dtype=torch.float64) for site in sites}
    for dropped in range(3):
        with (
            capture(handle, sites, grad=True) as found,
            patch(handle, Site(dropped, "attn_out"), lambda x: x.detach()),
            patch(handle, Site(dropped, "mlp_out"), lambda x: x.detach()),
        ):
            METRIC(handle.logits(PAIRS.corrupt), ROWS).sum().backward()
        for site in sites:
            grad = found[site].grad
            if grad is not None:
                totals[site] += (grad * difference[site]).flatten(2).sum(-1).abs()
    star = atp_star(handle, PAIRS, sites, signed=False, check=0)
    signed = atp_star(handle, PAIRS, sites, check=0)
    plain = attribution_patching(handle, PAIRS, sites, check=0)
    for site in sites:
        slow = totals[site] / (3 if site.kind == "resid_pre" else 2)
        np.testing.assert_allclose(star.map(site.kind)[site.layer], slow.mean(0).numpy(), rtol=1e-5, atol=1e-9)
        per_prompt = {  # the magnitude with the sign of the plain estimate, prompt by prompt
            tuple(row["per_prompt"]) for row in signed.nodes.to_pylist() if Site(row["layer"], row["kind"]) == site
        }
        signs = np.array([r["per_prompt"] for r in plain.of(site.kind).to_pylist() if r["layer"] == site.layer])
        wanted = np.sign(signs) * slow.numpy().T
        np.testing.assert_allclose(sorted(per_prompt), sorted({tuple(row) for row in wanted}), rtol=1e-4, atol=1e-7)


def test_without_grad_drop_other_sites_are_attribution_patching(model: ModelHandle) -> None:
    star = atp_star(model, PAIRS, ["v", "mlp_out"], grad_drop=False, check=0)
    plain = attribution_patching(model, PAIRS, ["v", "mlp_out"], check=0)
    np.testing.assert_allclose(star.nodes["score"].to_numpy(), plain.nodes["score"].to_numpy(), atol=1e-6)


def test_bad_input_is_refused(gpt2: ModelHandle) -> None:
    with pytest.raises(ValueError, match="no score for a pattern"):
        atp_star(gpt2, PAIRS, "pattern")
    with pytest.raises(ValueError, match="this model has one"):
        atp_star(double_model("gpt2", n_layer=1), PAIRS, "q")
    with pytest.raises(ValueError, match="sdpa"):
        atp_star(double_model("gpt2", attn_implementation="eager"), PAIRS, "q")
