"""Models that run through transcoders and crosscoders: against the same thing done by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.hooks import capture, patch
from interp.models import ModelHandle
from interp.sites import Site
from sae.config import SaeConfig, TargetConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.splicing import put, reconstruct, splice_transcoder


def transcoder(skip: bool = False) -> Sae:
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(300, 32, generator=g), torch.randn(300, 32, generator=g)
    target = TargetConfig("transcoder", d_out=32, skip=skip)
    sae = Sae(SaeConfig(32, 40, "topk", {"k": 6}, target=target))
    initialise(sae, x, 0, y)
    if skip:
        sae.target.W_skip.data.normal_(std=0.1, generator=g)  # type: ignore[operator,union-attr]
    return sae.eval()


def crosscoder(width: int = 32, models: int = 1) -> Sae:
    g = torch.Generator().manual_seed(4)
    target = TargetConfig("crosscoder", blocks=(width, width), models=models)
    sae = Sae(SaeConfig(2 * width, 40, "topk", {"k": 6}, target=target))
    initialise(sae, torch.randn(300, 2 * width, generator=g))
    return sae.eval()


def texts(model: ModelHandle) -> Tensor:
    return torch.randint(1, model.d_vocab, (2, 7), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("view", ["hf", "bridge"])
def test_a_transcoder_takes_the_place_of_the_mlp(gpt2: ModelHandle, skip: bool, view: str) -> None:
    sae, tokens = transcoder(skip), texts(gpt2)
    keep = torch.ones(2, 7, dtype=torch.bool)
    keep[:, 0] = False
    with capture(gpt2, ["resid_mid.1", "mlp_out.1"]) as found:
        gpt2.forward(tokens)
    wanted = found["mlp_out.1"].clone()
    wanted[keep] = sae(found["resid_mid.1"][keep])[0].detach()
    with patch(gpt2, "mlp_out.1", lambda _: wanted):
        by_hand = gpt2.logits(tokens)
    with torch.no_grad(), splice_transcoder(gpt2, "resid_mid.1", "mlp_out.1", sae, keep=keep, view=view):
        found_logits = gpt2.logits(tokens, view=view)
    torch.testing.assert_close(found_logits, by_hand, rtol=1e-3, atol=1e-3)
    assert float((by_hand - gpt2.logits(tokens)).abs().max()) > 0.01


def test_it_reads_what_an_earlier_splice_left(gpt2: ModelHandle) -> None:
    sae, tokens = transcoder(), texts(gpt2)
    with (
        torch.no_grad(),
        patch(gpt2, "resid_pre.1", lambda x: 0.5 * x),
        splice_transcoder(gpt2, "resid_mid.1", "mlp_out.1", sae),
        capture(gpt2, ["resid_mid.1", "mlp_out.1"]) as found,
    ):
        gpt2.forward(tokens)
    torch.testing.assert_close(found["mlp_out.1"], sae(found["resid_mid.1"])[0].detach(), rtol=1e-4, atol=1e-4)


def test_with_its_error_nothing_changes_but_the_gradient(gpt2: ModelHandle) -> None:
    sae, tokens = transcoder(), texts(gpt2)
    clean = gpt2.logits(tokens)
    with splice_transcoder(gpt2, "resid_mid.1", "mlp_out.1", sae, error=True):
        logits = gpt2.forward(tokens, grad=True)
    assert logits is not None
    torch.testing.assert_close(logits.detach(), clean, rtol=1e-4, atol=1e-4)
    logits.square().sum().backward()
    assert sae.W_dec.grad is not None
    assert float(sae.W_dec.grad.abs().max()) > 0


def test_wrong_places_and_widths_are_refused(gpt2: ModelHandle) -> None:
    sae = transcoder()
    for site, goal, message in (
        ("mlp_out.1", "resid_mid.1", "computed after mlp_out.1, which resid_mid.1 is not"),
        ("mlp_act.1", "mlp_out.1", "has d_in=32, but mlp_act.1 has 128"),
        ("resid_mid.1", "mlp_act.1", "has d_out=32, but mlp_act.1 has 128"),
    ):
        with pytest.raises(ValueError, match=message), splice_transcoder(gpt2, site, goal, sae):
            pass
    with (
        splice_transcoder(gpt2, "resid_mid.1", "mlp_out.1", sae, keep=torch.ones(2, 3, dtype=torch.bool)),
        pytest.raises(
            ValueError, match=r"keep must be a boolean tensor \[batch pos\] \[2, 7\], got torch.bool \[2, 3\]"
        ),
    ):
        gpt2.forward(texts(gpt2))


def test_a_crosscoder_is_read_from_a_clean_pass_and_put_back_where_one_likes(gpt2: ModelHandle) -> None:
    sae, tokens = crosscoder(), texts(gpt2)
    keep = torch.ones(2, 7, dtype=torch.bool)
    keep[:, 0] = False
    sites = [Site.parse("resid_post.0"), Site.parse("resid_post.1")]
    (values,) = reconstruct([gpt2], sites, sae, tokens, keep)
    with capture(gpt2, sites) as found:
        gpt2.forward(tokens)
    rows = torch.cat([found[site] for site in sites], dim=-1)
    wanted = rows.clone()
    wanted[keep] = sae(rows[keep])[0].detach()
    for i, site in enumerate(sites):
        torch.testing.assert_close(values[site], wanted[..., 32 * i : 32 * i + 32])
    assert torch.equal(values[sites[1]][:, 0], found[sites[1]][:, 0])
    with put(gpt2, {sites[0]: values[sites[0]]}), capture(gpt2, sites) as changed:
        gpt2.forward(tokens)
    assert torch.equal(changed[sites[0]], values[sites[0]])
    assert not torch.equal(changed[sites[1]], found[sites[1]])


def test_a_crosscoder_of_two_models_gives_each_its_own_part(gpt2: ModelHandle, neox: ModelHandle) -> None:
    sae, tokens = crosscoder(models=2), texts(gpt2)
    first, second = reconstruct([gpt2, neox], ["resid_post.1"], sae, tokens)
    rows = []
    for handle in (gpt2, neox):
        with capture(handle, "resid_post.1") as found:
            handle.forward(tokens)
        rows.append(found["resid_post.1"])
    recon = sae(torch.cat(rows, dim=-1))[0].detach()
    place = Site.parse("resid_post.1")
    torch.testing.assert_close(torch.cat([first[place], second[place]], dim=-1), recon)
    with pytest.raises(ValueError, match=r"has d_in=64 numbers, but resid_post\.1 has 32"):
        reconstruct([gpt2], ["resid_post.1"], sae, tokens)
