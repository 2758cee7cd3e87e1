"""Each panel against a slow reference from its definition, and what must not change it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor
from torch.nn.functional import cross_entropy

from interp.compression.coding import active_slots
from interp.compression.panel import Spread
from interp.compression.panels import Behaviour, Cka, DictionaryFit, Drift, Heads, Lens, Survival
from interp.compression.panels.behaviour import bootstrap
from interp.compression.panels.survival import SurvivalConfig, correlation, spearman, states
from interp.compression.side_by_side import Spool
from interp.hooks import capture
from interp.layers.heads import head_scores, layer_patterns, repeated_tokens
from interp.layers.lens import lens_logits
from interp.layers.similarity import linear_cka
from interp.models import ModelHandle
from interp.sites import Site
from sae.code import Code
from sae.evaluation import evaluate
from tests.interp.compression.pairs import SITE, copy_of, fitted, kept_rows, measured, some_blocks


@pytest.fixture(scope="module")
def a() -> ModelHandle:
    return copy_of()


@pytest.fixture(scope="module")
def b() -> ModelHandle:
    return copy_of(noise=0.05)


def predictions(blocks: Any) -> list[tuple[int, int]]:
    """Return (block, position) of what predicts a real token."""
    return [(i, p) for i in range(len(blocks)) for p in range(blocks.context - 1) if blocks.keep[i, p + 1]]


def test_behaviour_equals_loops(a: ModelHandle, b: ModelHandle) -> None:
    blocks = some_blocks()
    found = measured(Behaviour(), a, b, blocks)
    logits_a, logits_b = a.logits(blocks.tokens.long()), b.logits(blocks.tokens.long())
    losses, kls, same = [], [], []
    for i, p in predictions(blocks):
        x, y, target = logits_a[i, p], logits_b[i, p], blocks.tokens[i, p + 1].long()
        losses.append((float(cross_entropy(x, target)), float(cross_entropy(y, target))))
        p_x = x.double().softmax(-1)
        kls.append(float((p_x * (x.double().log_softmax(-1) - y.double().log_softmax(-1))).sum()))
        same.append(int(x.argmax()) == int(y.argmax()))
    mean = np.mean(losses, axis=0)
    summary = found.summary
    assert summary["tokens"] == len(losses) == 7 + 6 * 11
    assert [summary["loss_a"], summary["loss_b"]] == pytest.approx(mean, rel=1e-5)
    assert summary["loss_delta"] == pytest.approx(mean[1] - mean[0], abs=1e-6)
    assert summary["kl_mean"] == pytest.approx(np.mean(kls), rel=1e-4)
    assert summary["kl_q95"] == pytest.approx(np.quantile(kls, 0.95), rel=1e-4)
    assert summary["kl_max"] == pytest.approx(max(kls), rel=1e-4)
    assert summary["top1_agreement"] == pytest.approx(np.mean(same))
    table = found.tables["blocks"].to_pydict()
    assert table["tokens"] == [7] + [11] * 6
    assert table["kl"][0] == pytest.approx(np.mean(kls[:7]), rel=1e-4)
    quantiles = found.tables["quantiles"].to_pydict()
    assert quantiles["quantile"] == sorted(quantiles["quantile"])
    assert quantiles["kl"] == sorted(quantiles["kl"])


def test_the_interval_is_that_of_drawn_blocks() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 100, 200).astype(float)
    sums = tokens * rng.normal(0.3, 1.0, 200)
    low, high = bootstrap(sums, tokens, 4000, seed=1)
    slow = []
    for _ in range(4000):
        drawn = rng.integers(0, 200, 200)
        slow.append(sums[drawn].sum() / tokens[drawn].sum())
    assert [low, high] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.01)
    assert low < sums.sum() / tokens.sum() < high
    assert bootstrap(sums, tokens, 4000, seed=1) == (low, high)
    assert all(math.isnan(end) for end in bootstrap(sums[:1], tokens[:1], 10, 0))


def test_drift_equals_loops(a: ModelHandle, b: ModelHandle) -> None:
    blocks = some_blocks()
    found = measured(Drift(), a, b, blocks)
    rows = {row["site"]: row for row in found.tables["layers"].to_pylist()}
    assert list(rows) == [f"{kind}.{layer}" for layer in range(3) for kind in ("attn_out", "mlp_out", "resid_post")]
    for name in ("attn_out.0", "resid_post.2"):
        x, y = (kept_rows(model, blocks, Site.parse(name)).double() for model in (a, b))
        assert len(x) == 7 + 6 * 11 - 1
        errors = [float((q - p).norm() / p.norm()) for p, q in zip(x, y, strict=True)]
        cosines = [float(p @ q / (p.norm() * q.norm())) for p, q in zip(x, y, strict=True)]
        row = rows[name]
        assert row["relative_error"] == pytest.approx(np.mean(errors), rel=1e-6)
        assert row["cosine"] == pytest.approx(np.mean(cosines), rel=1e-6)
        assert row["cosine_p5"] == pytest.approx(np.quantile(cosines, 0.05), rel=1e-5)
        noise = float((y - x).square().sum())
        assert row["sqnr_db"] == pytest.approx(10 * math.log10(float(x.square().sum()) / noise), rel=1e-6)
        assert row["norm_ratio"] == pytest.approx(float((y.norm(dim=1) / x.norm(dim=1)).mean()), rel=1e-6)
    with capture(a, "resid_post.0") as first_a:
        a.logits(blocks.tokens.long())
    with capture(b, "resid_post.0") as first_b:
        b.logits(blocks.tokens.long())
    x, y = (acts["resid_post.0"][0, 0].double() for acts in (first_a, first_b))
    assert rows["resid_post.0"]["first_relative_error"] == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-6)
    assert rows["resid_post.0"]["first_cosine"] != pytest.approx(rows["resid_post.0"]["cosine"], abs=1e-6)


def test_cka_is_that_of_the_kept_rows_and_crosses_layers(a: ModelHandle, b: ModelHandle) -> None:
    blocks = some_blocks(20)
    found = measured(Cka(), a, b, blocks)
    layers = {row["site"]: row for row in found.tables["layers"].to_pylist()}
    x = kept_rows(a, blocks, Site(2, "resid_post"))
    y = kept_rows(b, blocks, Site(2, "resid_post"))
    assert layers["resid_post.2"]["cka"] == pytest.approx(linear_cka(x, y), rel=1e-6)
    assert layers["resid_post.2"]["rows"] == len(x)
    cross = {(row["site_a"], row["site_b"]): row["cka"] for row in found.tables["cross"].to_pylist()}
    assert len(cross) == 9
    assert cross["resid_post.0", "resid_post.2"] == pytest.approx(
        linear_cka(kept_rows(a, blocks, Site(0, "resid_post")), y), rel=1e-6
    )
    assert cross["resid_post.2", "resid_post.2"] == layers["resid_post.2"]["cka"]
    few = measured(Cka(rows=50), a, b, blocks).summary["rows"]
    assert few == 50
    assert measured(Cka(cross=None), a, b, blocks).tables["cross"].num_rows == 0


def test_survival_equals_numpy(a: ModelHandle, b: ModelHandle) -> None:
    blocks, sae = some_blocks(40), fitted(a)
    config = SurvivalConfig(least=5, kept=0.95, blurred=0.8)
    found = measured(Survival(SITE, sae, config), a, b, blocks)
    with torch.no_grad():
        z_a, z_b = (sae.encode(kept_rows(model, blocks)).dense().double().numpy() for model in (a, b))
    table = found.tables["latents"].to_pydict()
    seen = set()
    for latent in range(sae.d_sae):
        x, y = z_a[:, latent], z_b[:, latent]
        count_a, count_b = (x != 0).sum(), (y != 0).sum()
        assert table["density_a"][latent] == pytest.approx(count_a / len(x))
        assert table["density_b"][latent] == pytest.approx(count_b / len(x))
        if count_a and count_b:
            assert table["r"][latent] == pytest.approx(pearsonr(x, y)[0], abs=1e-6)
            assert table["peak_a"][latent] == pytest.approx(np.abs(x).max(), rel=1e-5)
            assert table["mean_b"][latent] == pytest.approx(y[y != 0].mean(), rel=1e-5)
            assert table["jaccard"][latent] == pytest.approx(((x != 0) & (y != 0)).sum() / ((x != 0) | (y != 0)).sum())
        r = table["r"][latent]
        if count_a >= 5:
            state = "kept" if r >= 0.95 else "blurred" if r >= 0.8 else "lost"
        else:
            state = "new" if count_b >= 5 else "rare" if count_a or count_b else "silent"
        assert table["state"][latent] == state
        seen.add(state)
    assert {"kept", "blurred", "lost"} <= seen
    summary = found.summary
    active = [i for i, state in enumerate(table["state"]) if state in ("kept", "blurred", "lost")]
    assert summary["active"] == len(active) == summary["kept"] + summary["blurred"] + summary["lost"]
    assert summary["kept_share"] == summary["kept"] / len(active)
    r = [table["r"][i] for i in active]
    assert summary["median_r"] == pytest.approx(np.median(r))
    expected = spearmanr([table["density_a"][i] for i in active], r).statistic
    assert summary["spearman_density"] == pytest.approx(expected, abs=1e-9)
    assert summary["l0_a"] == pytest.approx((z_a != 0).sum(1).mean())
    assert summary["jaccard"] == pytest.approx(((z_a != 0) & (z_b != 0)).sum() / ((z_a != 0) | (z_b != 0)).sum())


def test_survival_examples_show_both_models(a: ModelHandle, b: ModelHandle) -> None:
    blocks, sae = some_blocks(20), fitted(a)
    result = measured(Survival(SITE, sae, SurvivalConfig(least=2, examples=3, window=2)), a, b, blocks)
    dense = {}
    for side, model in (("a", a), ("b", b)):
        z = torch.zeros(20, 12, sae.d_sae)
        kept = blocks.keep & ~blocks.bos()
        with torch.no_grad():
            z[kept] = sae.encode(kept_rows(model, blocks)).dense()
        dense[side] = z
    rows = result.tables["examples"].to_pylist()
    order = [(row["latent"], row["side"], row["rank"]) for row in rows]
    assert order == sorted(order)
    for row in rows:
        latent, block, position, start = (row[key] for key in ("latent", "block", "position", "start"))
        end = start + len(row["token_ids"])
        assert (start, end) == (max(0, position - 2), min(position + 3, int(blocks.keep[block].sum())))
        assert row["token_ids"] == blocks.tokens[block, start:end].tolist()
        for side in "ab":
            assert row[f"values_{side}"] == pytest.approx(dense[side][block, start:end, latent].tolist(), abs=1e-5)
    for latent, side in {(row["latent"], row["side"]) for row in rows}:
        z = dense[side][..., latent].abs()
        strongest = sorted((float(v) for v in z.amax(1) if v > 0), reverse=True)[:3]  # one from a block
        mine = [row for row in rows if (row["latent"], row["side"]) == (latent, side)]
        assert [float(z[row["block"], row["position"]]) for row in mine] == pytest.approx(strongest, abs=1e-5)
    assert {side for _, side, _ in order} == {"a", "b"}


def test_examples_are_bounded(a: ModelHandle, b: ModelHandle) -> None:
    blocks, sae = some_blocks(20), fitted(a)
    whole = measured(Survival(SITE, sae, SurvivalConfig(least=1)), a, b, blocks)
    few = measured(Survival(SITE, sae, SurvivalConfig(least=1, example_slots=600)), a, b, blocks)  # 6 of each row
    assert max(few.tables["examples"]["block"].to_pylist()) < 9
    assert few.summary["example_tokens"] == 9 * 12
    assert few.tables["latents"].equals(whole.tables["latents"])
    none = measured(Survival(SITE, sae, SurvivalConfig(least=1, examples=0)), a, b, blocks)
    assert none.tables["examples"].num_rows == 0
    assert none.tables["examples"].schema == whole.tables["examples"].schema
    changed = measured(Survival(SITE, sae, SurvivalConfig(least=1, example_latents=2)), a, b, blocks)
    r = changed.tables["latents"]["r"].to_pylist()
    shown = set(changed.tables["examples"]["latent"].to_pylist())
    assert len(shown) == 2
    assert max(r[i] for i in shown) <= sorted(x for x in r if x is not None)[1]


def test_signed_codes_count_where_they_are_not_zero(a: ModelHandle, b: ModelHandle) -> None:
    class Signed:
        """Its latents are the coordinates, small ones silent; the code is dense."""

        d_in = d_sae = 32

        def encode(self, x: Tensor) -> Tensor:
            return torch.where(x.abs() > 0.5, x, 0)

        def decode(self, code: Tensor) -> Tensor:
            return code

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.encode(x), self.encode(x)

    blocks = some_blocks()
    found = measured(Survival(SITE, Signed(), SurvivalConfig(least=1)), a, b, blocks)
    z = Signed().encode(kept_rows(a, blocks))
    assert (z < 0).any()
    assert found.tables["latents"]["density_a"].to_pylist() == pytest.approx((z != 0).double().mean(0).tolist())
    assert found.tables["latents"]["peak_a"].to_pylist()[0] == pytest.approx(float(z[:, 0].abs().max()))


def test_slots_of_every_form_of_code_are_the_same() -> None:
    dense = torch.tensor([[0.0, -2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    wide = Code(torch.tensor([[1, 3], [2, 0], [0, 1]]), torch.tensor([[-2.0, 1.0], [0.0, 0.0], [3.0, 0.0]]), 4)
    for code in (dense, Code.from_dense(dense), wide):
        rows, latents, values = active_slots(code)
        assert (rows.tolist(), latents.tolist(), values.tolist()) == ([0, 0, 2], [1, 3, 0], [-2, 1, 3])
    with pytest.raises(ValueError, match="indices, values and pointers .* got list"):
        active_slots([1, 2])


def test_states_and_correlations_at_their_edges() -> None:
    config = SurvivalConfig(least=3)
    r = np.array([0.9, 0.8999, 0.5, 0.4999, np.nan, 1.0, np.nan, 0.2, 0.0])
    count_a = np.array([3, 3, 3, 3, 0, 2, 0, 2, 5])
    count_b = np.array([3, 3, 3, 3, 0, 2, 3, 3, 0])
    expected = ["kept", "blurred", "blurred", "lost", "silent", "rare", "new", "new", "lost"]
    assert states(r, count_a, count_b, config).tolist() == expected
    ones, zeros = np.array([4.0]), np.array([0.0])
    assert correlation(4, ones, ones, ones, ones, ones)[0] == 1  # one constant on both sides
    assert np.isnan(correlation(4, ones, ones, zeros, zeros, zeros)[0])
    assert math.isnan(spearman(np.array([1.0, 2.0]), np.array([1.0, 1.0])))
    assert spearman(np.array([3.0, 1.0, 2.0, 2.0]), np.array([9.0, 1.0, 4.0, 4.0])) == pytest.approx(1)


def test_the_spool_stops_for_good() -> None:
    spool = Spool(5)
    part = (torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    long = tuple(column.repeat(3) for column in part)
    spool.add([part, part], 1)
    spool.add([long, part], 2)
    spool.add([part, part], 3)
    assert spool.blocks == 1
    assert [len(column) for column in spool.take(0)] == [2, 2, 2]


def test_dictionary_agrees_with_the_evaluation_of_each_model(a: ModelHandle, b: ModelHandle) -> None:
    blocks, sae = some_blocks(), fitted(a)
    found = measured(DictionaryFit(SITE, sae, ce_tokens=None), a, b, blocks).summary
    for side, model in (("a", a), ("b", b)):
        expected, density = evaluate(model, SITE, sae, blocks)
        assert found[f"fvu_{side}"] == pytest.approx(expected.fvu, rel=1e-5)
        assert found[f"l0_{side}"] == pytest.approx(expected.l0)
        assert found[f"dead_{side}"] == pytest.approx(float((density == 0).double().mean()))
        assert found[f"ce_clean_{side}"] == pytest.approx(expected.ce_clean, rel=1e-5)
        assert found[f"ce_spliced_{side}"] == pytest.approx(expected.ce_spliced, rel=1e-5)
        assert found[f"ce_mean_{side}"] == pytest.approx(expected.ce_mean, rel=1e-4)
        assert found[f"ce_delta_{side}"] == pytest.approx(expected.ce_delta, abs=1e-5)
        assert found["excluded_share"] == pytest.approx(expected.excluded_share)


def test_losses_of_a_share_are_those_of_its_blocks(a: ModelHandle, b: ModelHandle) -> None:
    blocks, sae = some_blocks(8), fitted(a)
    part = measured(DictionaryFit(SITE, sae, ce_tokens=24), a, b, blocks, batch=4).summary
    chosen = blocks.select(torch.tensor([3, 7]))
    alone = measured(DictionaryFit(SITE, sae, ce_tokens=None), a, b, chosen).summary
    assert part["ce_tokens"] == alone["ce_tokens"] == 22
    assert part["ce_spliced_b"] == pytest.approx(alone["ce_spliced_b"], rel=1e-5)
    assert part["ce_clean_a"] == pytest.approx(alone["ce_clean_a"], rel=1e-5)
    none = measured(DictionaryFit(SITE, sae, ce_tokens=0), a, b, blocks).summary
    assert math.isnan(none["ce_spliced_a"])
    assert none["fvu_a"] == pytest.approx(part["fvu_a"])


def test_outliers_leave_both_models_alike(a: ModelHandle, b: ModelHandle) -> None:
    blocks, sae = some_blocks(), fitted(a)
    whole = measured(DictionaryFit(SITE, sae), a, b, blocks).summary
    part = measured(DictionaryFit(SITE, sae, outlier_norm=1.0), a, b, blocks).summary
    assert part["excluded_share"] > whole["excluded_share"] + 0.2
    survival = measured(Survival(SITE, sae, SurvivalConfig(outlier_norm=1.0)), a, b, blocks).summary
    assert survival["tokens"] == part["tokens"] < whole["tokens"]


def test_heads_are_scored_in_both_models(a: ModelHandle, b: ModelHandle) -> None:
    found = measured(Heads(threshold=0.05, sequences=3, half=6), a, b, some_blocks())
    rows = found.tables["heads"].to_pydict()
    assert rows["layer"] == [0] * 4 + [1] * 4 + [2] * 4
    assert rows["head"] == [0, 1, 2, 3] * 3
    for side, model in (("a", a), ("b", b)):
        scores = head_scores(model, sequences=3, half=6)
        for name in ("induction", "previous", "duplicate"):
            assert rows[f"{name}_{side}"] == pytest.approx(getattr(scores, name).flatten().tolist(), rel=1e-5)
    tokens = repeated_tokens(300, 0, sequences=3, half=6)
    x, y = (layer_patterns(model, tokens)[0][2][:, 1].double() for model in (a, b))
    rows_kl = []
    for s in range(3):
        for q in range(13):
            p, w = x[s, q, : q + 1], y[s, q, : q + 1]  # causal: the rest is 0
            rows_kl.append(float((p * (p / w).log()).sum()))
    assert rows["pattern_kl"][2 * 4 + 1] == pytest.approx(np.mean(rows_kl), rel=1e-4)
    kept = [x >= 0.05 and y >= 0.05 for x, y in zip(rows["previous_a"], rows["previous_b"], strict=True)]
    assert found.summary["previous_survived"] == sum(kept) > 0
    assert found.summary["previous_best_a"] == pytest.approx(max(rows["previous_a"]))


def test_lens_equals_loops(a: ModelHandle, b: ModelHandle) -> None:
    blocks = some_blocks()
    found = measured(Lens(positions=None), a, b, blocks)
    places = predictions(blocks)
    sites = [f"resid_post.{layer}" for layer in range(3)]
    lens: dict[str, list[Tensor]] = {}
    for side, model in (("a", a), ("b", b)):
        with capture(model, sites) as acts:
            model.logits(blocks.tokens.long())
        lens[side] = [
            torch.stack([lens_logits(model, acts[site])[i, p] for i, p in places]).double().log_softmax(-1)
            for site in sites
        ]
    targets = [int(blocks.tokens[i, p + 1]) for i, p in places]
    for layer, row in enumerate(found.tables["layers"].to_pylist()):
        x, y = lens["a"][layer], lens["b"][layer]
        assert row["site"] == sites[layer]
        assert row["kl_ab"] == pytest.approx(float((x.exp() * (x - y)).sum(-1).mean()), rel=1e-4)
        final = lens["b"][2]
        assert row["kl_final_b"] == pytest.approx(float((final.exp() * (final - y)).sum(-1).mean()), rel=1e-4, abs=1e-9)
        assert row["top1_agreement"] == pytest.approx(float((x.argmax(-1) == y.argmax(-1)).double().mean()))
        assert row["top1_final_a"] == pytest.approx(float((x.argmax(-1) == lens["a"][2].argmax(-1)).double().mean()))
        losses = [-float(x[i, target]) for i, target in enumerate(targets)]
        assert row["loss_a"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert row["entropy_b"] == pytest.approx(float(-(y.exp() * y).sum(-1).mean()), rel=1e-5)
    depths = []
    for i in range(len(places)):
        tops = [int(x[i].argmax()) for x in lens["a"]]
        depths.append(1 + tops.index(tops[-1]))
    assert found.summary["depth_a"] == pytest.approx(np.mean(depths))
    assert 1 <= found.summary["depth_a"] <= 3
    assert found.summary["positions"] == len(places)


def test_the_last_lens_is_the_behaviour(a: ModelHandle, b: ModelHandle) -> None:
    blocks = some_blocks()
    last = measured(Lens(), a, b, blocks).tables["layers"].to_pylist()[-1]
    behaviour = measured(Behaviour(), a, b, blocks).summary
    assert last["kl_ab"] == pytest.approx(behaviour["kl_mean"], rel=1e-6)
    assert last["loss_b"] == pytest.approx(behaviour["loss_b"], rel=1e-6)
    assert last["top1_agreement"] == behaviour["top1_agreement"]
    assert last["kl_final_a"] == last["kl_final_b"] == 0


def test_spread_is_even_and_does_not_depend_on_the_parts() -> None:
    whole = Spread(100, 17).next(100).tolist()
    assert len(whole) == 17
    assert {later - earlier for earlier, later in pairwise(whole)} <= {5, 6}
    parts, spread, begin = [], Spread(100, 17), 0
    for size in (1, 30, 9, 60):
        parts += [begin + int(i) for i in spread.next(size)]
        begin += size
    assert parts == whole
    assert Spread(5, None).next(5).tolist() == Spread(5, 99).next(5).tolist() == [0, 1, 2, 3, 4]
    assert Spread(5, 0).next(5).tolist() == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Behaviour(resamples=0), "resamples must be 1 or more, got 0"),
        (lambda: Drift(sample=0), "sample must be 1 token or more, got 0"),
        (lambda: Cka(rows=3), "rows must be 4 or more, got 3"),
        (lambda: SurvivalConfig(kept=0.4), "blurred=0.5, kept=0.4"),
        (lambda: SurvivalConfig(least=0), "least must be 1 token or more, got 0"),
        (lambda: Heads(threshold=0), r"threshold must lie in \(0, 1\], got 0"),
        (lambda: Lens(positions=0), "positions must be 1 or more, got 0"),
    ],
)
def test_impossible_settings_are_refused_with_numbers(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
