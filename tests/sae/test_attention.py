"""Heads and sources of attention dictionaries: sums are exact, and what they claim is what an intervention finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.hooks import capture, patch
from interp.models import ModelHandle
from interp.sites import Site
from sae.attention import (
    attribute_sources,
    encoder,
    head_shares,
    held_norm,
    output_weights,
    stream_directions,
    value_weights,
)
from sae.config import SaeConfig
from sae.initialise import initialise
from sae.model import Sae
from sae.tracing import Node, trace

SITE = "head_out.1"
LATENTS = [0, 7, 30]
NORMALISE = ["scalar", "layer", "none"]


def dictionary(width: int = 32, normalise: str = "scalar", seed: int = 0, rule: str = "topk") -> Sae:
    sae = Sae(SaeConfig(width, 40, rule, {"k": 5} if rule == "topk" else {}, normalise))  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(seed + 50)
    initialise(sae, torch.randn(200, width, generator=g) + 0.3, seed)
    sae.b_enc.data.normal_(generator=g)
    return sae.eval()


def texts(model: ModelHandle, n: int = 2, length: int = 9) -> Tensor:
    return torch.randint(1, model.d_vocab, (n, length), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("normalise", NORMALISE)
def test_sources_and_biases_add_up_to_the_preactivation(model: ModelHandle, normalise: str) -> None:
    sae, tokens = dictionary(normalise=normalise), texts(model)
    for position in (0, 4, -1):
        found = attribute_sources(model, SITE, sae, tokens, LATENTS, position)
        assert found.contributions.shape == (2, 3, 9, 4)
        assert found.error < 1e-5 * max(1.0, float(found.pre.abs().max()))
        at = position % 9
        assert torch.count_nonzero(found.contributions[:, :, at + 1 :]) == 0, "nothing comes from later"
        with capture(model, SITE) as taken:
            model.forward(tokens)
        rows, _ = sae.normaliser.into(taken[SITE][:, at].flatten(1))
        torch.testing.assert_close(found.pre, sae.pre(rows)[:, LATENTS], rtol=1e-4, atol=1e-4)


def test_a_source_is_what_is_lost_when_its_value_is_taken_away(model: ModelHandle) -> None:
    sae, tokens = dictionary(), texts(model)
    found = attribute_sources(model, SITE, sae, tokens, LATENTS, -1)
    groups = model.n_heads // model.n_kv_heads

    def silence(value: Tensor) -> Tensor:
        value[:, 3, 1] = 0  # one key-value head at one position
        return value

    with patch(model, "v.1", silence), capture(model, SITE) as taken:
        model.forward(tokens)
    rows, _ = sae.normaliser.into(taken[SITE][:, -1].flatten(1))
    lost = found.pre - sae.pre(rows)[:, LATENTS]
    wanted = found.contributions[:, :, 3, groups : 2 * groups].sum(-1)
    torch.testing.assert_close(lost, wanted, rtol=1e-3, atol=1e-4)


def test_head_shares_are_the_lengths_of_an_atoms_parts() -> None:
    sae = dictionary()
    sae.W_dec.data[3] = 0
    sae.W_dec.data[3, 8:16] = 1.0
    shares = head_shares(sae, 4)
    torch.testing.assert_close(shares.sum(1), torch.ones(40))
    assert torch.equal(shares[3], torch.tensor([0.0, 1.0, 0.0, 0.0]))
    atom = sae.W_dec.detach()[5]
    lengths = [float(atom[8 * h : 8 * h + 8].norm()) for h in range(4)]
    assert shares[5].tolist() == pytest.approx([length / sum(lengths) for length in lengths], rel=1e-5)
    assert torch.allclose(head_shares(_scaled(sae, 7.0), 4)[5], shares[5], atol=1e-6), "length does not count"
    with pytest.raises(ValueError, match="width 32 do not fall into 5 equal heads"):
        head_shares(sae, 5)


def _scaled(sae: Sae, factor: float) -> Sae:
    sae.W_dec.data *= factor
    return sae


def test_weights_make_values_and_outputs(model: ModelHandle) -> None:
    tokens = texts(model)
    with capture(model, ["resid_pre.1", "v.1", "head_out.1", "attn_out.1"]) as found:
        model.forward(tokens)
    gain, offset, centred, sigma = held_norm(model, 1, found["resid_pre.1"][0])
    stream = found["resid_pre.1"][0]
    stream = stream - stream.mean(-1, keepdim=True) if centred else stream
    normal = stream / sigma[:, None] * gain + offset
    weight, bias = value_weights(model, 1)
    values = torch.einsum("sd,dhe->she", normal, weight) + bias
    groups = model.n_heads // model.n_kv_heads
    torch.testing.assert_close(values[:, ::groups], found["v.1"][0], rtol=1e-4, atol=1e-4)
    out = found["head_out.1"][0].flatten(1) @ output_weights(model, 1)
    rest = found["attn_out.1"][0] - out
    torch.testing.assert_close(rest, rest[:1].expand_as(rest), rtol=1e-3, atol=1e-3, msg="only the bias is left")


@pytest.mark.parametrize("normalise", NORMALISE)
def test_the_stream_adds_up_too_and_only_with_the_scale_of_the_norm(model: ModelHandle, normalise: str) -> None:
    sae, tokens = dictionary(normalise=normalise), texts(model, 1)
    with capture(model, [SITE, "pattern.1", "resid_pre.1"], view="bridge") as found:
        model.forward(tokens, view="bridge")
    row, stream = found[SITE][0, -1].flatten()[None], found["resid_pre.1"][0]
    reading, constant = encoder(sae, row, LATENTS)
    directions, more = stream_directions(model, 1, reading[0], found["pattern.1"][0, :, -1], stream)
    parts = (directions * stream).sum(-1)
    wanted = sae.pre(sae.normaliser.into(row)[0])[0, LATENTS]
    total = parts.sum(-1) + more + constant[0]
    torch.testing.assert_close(total, wanted, rtol=1e-4, atol=1e-4)
    sigma = held_norm(model, 1, stream)[3]
    without = (parts * sigma).sum(-1) + more + constant[0]  # what the published code computes
    assert float((without - wanted).abs().max()) > 100 * float((total - wanted).abs().max())
    assert float((without - wanted).abs().max()) > 0.05


@pytest.mark.parametrize("normalise", NORMALISE)
def test_a_trace_adds_up_at_every_node(model: ModelHandle, normalise: str) -> None:
    tokens = texts(model, 1)[0]
    saes: dict[Site | str, Sae] = {
        "head_out.1": dictionary(normalise=normalise, seed=1),
        "resid_post.0": dictionary(normalise=normalise, seed=2),
        "head_out.0": dictionary(normalise=normalise, seed=3),
    }
    root = trace(model, tokens, saes, "head_out.1", 7, -1, depth=3, top=None)
    places = [Site(1, "head_out"), Site(1, "resid_pre"), Site(0, "head_out"), Site(0, "resid_pre")]

    def check(node: Node, level: int) -> None:
        assert node.site == places[level]
        if node.latent is None:
            return
        given = sum(child.contribution for child in node.children)
        assert given + node.rest == pytest.approx(node.pre, abs=1e-4)
        for child in node.children[:4]:
            assert child.position <= node.position
            check(child, level + 1)

    check(root, 0)
    assert root.children[0].children[0].children[0].latent is None
    assert root.contribution == root.pre
    # The first step by hand: value times what the decoder row does through the frozen attention.
    first = root.children[0]
    stream = saes["resid_post.0"]
    with capture(model, ["resid_pre.1", "head_out.1", "pattern.1"], view="bridge") as found:
        model.forward(tokens[None], view="bridge")
    reading, _ = encoder(saes["head_out.1"], found["head_out.1"][0, -1].flatten()[None], [7])
    directions, _ = stream_directions(model, 1, reading[0], found["pattern.1"][0, :, -1], found["resid_pre.1"][0])
    rows, scale = stream.normaliser.into(found["resid_pre.1"][0])
    value = stream.encode_normalised(rows).dense()[first.position, first.latent]
    factor = scale.factor.expand(9, 1)[first.position]
    by_hand = value * factor * (directions[0, first.position] @ stream.W_dec[first.latent])
    assert float(by_hand.detach()) == pytest.approx(first.contribution, rel=1e-3, abs=1e-5)


def test_a_perfect_dictionary_of_the_stream_leaves_only_constants(gpt2: ModelHandle) -> None:
    """With x_hat = x the contributions and b_dec are the whole stream."""
    tokens = texts(gpt2, 1)[0]
    heads = dictionary(seed=1)
    perfect = Sae(SaeConfig(32, 64, "relu", {"l1": 0.0}, "none")).eval()
    with torch.no_grad():
        eye = torch.eye(32)
        for parameter in (perfect.W_enc, perfect.W_dec):
            parameter.copy_(torch.cat([eye, -eye]))
    root = trace(gpt2, tokens, {"head_out.1": heads, "resid_pre.1": perfect}, "head_out.1", 7, -1, depth=1, top=None)
    with capture(gpt2, ["resid_pre.1", "head_out.1", "pattern.1"], view="bridge") as found:
        gpt2.forward(tokens[None], view="bridge")
    reading, constant = encoder(heads, found["head_out.1"][0, -1].flatten()[None], [7])
    _, more = stream_directions(gpt2, 1, reading[0], found["pattern.1"][0, :, -1], found["resid_pre.1"][0])
    assert root.rest == pytest.approx(float(constant[0, 0] + more[0]), abs=1e-4)


def test_without_a_dictionary_of_the_stream_the_sources_are_the_leaves(gpt2: ModelHandle) -> None:
    tokens = texts(gpt2, 1)[0]
    root = trace(gpt2, tokens, {"head_out.1": dictionary()}, "head_out.1", 7, 5, depth=1, top=3)
    assert len(root.children) == 3
    assert all(child.latent is None and child.position <= 5 for child in root.children)
    sizes = [abs(child.contribution) for child in root.children]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "attn_out.1"}, "is for dictionaries at head_out.1, got attn_out.1"),
        ({"latents": [40]}, r"Latents must lie in 0..d_sae-1=39, got 40"),
        ({"position": 9}, r"position must lie in 0..8, got 9"),
        ({"sae": dictionary(width=24)}, "reads d_in=24 numbers, but head_out.1 has 32"),
    ],
)
def test_what_does_not_fit_is_refused(gpt2: ModelHandle, options: dict, message: str) -> None:
    given = {"site": SITE, "sae": dictionary(), "latents": [0], "position": 2} | options
    with pytest.raises(ValueError, match=message):
        attribute_sources(gpt2, given["site"], given["sae"], texts(gpt2), given["latents"], given["position"])


def test_a_trace_from_nowhere_is_refused(gpt2: ModelHandle) -> None:
    tokens = texts(gpt2, 1)[0]
    with pytest.raises(ValueError, match="There is no dictionary at head_out.0; there are head_out.1"):
        trace(gpt2, tokens, {"head_out.1": dictionary()}, "head_out.0", 0, 0)
    with pytest.raises(ValueError, match="traced at head_out, resid_pre and resid_post below the last, got mlp_out.1"):
        trace(gpt2, tokens, {"mlp_out.1": dictionary()}, "mlp_out.1", 0, 0)
    with pytest.raises(ValueError, match="depth and top must be 1 or more, got 0 and 5"):
        trace(gpt2, tokens, {SITE: dictionary()}, SITE, 0, 0, depth=0)
