"""Lens measures by slow loops, at the last layer, on depths made by hand; the family leaves position 0 apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from interp.data import Blocks
from interp.hooks import capture
from interp.layers.families.lens import LensFamily
from interp.layers.lens import TrainedLens, lens_logits, stream_site
from interp.layers.profile import profile
from interp.layers.trajectory import MEASURES, Trajectory
from interp.models import ModelHandle


def text(blocks: int = 3, length: int = 9, padding: int = 2) -> Blocks:
    """Random tokens after BOS, the last block padded."""
    tokens = torch.randint(1, 300, (blocks, length), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[-1, length - padding :] = False
    return Blocks(tokens, keep, 1, False, 0)


def observed(handle: ModelHandle, lenses: tuple[TrainedLens, ...] = ()) -> tuple[Trajectory, dict, Tensor, Tensor]:
    """Return a trajectory of all positions that predict a token, the streams, the logits and the targets."""
    tokens, found = text().tokens, Trajectory(handle, lenses, k=4)
    with capture(handle, found.sites) as acts:
        logits = handle.logits(tokens)[:, :-1].flatten(0, 1)
    streams = {site: acts[site][:, :-1].flatten(0, 1) for site in found.sites}
    targets = tokens[:, 1:].flatten()
    found.update(streams, logits, targets, torch.arange(3).repeat_interleave(8))
    return found, streams, logits, targets


def slow(lens: Tensor, final: Tensor, target: int, k: int) -> list[float]:
    """Return the measures of one position, in the order of MEASURES, one by one."""
    p, q = final.log_softmax(-1), lens.log_softmax(-1)
    order = lens.argsort(descending=True).tolist()
    return [
        float(kl_div(q, p, reduction="sum", log_target=True)),
        float(kl_div(p, q, reduction="sum", log_target=True)),
        math.log(order.index(int(final.argmax())) + 1),
        math.log(order.index(target) + 1),
        -sum(x * math.log(x) for x in q.exp().tolist()),
        float(cross_entropy(lens[None], torch.tensor([target]))),
        len(set(order[:k]) & set(final.argsort(descending=True)[:k].tolist())) / k,
        float(order[0] == int(final.argmax())),
    ]


def test_every_measure_is_what_it_is_called(model: ModelHandle) -> None:
    g = torch.Generator().manual_seed(5)
    lens = TrainedLens("tuned", 0.2 * torch.randn(3, 32, 32, generator=g), torch.randn(3, 32, generator=g))
    found, streams, logits, targets = observed(model, (lens,))
    for name in ("logit", "tuned"):
        values = found.values(name)
        for layer in (-1, 1):
            resid = streams[stream_site(layer)]
            seen = lens_logits(model, resid) if name == "logit" else lens.logits(model, layer, resid)
            for row in (0, 7, 20):
                expected = slow(seen[row], logits[row], int(targets[row]), 4)
                assert values[:, layer + 1, row].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_after_the_last_block_the_lens_is_the_model(model: ModelHandle) -> None:
    found = observed(model)[0]
    values = dict(zip(MEASURES, found.values(), strict=True))
    for name, expected in {"kl": 0.0, "kl_reverse": 0.0, "rank_final": 0.0, "overlap": 1.0, "agreement": 1.0}.items():
        assert (values[name][-1] == expected).all()
    assert values["kl"].min() >= -1e-5
    assert values["kl_reverse"].min() >= -1e-5
    assert values["kl"][:-1].mean() > 0.1


def test_a_position_whose_stream_overflowed_is_left_out(gpt2: ModelHandle) -> None:
    whole, streams, logits, targets = observed(gpt2)
    streams = {site: x.clone() for site, x in streams.items()}
    streams[whole.sites[2]][5, 3] = math.inf
    found = Trajectory(gpt2, k=4)
    found.update(streams, logits, targets, torch.arange(3).repeat_interleave(8))
    rest = [i for i in range(24) if i != 5]
    assert torch.allclose(found.values(), whole.values()[:, :, rest], atol=1e-6)


def test_depths_count_blocks(gpt2: ModelHandle) -> None:
    found, *_ = observed(gpt2)
    agree = torch.tensor([[0, 0, 0, 1.0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1]]).T  # [layer position]
    found._values["logit"] = [agree.expand(len(MEASURES), 4, 4)]
    depths = found.depths()
    assert depths["depth_first"].tolist() == [3, 1, 0, 1]
    assert depths["depth_settled"].tolist() == [3, 3, 0, 1]


def test_means_of_ranks_are_geometric_and_have_an_interval(gpt2: ModelHandle) -> None:
    found = observed(gpt2)[0]
    means = found.finish()["logit"]
    ranks = found.values()[MEASURES.index("rank_true"), 1].exp()
    assert means["rank_true"][1].value == pytest.approx(float(ranks.log().mean().exp()), rel=1e-5)
    for mean in (means["rank_true"][1], means["kl"][0]):
        assert mean.low < mean.value < mean.high


def test_the_family_leaves_padding_and_position_0_apart(model: ModelHandle) -> None:
    blocks = text()
    found = profile(model, [LensFamily()], blocks=blocks).results["lens"]
    assert found.summary["positions"] == 7 + 7 + 5  # positions 1..7 of whole blocks, 1..5 of seven real tokens
    own = Trajectory(model)
    with capture(model, own.sites) as acts:
        logits = model.logits(blocks.tokens)
    rows = [(b, p) for b, last in ((0, 7), (1, 7), (2, 5)) for p in range(1, last + 1)]
    at = torch.tensor([b * 9 + p for b, p in rows])
    streams = {site: acts[site].flatten(0, 1)[at] for site in own.sites}
    own.update(streams, logits.flatten(0, 1)[at], blocks.tokens.flatten()[at + 1], torch.tensor([b for b, _ in rows]))
    expected = own.finish()["logit"]
    table = found.layers.to_pylist()
    for measure in MEASURES:
        curve = [row["value"] for row in table if row["measure"] == measure]
        assert curve == pytest.approx([mean.value for mean in expected[measure]], rel=1e-4, abs=1e-6)
    first = [row["value"] for row in table if row["measure"] == "kl_first"]
    target = logits[:, 0].log_softmax(-1)
    lens = lens_logits(model, acts["resid_post.0"][:, 0]).log_softmax(-1)
    assert first[1] == pytest.approx(
        float(kl_div(lens, target, reduction="none", log_target=True).sum(-1).mean()), rel=1e-3
    )
    assert {row["layer"] for row in table} == {-1, 0, 1, 2}


def test_a_sample_is_taken_and_lenses_are_told_apart(gpt2: ModelHandle) -> None:
    lens = TrainedLens("tuned", torch.zeros(3, 32, 32), torch.zeros(3, 32), gpt2.digest())
    found = profile(gpt2, [LensFamily(positions=6, lenses=[lens])], blocks=text()).results["lens"]
    assert found.summary["positions"] == 6
    assert found.summary["depth_first"] == found.summary["depth_first_tuned"]
    kl = {part: [row["value"] for row in found.layers.to_pylist() if (row["measure"], row["part"]) == ("kl", part)]
          for part in ("logit", "tuned")}  # fmt: skip
    assert kl["logit"] == pytest.approx(kl["tuned"], rel=1e-5)


def test_what_cannot_be_measured_is_refused(gpt2: ModelHandle, llama: ModelHandle) -> None:
    lens = TrainedLens("tuned", torch.zeros(3, 32, 32), torch.zeros(3, 32), gpt2.digest())
    with pytest.raises(ValueError, match="was made with other weights"):
        LensFamily(lenses=[lens]).begin(llama, text())
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        LensFamily(k=0)
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.d_vocab=300"):
        Trajectory(gpt2, k=301)
    with pytest.raises(ValueError, match="different names"):
        Trajectory(gpt2, [lens, lens])
    with pytest.raises(ValueError, match="No position was looked at"):
        profile(gpt2, [LensFamily()], blocks=text(length=2, padding=0))
