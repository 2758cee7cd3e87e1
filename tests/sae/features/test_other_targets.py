"""Features of transcoders and crosscoders: what is read, what is written, and the columns that only they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.hooks import capture
from interp.models import ModelHandle
from interp.runs import start_run
from interp.sites import Site
from sae.config import SaeConfig, TargetConfig
from sae.features import Features, FeaturesConfig, describe_features, load_features
from sae.features.weights import direct_logits
from sae.initialise import initialise
from sae.model import Sae
from sae.placement import Placement
from sae.targets import block_norms, relative_norms

SMALL = FeaturesConfig(n_top=4, n_quantiles=2, per_quantile=2, n_random=2, n_near_miss=3, window=2, logits=5)


def read(models: list[ModelHandle], blocks: Any, *sites: str) -> list[Tensor]:
    found = []
    for handle in models:
        with torch.no_grad(), capture(handle, list(sites)) as taken:
            handle.forward(blocks.tokens.long())
        found += [taken[Site.parse(site)].flatten(2).clone() for site in sites]
    return found


def fitted(x: Tensor, y: Tensor | None, target: TargetConfig) -> Sae:
    sae = Sae(SaeConfig(x.shape[-1], 24, "topk", {"k": 4}, target=target))
    initialise(sae, x.flatten(0, 1), 0, None if y is None else y.flatten(0, 1))
    with torch.no_grad():  # so that a dictionary that subtracted b_dec from what it reads would be found out
        sae.b_dec.add_(0.5)
    return sae.eval()


def described(place: Placement, sae: Sae, blocks: Any, root: Path, **more: Any) -> Features:
    run = start_run("features", {"site": str(place.reads[0]), **more}, slug="t", root=root)
    run.finish(describe_features(place.models[0], place, sae, blocks, run, config=SMALL))
    return load_features(run)


def same_firing(features: Features, sae: Sae, x: Tensor, blocks: Any) -> None:
    kept = blocks.keep & (blocks.tokens != 0)
    with torch.no_grad():
        code = sae.encode(x[kept]).dense()
    assert features.latents["count"].to_pylist() == (code != 0).sum(0).tolist()
    largest = code.max(0).values
    for latent, value in enumerate(features.latents["max"].to_pylist()):
        assert value is None or value == pytest.approx(float(largest[latent]), rel=1e-5)
    with torch.no_grad():
        rows, _ = sae.normaliser.into(x[kept])
        pre = sae.pre(rows).masked_fill(code != 0, -torch.inf)
    best = features.examples(3, "near_miss")["value"].to_pylist()
    assert best[0] == pytest.approx(float(pre[:, 3].max()), rel=1e-4)


def logits_of(features: Features, latent: int) -> list[tuple[int, float]]:
    rows = features.logits(latent).to_pylist()
    return [(row["token_id"], row["value"]) for row in rows if row["side"] == "+"]


@pytest.mark.parametrize("goal", ["mlp_out.1", "mlp_act.1"])
def test_a_transcoder_reads_one_site_and_argues_from_another(
    gpt2: ModelHandle, bench: Any, tmp_path: Path, goal: str
) -> None:
    blocks = bench.blocks(12)
    x, y = read([gpt2], blocks, "resid_mid.1", goal)
    sae = fitted(x, y, TargetConfig("transcoder", d_out=y.shape[-1]))
    features = described(Placement.of(gpt2, "resid_mid.1", goal), sae, blocks, tmp_path)
    same_firing(features, sae, x, blocks)
    wanted = direct_logits(gpt2, Site.parse(goal), sae.W_dec.detach(), 5)
    assert wanted is not None
    found = logits_of(features, 7)
    assert [token for token, _ in found] == wanted.top_ids[7].tolist()
    assert [value for _, value in found] == pytest.approx(wanted.top[7].tolist(), rel=1e-5)
    cosines = features.latents["enc_dec_cosine"].to_pylist()
    if goal == "mlp_act.1":
        assert cosines == [None] * 24, "neurons and the stream have no cosine"
    else:
        pair = torch.cosine_similarity(sae.W_enc.detach(), sae.W_dec.detach())
        assert cosines == pytest.approx(pair.tolist(), abs=1e-5)
    assert "relative_norm" not in features.latents.column_names


def test_a_crosscoder_has_a_norm_for_each_site(gpt2: ModelHandle, bench: Any, tmp_path: Path) -> None:
    blocks, names = bench.blocks(12), ("resid_post.0", "resid_post.1")
    x = torch.cat(read([gpt2], blocks, *names), -1)
    sae = fitted(x, None, TargetConfig("crosscoder", blocks=(32, 32)))
    sites = tuple(map(Site.parse, names))
    features = described(Placement((gpt2,), sites, sites), sae, blocks, tmp_path)
    same_firing(features, sae, x, blocks)
    table = features.latents
    columns = np.stack([table[f"decoder_norm.{name}"].to_numpy() for name in names], 1)
    assert np.allclose(columns, block_norms(sae).numpy(), atol=1e-6)
    assert np.allclose(columns.sum(1), 1, atol=1e-5), "an atom's length is the sum over blocks"
    assert "relative_norm" not in table.column_names
    wanted = direct_logits(gpt2, sites[1], sae.W_dec.detach()[:, 32:], 5)
    assert wanted is not None
    assert [token for token, _ in logits_of(features, 2)] == wanted.top_ids[2].tolist()


def test_a_crosscoder_of_two_models_has_the_share_of_the_first(
    gpt2: ModelHandle, neox: ModelHandle, bench: Any, tmp_path: Path
) -> None:
    blocks, site = bench.blocks(12), Site.parse("resid_post.1")
    x = torch.cat(read([gpt2, neox], blocks, str(site)), -1)
    sae = fitted(x, None, TargetConfig("crosscoder", blocks=(32, 32), models=2))
    with torch.no_grad():
        sae.W_dec[5, 32:] = 0
    features = described(Placement((gpt2, neox), (site,), (site,)), sae, blocks, tmp_path)
    same_firing(features, sae, x, blocks)
    share = features.latents["relative_norm"].to_pylist()
    assert share == pytest.approx(relative_norms(sae).tolist(), abs=1e-6)
    assert share[5] == 1
    assert features.latents["decoder_norm.b.resid_post.1"].to_pylist()[5] == 0
    wanted = direct_logits(gpt2, site, sae.W_dec.detach()[:, :32], 5)
    assert wanted is not None
    assert [token for token, _ in logits_of(features, 2)] == wanted.top_ids[2].tolist()


def test_outliers_at_any_site_are_left_out(gpt2: ModelHandle, bench: Any, tmp_path: Path) -> None:
    blocks, names = bench.blocks(12), ("resid_post.0", "resid_post.1")
    parts = read([gpt2], blocks, *names)
    sae = fitted(torch.cat(parts, -1), None, TargetConfig("crosscoder", blocks=(32, 32)))
    sites = tuple(map(Site.parse, names))
    run = start_run("features", {}, slug="t", root=tmp_path)
    config = FeaturesConfig(n_top=1, n_quantiles=0, n_random=0, n_near_miss=0, outlier_norm=1.1)
    summary = describe_features(gpt2, Placement((gpt2,), sites, sites), sae, blocks, run, config=config)
    usable = blocks.keep & (blocks.tokens != 0)
    lengths = [part.norm(dim=-1) for part in parts]
    kept = usable.clone()
    for length in lengths:
        kept &= length <= 1.1 * length[usable].median()
    assert summary["tokens"] == int(kept.sum()) < int(usable.sum())
