"""Whole texts and the model that reads on: the KL and the later errors by definition, gradients, exclusions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interp.activations import ActivationStore
from interp.data import Blocks, DataSpec, token_blocks
from interp.hooks import capture, patch
from interp.models import ModelHandle
from sae.end_to_end import TextBatches

SITE = "resid_post.0"


@pytest.fixture(scope="module")
def blocks(gpt2: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"the cat {i} sat on the mat and the dog sat on log {i}.\n" for i in range(60)))
    return token_blocks(gpt2, DataSpec(str(path), context=16, tokens=640))


def noisy(x: Tensor) -> Tensor:
    return x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(8))


def test_rows_are_those_of_whole_blocks_without_bos(gpt2: ModelHandle, blocks: Blocks) -> None:
    source = TextBatches(gpt2, blocks, SITE, batch=48)
    assert source.per_step == 3
    seen = [source.batch(step) for step in range(source.steps_per_epoch)]
    assert all(len(rows) <= 48 for rows in seen)
    again = TextBatches(gpt2, blocks, SITE, batch=48)
    assert torch.equal(again.batch(5), seen[5])
    with capture(gpt2, SITE) as found:
        gpt2.forward(blocks.tokens.long())
    wanted = found[SITE][blocks.keep & ~blocks.bos()]
    chosen = torch.cat(seen)
    assert len(chosen) >= len(wanted) - 2 * 48
    nearest = torch.cdist(chosen.double(), wanted.double()).min(1).values
    assert float(nearest.max()) < 1e-4
    left = sum(int(blocks.bos()[i].sum()) for i in range(len(blocks)))
    assert 0 < source.report["left_out"] <= left
    assert source.report["rows"] == len(chosen)


def test_kl_and_later_errors_are_those_of_their_definitions(gpt2: ModelHandle, blocks: Blocks) -> None:
    later = ["resid_post.1", "resid_post.2"]
    source = TextBatches(gpt2, blocks, SITE, batch=32, downstream=later)
    x = source.batch(0)
    recon = noisy(x)
    found = {name: loss.detach() for name, loss in source.model(0)(recon).items()}
    run = source._pass(0)
    place = iter(recon)

    def edit(value: Tensor) -> Tensor:
        for block in range(value.shape[0]):
            for position in range(value.shape[1]):
                if int(run.tokens[block, position]) != gpt2.bos_id:
                    value[block, position] = next(place)
        return value

    with capture(gpt2, later) as clean:
        before = gpt2.logits(run.tokens).double().log_softmax(-1)
    with patch(gpt2, SITE, edit), capture(gpt2, later) as changed:
        after = gpt2.logits(run.tokens).double().log_softmax(-1)
    total, count = 0.0, 0
    for block in range(len(run.tokens)):
        for position in range(blocks.context - 1):  # the last one predicts nothing
            p, q = before[block, position], after[block, position]
            total += float((p.exp() * (p - q)).sum())
            count += 1
    assert float(found["kl"]) == pytest.approx(total / count, rel=1e-4)
    shares = []
    for site in later:
        h, new = clean[site].flatten(0, 1).double(), changed[site].flatten(0, 1).double()
        shares.append(float((new - h).square().sum() / (h - h.mean(0)).square().sum()))
    assert float(found["downstream"]) == pytest.approx(sum(shares) / 2, rel=1e-4)


def test_a_perfect_reconstruction_costs_nothing(model: ModelHandle, blocks: Blocks) -> None:
    source = TextBatches(model, blocks, "head_out.1", batch=32, downstream=["resid_post.1"])
    found = {name: loss.detach() for name, loss in source.model(2)(source.batch(2)).items()}
    assert abs(float(found["kl"])) < 1e-6
    assert float(found["downstream"]) < 1e-9


def test_the_gradient_of_the_kl_is_its_slope(gpt2: ModelHandle, blocks: Blocks) -> None:
    source = TextBatches(gpt2, blocks, SITE, batch=32)
    recon = noisy(source.batch(0)).requires_grad_()
    measure = source.model(0)
    (slope,) = torch.autograd.grad(measure(recon)["kl"], recon)
    step = slope / slope.norm() * 3e-2
    ends = [float(measure(recon.detach() + sign * step)["kl"].detach()) for sign in (1, -1)]
    assert (ends[0] - ends[1]) / 6e-2 == pytest.approx(float(slope.norm()), rel=3e-2)
    assert all(parameter.grad is None for parameter in gpt2.module.parameters())


def test_the_loss_is_per_token_whatever_the_number_of_texts(gpt2: ModelHandle, blocks: Blocks) -> None:
    doubled = blocks.select(torch.tensor([3, 3]))
    values = []
    for batch, texts in ((16, blocks.select(torch.tensor([3]))), (32, doubled)):
        source = TextBatches(gpt2, texts, SITE, batch=batch, downstream=["resid_post.2"])
        found = {name: loss.detach() for name, loss in source.model(0)(1.3 * source.batch(0)).items()}
        values.append((float(found["kl"]), float(found["downstream"])))
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_outliers_and_bos_pass_through(gpt2: ModelHandle, blocks: Blocks) -> None:
    plain = TextBatches(gpt2, blocks, SITE, batch=64)
    norms = plain.batch(0).norm(dim=1)
    limit = float(norms.sort().values[-4] / norms.median()) * 0.999
    source = TextBatches(gpt2, blocks, SITE, batch=64, outlier_norm=max(limit, 1.01))
    assert len(source.batch(0)) < len(plain.batch(0))
    seen = []
    zeros = torch.zeros_like(source.batch(0))
    run = source._pass(0)
    with patch(gpt2, SITE, lambda x: seen.append(x.clone()) or x), torch.no_grad():
        source.model(0)(zeros)
    with patch(gpt2, SITE, lambda x: x), capture(gpt2, SITE) as clean:
        gpt2.forward(run.tokens)
    assert torch.equal(seen[0], clean[SITE]), "an outer hook sees what came before the splice"
    assert (run.keep & ~run.kept).any()


def test_its_gradient_of_the_loss_is_that_of_the_store(gpt2: ModelHandle, blocks: Blocks) -> None:
    source = TextBatches(gpt2, blocks, SITE, batch=64)
    store = ActivationStore(gpt2, blocks, SITE, batch=64, gradient=True)
    known = {}
    for step in range(store.batches_per_epoch):
        origin = store.origin(step)
        places = zip(origin["block"].tolist(), origin["position"].tolist(), strict=True)
        known |= dict(zip(places, store.gradient(step), strict=True))
    run, slopes, found = source._pass(0), source.gradient(0), 0
    for slope, (row, position) in zip(slopes, run.kept.nonzero().tolist(), strict=True):
        block = int((blocks.tokens == run.tokens[row]).all(1).nonzero()[0])
        if (block, position) in known:
            torch.testing.assert_close(slope, known[block, position], rtol=1e-3, atol=1e-4)
            found += 1
    assert found > 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 15}, "batch must be at least the context, 16, got 15"),
        ({"downstream": ["resid_pre.0"]}, "computed after resid_post.0, which resid_pre.0 is not"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"outlier_norm": 0.5}, "outlier_norm is a multiple of the median norm"),
    ],
)
def test_what_makes_no_sense_is_refused(gpt2: ModelHandle, blocks: Blocks, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextBatches(gpt2, blocks, SITE, **({"batch": 32} | options))
