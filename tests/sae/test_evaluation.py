"""Evaluation in the model against slow definitions, identities and bad rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from interp.data import Blocks
from interp.hooks import capture, patch
from interp.metrics import Reconstruction, ce_recovered, kl_divergence
from interp.models import ModelHandle
from interp.sites import Site
from sae.code import Code
from sae.config import SaeConfig
from sae.evaluation import evaluate
from sae.initialise import initialise
from sae.model import Sae

SITE = Site(1, "resid_post")


def some_blocks(model: ModelHandle, n: int = 6, context: int = 12, padded: bool = True) -> Blocks:
    tokens = torch.randint(1, 300, (n, context), generator=torch.Generator().manual_seed(5), dtype=torch.int32)
    tokens[:, 0] = model.bos_id
    keep = torch.ones(n, context, dtype=torch.bool)
    if padded:
        keep[0, 8:] = False
    return Blocks(tokens, keep, documents=n, across_documents=False, bos_id=model.bos_id)


def activations(model: ModelHandle, tokens: Tensor) -> Tensor:
    with capture(model, [SITE]) as taken:
        model.logits(tokens.long())
    return taken[SITE].clone()


def fitted(model: ModelHandle, d_sae: int = 64, k: int = 8) -> Sae:
    sae = Sae(SaeConfig(model.width(SITE), d_sae, "topk", {"k": k})).eval()
    initialise(sae, activations(model, some_blocks(model, 40).tokens)[:, 1:].flatten(0, 1), seed=9)
    return sae


class Exact:
    """A dictionary that loses nothing: its latents are the coordinates."""

    def __init__(self, d_in: int) -> None:
        self.d_in = self.d_sae = d_in

    def encode(self, x: Tensor) -> Code:
        return Code.from_dense(x.reshape(-1, self.d_in))

    def decode(self, code: Code) -> Tensor:
        return code.dense()

    def forward(self, x: Tensor) -> tuple[Tensor, Code]:
        code = self.encode(x)
        return self.decode(code).view_as(x), code


def test_every_number_equals_its_slow_definition(gpt2: ModelHandle) -> None:
    blocks, sae = some_blocks(gpt2), fitted(gpt2)
    found, density = evaluate(gpt2, SITE, sae, blocks, batch_blocks=2)
    x = activations(gpt2, blocks.tokens)
    kept = [(b, p) for b in range(6) for p in range(1, 12) if blocks.keep[b, p]]
    rows = torch.stack([x[b, p] for b, p in kept]).double()
    with torch.no_grad():
        recon, code = sae(rows.float())
    z = code.dense()
    error = sum(float((rows[i] - recon[i]).square().sum()) for i in range(len(rows)))
    total = sum(float((row - rows.mean(0)).square().sum()) for row in rows)
    assert found.fvu == pytest.approx(error / total, rel=1e-6)
    assert found.l0 == pytest.approx(float((z != 0).sum(1).double().mean()))
    assert found.dead_share == pytest.approx(float((z == 0).all(0).double().mean()))
    assert torch.allclose(density, (z != 0).double().mean(0).float())
    recon = recon.double()
    assert found.bias == pytest.approx(float(recon.square().sum() / (rows * recon).sum()), rel=1e-6)
    assert found.excluded_share == pytest.approx(1 - len(kept) / int(blocks.keep.sum()))

    def loss_with(values: Tensor) -> tuple[float, Tensor]:
        """Return the mean loss over real next tokens when the kept rows are `values`, and the logits."""
        new = x.clone()
        for i, (b, p) in enumerate(kept):
            new[b, p] = values[i]
        with patch(gpt2, SITE, lambda _: new):
            logits = gpt2.logits(blocks.tokens.long())
        losses = [
            float(cross_entropy(logits[b, p], blocks.tokens[b, p + 1].long()))
            for b in range(6)
            for p in range(11)
            if blocks.keep[b, p + 1]
        ]
        return sum(losses) / len(losses), logits

    clean, clean_logits = loss_with(rows.float())
    spliced, spliced_logits = loss_with(recon.float())
    assert found.ce_clean == pytest.approx(clean, rel=1e-5)
    assert found.ce_spliced == pytest.approx(spliced, rel=1e-5)
    assert found.ce_zero == pytest.approx(loss_with(torch.zeros_like(rows).float())[0], rel=1e-5)
    assert found.ce_mean == pytest.approx(loss_with(rows.mean(0).float().expand_as(rows))[0], rel=1e-4)
    divergence = [
        float(
            (
                clean_logits[b, p].softmax(-1)
                * (clean_logits[b, p].log_softmax(-1) - spliced_logits[b, p].log_softmax(-1))
            ).sum()
        )
        for b in range(6)
        for p in range(11)
        if blocks.keep[b, p + 1]
    ]
    assert found.kl == pytest.approx(sum(divergence) / len(divergence), rel=1e-4)


def test_a_dictionary_that_loses_nothing_changes_nothing(model: ModelHandle) -> None:
    found, _ = evaluate(model, SITE, Exact(model.width(SITE)), some_blocks(model))
    assert found.fvu == 0
    assert found.ce_delta == pytest.approx(0, abs=1e-6)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.bias == pytest.approx(1)


def test_batch_size_changes_no_number(gpt2: ModelHandle) -> None:
    blocks, sae = some_blocks(gpt2), fitted(gpt2)
    one, many = (evaluate(gpt2, SITE, sae, blocks, batch_blocks=n)[0].to_dict() for n in (1, 6))
    assert one == pytest.approx(many, rel=1e-4, nan_ok=True)


def test_rows_that_are_not_finite_are_counted_and_left_alone(gpt2: ModelHandle) -> None:
    blocks, sae = some_blocks(gpt2, padded=False), fitted(gpt2)
    last = Site(2, "resid_post")  # nothing after it mixes positions, so a NaN stays where it is

    def poison(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 11] = torch.nan  # predicts nothing: no token follows
        return x

    with patch(gpt2, last, poison):
        found, _ = evaluate(gpt2, last, sae, blocks)
    assert found.nonfinite == 6
    assert found.excluded_share == pytest.approx(2 / 12)
    assert math.isfinite(found.fvu)
    assert math.isfinite(found.ce_spliced)


def test_nothing_to_measure_is_an_error_that_counts(gpt2: ModelHandle) -> None:
    sae = fitted(gpt2)
    with (
        patch(gpt2, SITE, lambda x: torch.full_like(x, torch.inf)),
        pytest.raises(ValueError, match="None of the .* positions can be measured: .* NaN or infinite"),
    ):
        evaluate(gpt2, SITE, sae, some_blocks(gpt2))


def test_outliers_pass_through(gpt2: ModelHandle) -> None:
    blocks, sae = some_blocks(gpt2), fitted(gpt2)
    whole, _ = evaluate(gpt2, SITE, sae, blocks)
    part, _ = evaluate(gpt2, SITE, sae, blocks, outlier_norm=1.0)
    assert part.excluded_share > whole.excluded_share + 0.2
    kept, _ = evaluate(gpt2, SITE, sae, blocks, drop_bos=False)
    assert kept.excluded_share == 0


def test_pooled_fvu_does_not_depend_on_the_order_or_the_centre() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(90, 4, generator=g) + 1000.0
    y = x + 0.1 * torch.randn(90, 4, generator=g)
    expected = float((x - y).double().square().sum() / (x.double() - x.double().mean(0)).square().sum())
    for centre in (x.mean(0), x[0]):
        sums = Reconstruction()
        for part in torch.randperm(90, generator=g).split(7):
            sums.add(x[part], y[part], centre)
        assert sums.fvu == pytest.approx(expected, rel=1e-9)


def test_ce_recovered_is_undefined_where_ablation_does_not_hurt() -> None:
    assert ce_recovered(1.0, 1.5, 2.0) == 0.5
    assert math.isnan(ce_recovered(1.0, 1.5, 1.0))


def test_kl_of_equal_logits_is_zero_and_of_others_positive() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 7, generator=g), torch.randn(3, 7, generator=g)
    assert torch.allclose(kl_divergence(a, a + 3.0), torch.zeros(3), atol=1e-6)
    assert (kl_divergence(a, b) > 0).all()
