"""Evaluation of dictionaries that do not write what they read, against the same thing done by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from interp.data import Blocks
from interp.hooks import capture, patch, splice
from interp.metrics import kl_divergence, next_token_loss
from interp.models import ModelHandle
from interp.sites import Site
from sae.config import SaeConfig, TargetConfig
from sae.evaluation import Evaluation, evaluate
from sae.initialise import initialise
from sae.model import Sae
from sae.placement import Placement
from sae.splicing import splice_transcoder

READ, WRITTEN = Site.parse("resid_mid.1"), Site.parse("mlp_out.1")
LAYERS = (Site.parse("resid_post.0"), Site.parse("resid_post.1"))
PLACE = Site.parse("resid_post.1")


def some_blocks(n: int = 5, context: int = 9) -> Blocks:
    tokens = torch.randint(1, 300, (n, context), generator=torch.Generator().manual_seed(5), dtype=torch.int32)
    tokens[:, 0] = 0
    keep = torch.ones(n, context, dtype=torch.bool)
    keep[0, 6:] = False
    return Blocks(tokens, keep, documents=n, across_documents=False, bos_id=0)


def clean(handle: ModelHandle, blocks: Blocks, *sites: Site) -> list[Tensor]:
    with torch.no_grad(), capture(handle, list(sites)) as found:
        handle.forward(blocks.tokens.long())
    return [found[site].flatten(2).clone() for site in sites]


def fitted(x: Tensor, y: Tensor | None, target: TargetConfig) -> Sae:
    sae = Sae(SaeConfig(x.shape[-1], 48, "topk", {"k": 6}, target=target))
    initialise(sae, x.flatten(0, 1), 0, None if y is None else y.flatten(0, 1))
    if target.skip:
        sae.target.W_skip.data.normal_(std=0.1, generator=torch.Generator().manual_seed(2))  # type: ignore[operator,union-attr]
    return sae.eval()


def by_hand(handle: ModelHandle, blocks: Blocks, new: dict[Site, Tensor]) -> float:
    """Return the mean loss over real next tokens when the model runs with these activations, one at a time."""
    tokens, losses = blocks.tokens.long(), []
    for b in range(len(tokens)):
        values = {site: value[b : b + 1] for site, value in new.items()}
        with torch.no_grad():
            if len(values) == 1:
                ((site, value),) = values.items()
                with patch(handle, site, lambda x, value=value: value.view_as(x)):
                    logits = handle.logits(tokens[b : b + 1])[0]
            else:
                (one, first), (two, second) = values.items()
                with (
                    patch(handle, one, lambda x, value=first: value.view_as(x)),
                    patch(handle, two, lambda x, value=second: value.view_as(x)),
                ):
                    logits = handle.logits(tokens[b : b + 1])[0]
        for p in range(tokens.shape[1] - 1):
            if blocks.keep[b, p + 1]:
                losses.append(float(cross_entropy(logits[p], tokens[b, p + 1])))
    return sum(losses) / len(losses)


def fvu(y: Tensor, y_hat: Tensor) -> float:
    y, y_hat = y.double(), y_hat.double()
    return float((y - y_hat).square().sum() / (y - y.mean(0)).square().sum())


def filled(x: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    out = x.clone()
    out[kept] = rows.to(out)
    return out


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("site", ["mlp_out.1", "mlp_act.1"])
def test_a_transcoder_is_measured_where_it_writes(gpt2: ModelHandle, skip: bool, site: str) -> None:
    blocks, goal = some_blocks(), Site.parse(site)
    x, y = clean(gpt2, blocks, READ, goal)
    sae = fitted(x, y, TargetConfig("transcoder", d_out=y.shape[-1], skip=skip))
    found, density = evaluate(gpt2, Placement.of(gpt2, READ, goal), sae, blocks, batch_blocks=2)
    kept = blocks.keep & (blocks.tokens != 0)
    with torch.no_grad():
        y_hat, code = sae(x[kept])
    assert found.fvu == pytest.approx(fvu(y[kept], y_hat), rel=1e-5)
    assert torch.allclose(density, (code.dense() != 0).double().mean(0).float())
    assert found.bias == pytest.approx(float(y_hat.square().sum() / (y[kept] * y_hat).sum()), rel=1e-5)
    mean = y[kept].mean(0).expand_as(y[kept])
    assert found.ce_clean == pytest.approx(by_hand(gpt2, blocks, {goal: y}), rel=1e-5)
    assert found.ce_spliced == pytest.approx(by_hand(gpt2, blocks, {goal: filled(y, kept, y_hat)}), rel=1e-4)
    assert found.ce_zero == pytest.approx(
        by_hand(gpt2, blocks, {goal: filled(y, kept, torch.zeros_like(mean))}), rel=1e-4
    )
    assert found.ce_mean == pytest.approx(by_hand(gpt2, blocks, {goal: filled(y, kept, mean)}), rel=1e-4)
    assert found.parts == ()
    tokens = blocks.tokens.long()
    with torch.no_grad(), splice_transcoder(gpt2, READ, goal, sae, keep=kept):
        logits = gpt2.logits(tokens)
    real = blocks.keep[:, 1:]
    assert found.ce_spliced == pytest.approx(float(next_token_loss(logits, tokens)[real].mean()), rel=1e-5)


def test_a_crosscoder_is_measured_at_each_site_and_at_all(gpt2: ModelHandle) -> None:
    blocks = some_blocks()
    parts = clean(gpt2, blocks, *LAYERS)
    x = torch.cat(parts, -1)
    sae = fitted(x, None, TargetConfig("crosscoder", blocks=(32, 32)))
    found, _ = evaluate(gpt2, Placement((gpt2,), LAYERS, LAYERS), sae, blocks)
    kept = blocks.keep & (blocks.tokens != 0)
    with torch.no_grad():
        recon = sae(x[kept])[0].split(32, -1)
    errors = [fvu(part[kept], part_hat) for part, part_hat in zip(parts, recon, strict=True)]
    assert [(part.model, part.site) for part in found.parts] == [(0, "resid_post.0"), (0, "resid_post.1"), (0, "all")]
    assert [part.fvu for part in found.parts] == pytest.approx([*errors, sum(errors) / 2], rel=1e-5)
    assert found.fvu == pytest.approx(sum(errors) / 2, rel=1e-5)
    new = {site: filled(part, kept, rows) for site, part, rows in zip(LAYERS, parts, recon, strict=True)}
    for part, site in zip(found.parts[:2], LAYERS, strict=True):
        assert part.ce_spliced == pytest.approx(by_hand(gpt2, blocks, {site: new[site]}), rel=1e-4)
        zeros = filled(new[site], kept, torch.zeros_like(recon[0]))
        assert part.ce_zero == pytest.approx(by_hand(gpt2, blocks, {site: zeros}), rel=1e-4)
    assert found.parts[2].ce_spliced == pytest.approx(by_hand(gpt2, blocks, new), rel=1e-4)
    assert (found.ce_spliced, found.kl) == (found.parts[2].ce_spliced, found.parts[2].kl)
    assert "parts" not in found.to_dict()


def test_what_is_not_kept_at_a_later_site_is_what_the_model_makes_of_the_earlier_one(gpt2: ModelHandle) -> None:
    blocks = some_blocks()
    parts = clean(gpt2, blocks, *LAYERS)
    sae = fitted(torch.cat(parts, -1), None, TargetConfig("crosscoder", blocks=(32, 32)))
    found, _ = evaluate(gpt2, Placement((gpt2,), LAYERS, LAYERS), sae, blocks, outlier_norm=1.05)
    usable = blocks.keep & (blocks.tokens != 0)
    kept = usable.clone()
    for part in parts:
        norms = part.norm(dim=-1)
        kept &= norms <= 1.05 * norms[usable].median()
    assert found.excluded_share == pytest.approx(1 - int(kept.sum()) / int(blocks.keep.sum()))
    with torch.no_grad():
        recon = sae(torch.cat(parts, -1)[kept])[0].split(32, -1)
    tokens = blocks.tokens.long()

    def edit(value: Tensor) -> object:
        return lambda x: filled(x, kept, value)

    with torch.no_grad(), patch(gpt2, LAYERS[0], edit(recon[0])), patch(gpt2, LAYERS[1], edit(recon[1])):  # type: ignore[arg-type]
        losses = next_token_loss(gpt2.logits(tokens), tokens)[blocks.keep[:, 1:]]
    assert found.ce_spliced == pytest.approx(float(losses.mean()), rel=1e-5)


def test_a_crosscoder_of_two_models_is_measured_in_each(gpt2: ModelHandle, neox: ModelHandle) -> None:
    blocks = some_blocks()
    parts = [clean(handle, blocks, PLACE)[0] for handle in (gpt2, neox)]
    sae = fitted(torch.cat(parts, -1), None, TargetConfig("crosscoder", blocks=(32, 32), models=2))
    place = Placement((gpt2, neox), (PLACE,), (PLACE,))
    assert place.names == ("a.resid_post.1", "b.resid_post.1")
    found, _ = evaluate(gpt2, place, sae, blocks)
    kept = blocks.keep & (blocks.tokens != 0)
    with torch.no_grad():
        recon = sae(torch.cat(parts, -1)[kept])[0].split(32, -1)
    assert [(part.model, part.site) for part in found.parts] == [(0, "resid_post.1"), (1, "resid_post.1")]
    for part, handle, x, rows in zip(found.parts, (gpt2, neox), parts, recon, strict=True):
        assert part.fvu == pytest.approx(fvu(x[kept], rows), rel=1e-5)
        assert part.ce_clean == pytest.approx(by_hand(handle, blocks, {PLACE: x}), rel=1e-5)
        assert part.ce_spliced == pytest.approx(by_hand(handle, blocks, {PLACE: filled(x, kept, rows)}), rel=1e-4)
    assert found.ce_spliced == found.parts[0].ce_spliced


def test_a_plain_dictionary_has_the_numbers_of_a_splice_bit_for_bit(model: ModelHandle) -> None:
    blocks = some_blocks()
    (x,) = clean(model, blocks, PLACE)
    sae = fitted(x, None, TargetConfig())
    found, _ = evaluate(model, PLACE, sae, blocks, batch_blocks=len(blocks))
    placed, _ = evaluate(model, Placement.of(model, PLACE), sae, blocks, batch_blocks=len(blocks))
    assert placed == found
    end_to_end = Sae(SaeConfig(32, 48, "topk", {"k": 6}, target=TargetConfig("end_to_end"))).eval()
    end_to_end.load_state_dict(sae.state_dict())
    assert evaluate(model, PLACE, end_to_end, blocks, batch_blocks=len(blocks))[0] == found
    kept, tokens, real = blocks.keep & (blocks.tokens != 0), blocks.tokens.long(), blocks.keep[:, 1:]
    with torch.inference_mode():
        logits = model.logits(tokens)
        with splice(model, PLACE, sae, keep=kept):
            spliced = model.logits(tokens)
        mean = x[kept].double().mean(0).float()
        with patch(model, PLACE, lambda value: torch.where(kept[..., None], mean, value)):
            ablated = model.logits(tokens)
    count = int(real.sum())
    assert found.ce_clean == float(next_token_loss(logits, tokens)[real].double().sum()) / count
    assert found.ce_spliced == float(next_token_loss(spliced, tokens)[real].double().sum()) / count
    assert found.ce_mean == float(next_token_loss(ablated, tokens)[real].double().sum()) / count
    assert found.kl == float(kl_divergence(logits, spliced)[:, :-1][real].double().sum()) / count


def test_places_that_do_not_fit_are_refused(gpt2: ModelHandle) -> None:
    blocks = some_blocks()
    x, y = clean(gpt2, blocks, READ, WRITTEN)
    sae = fitted(x, y, TargetConfig("transcoder", d_out=32))
    for place, message in (
        (lambda: Placement.of(gpt2, WRITTEN, READ), r"computed after mlp_out\.1, which resid_mid\.1 is not"),
        (lambda: Placement.of(gpt2, READ, "mlp_act.1"), r"has d_out=32 numbers, but mlp_act\.1 has 128"),
        (lambda: Placement.of(gpt2, "mlp_act.1", WRITTEN), r"has d_in=32 numbers, but mlp_act\.1 has 128"),
        (lambda: Placement((gpt2,), LAYERS, LAYERS), r"d_in=32 numbers, but resid_post\.0, resid_post\.1 has 64"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(gpt2, place(), sae, blocks)
    odd = Sae(SaeConfig(64, 8, "topk", {"k": 2}, target=TargetConfig("crosscoder", blocks=(16, 48)))).eval()
    with pytest.raises(ValueError, match=r"reads blocks of \[16, 48\], the sites have \[32, 32\]"):
        evaluate(gpt2, Placement((gpt2,), LAYERS, LAYERS), odd, blocks)


def test_parts_are_no_part_of_the_numbers_of_a_plain_dictionary() -> None:
    assert "parts" in Evaluation.__dataclass_fields__
    whole = Evaluation(1, 0.0, 0, 0.1, 1.0, 0.0, 1.0, 1.0, 1.1, 2.0, 2.0, 0.1, 0)
    assert {"fvu", "ce_delta"} <= whole.to_dict().keys()
    assert "parts" not in whole.to_dict()
