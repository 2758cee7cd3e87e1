from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from interp.runs import start_run
from interp.sites import Site
from sae.features import FeaturesConfig, collection, describe_features, spool, tables
from sae.features.examples import GROUPS, PER_BLOCK
from sae.placement import Placement

RULES = ("topk", "abs_topk", "threshold")
SMALL = FeaturesConfig(n_top=5, n_quantiles=3, per_quantile=2, n_random=4, n_near_miss=3, window=2)


def columns(features: Any) -> dict[str, Any]:
    return {name: features.latents[name].to_numpy(zero_copy_only=False) for name in features.latents.column_names}


def everything(features: Any) -> dict[str, Any]:
    """Return all tables of a run."""
    return {name: features.run.table(name) for name in tables.SCHEMAS}


@pytest.mark.parametrize("rule", RULES)
def test_latents_equal_the_dense_definitions(rule: str, describe: Any, bench: Any, gpt2: Any) -> None:
    sae, blocks = bench.sae(rule), bench.blocks()
    dense = bench.dense(gpt2, sae, blocks)
    features = describe(sae, blocks, SMALL)
    found, kept = columns(features), int(dense.kept.sum())
    for latent in range(sae.d_sae):
        values = [float(dense.code[t, latent]) for t in dense.active(latent)]
        assert found["count"][latent] == len(values)
        assert found["density"][latent] == pytest.approx(len(values) / kept)
        assert found["second_moment"][latent] == pytest.approx(sum(v * v for v in values) / kept, rel=1e-4)
        encoder, decoder = sae.W_enc[latent].detach(), sae.W_dec[latent].detach()
        assert found["encoder_norm"][latent] == pytest.approx(float(encoder.norm()), rel=1e-5)
        assert found["decoder_norm"][latent] == pytest.approx(float(decoder.norm()), rel=1e-5)
        assert found["bias"][latent] == pytest.approx(float(sae.b_enc[latent].detach()))
        if float(encoder.norm()) > 0:
            cosine = float(encoder @ decoder / (encoder.norm() * decoder.norm()))
            assert found["enc_dec_cosine"][latent] == pytest.approx(cosine, abs=1e-5)
        if not values:
            assert all(features.latents[name][latent].as_py() is None for name in ("mean", "skew", "kurtosis", "max"))
            continue
        m2, m3, m4 = (sum(v**p for v in values) / len(values) for p in (2, 3, 4))
        assert found["mean"][latent] == pytest.approx(sum(values) / len(values), rel=1e-4, abs=1e-5)
        assert found["skew"][latent] == pytest.approx(m3 / m2**1.5, rel=1e-3, abs=1e-4)
        assert found["kurtosis"][latent] == pytest.approx(m4 / m2**2, rel=1e-3)
        assert found["max"][latent] == pytest.approx(max(values), rel=1e-4, abs=1e-5)
        assert found["min"][latent] == pytest.approx(min(values), rel=1e-4, abs=1e-5)
        assert features.histogram(latent).counts.sum() == len(values)
    summary = features.run.summary
    assert summary["tokens"] == kept
    assert summary["dead"] == sum(not dense.active(latent) for latent in range(sae.d_sae)) > 0
    assert summary["excluded_share"] == pytest.approx(1 - kept / int(blocks.keep.sum()))
    assert summary["examples"] == features.run.table(tables.EXAMPLES).num_rows


@pytest.mark.parametrize("rule", RULES)
def test_examples_equal_the_dense_definitions(rule: str, describe: Any, bench: Any, gpt2: Any) -> None:
    sae, blocks = bench.sae(rule), bench.blocks()
    dense, features = bench.dense(gpt2, sae, blocks), describe(sae, blocks, SMALL)
    words = gpt2.vocabulary()
    for latent in range(sae.d_sae):
        rows = features.examples(latent).to_pylist()
        active = dense.active(latent)
        assert [r["group"] for r in rows] == sorted((r["group"] for r in rows), key=GROUPS.index)
        for row in rows:
            token = row["block"] * dense.context + row["position"]
            assert dense.kept[token]
            assert (token in active) == (row["group"] != "near_miss")
            source = dense.pre if row["group"] == "near_miss" else dense.code
            assert row["value"] == pytest.approx(float(source[token, latent]), rel=1e-4, abs=1e-5)
            first = max(0, row["position"] - 2)
            last = min(int(dense.lengths[row["block"]]), row["position"] + 3)
            span = slice(row["block"] * dense.context + first, row["block"] * dense.context + last)
            assert row["start"] == first
            assert row["token_ids"] == dense.tokens[span].tolist()
            shown = np.where(dense.kept[span], dense.code[span, latent], 0)
            np.testing.assert_allclose(row["values"], shown, rtol=1e-4, atol=1e-5)
            assert (row["quantile"] >= 0) == (row["group"] == "quantile")
        top, bottom = ends_of(dense, latent, active)
        assert [r["block"] * dense.context + r["position"] for r in rows if r["group"] == "top"] == top
        assert [r["block"] * dense.context + r["position"] for r in rows if r["group"] == "bottom"] == bottom
        for column, end in (("top_tokens", top), ("bottom_tokens", bottom)):
            names = list(dict.fromkeys(words[dense.tokens[t]] for t in end))
            if features.signed or column == "top_tokens":
                assert features.latents[column][latent].as_py() == names[:5]
        end = max(top, bottom, key=lambda end: max((abs(dense.code[t, latent]) for t in end), default=0.0))
        if end:
            share = [count / len(end) for count in np.unique(dense.tokens[end], return_counts=True)[1]]
            entropy = -sum(p * math.log(p) for p in share)
            assert features.latents["token_entropy"][latent].as_py() == pytest.approx(entropy, abs=1e-5)
        assert len([r for r in rows if r["group"] == "random"]) == min(4, len(active))
        quantiles = [min(2, len(part)) for part in np.array_split(np.arange(len(active)), 3)]
        assert len([r for r in rows if r["group"] == "quantile"]) == sum(quantiles)


def ends_of(dense: Any, latent: int, active: list[int], n: int = 5) -> tuple[list[int], list[int]]:
    """Return the tokens with the largest and with the most negative activations, few from one block."""
    ends = []
    for sign in (1, -1):
        ranked = sorted(
            (t for t in active if sign * dense.code[t, latent] > 0), key=lambda t: -abs(dense.code[t, latent])
        )
        blocks = [t // dense.context for t in ranked]
        ends.append([t for i, t in enumerate(ranked) if blocks[:i].count(blocks[i]) < PER_BLOCK][:n])
    return ends[0], ends[1]


def test_signed_codes_are_described_at_both_ends(describe: Any, bench: Any, gpt2: Any) -> None:
    sae, blocks = bench.sae("abs_topk"), bench.blocks()
    features, dense = describe(sae, blocks, SMALL), bench.dense(gpt2, sae, blocks)
    found, kept = columns(features), int(dense.kept.sum())
    assert features.signed
    both = 0
    for latent in range(sae.d_sae):
        values = np.array([dense.code[t, latent] for t in dense.active(latent)])
        below = values[values < 0]
        assert found["count_negative"][latent] == len(below)
        assert found["density_negative"][latent] == pytest.approx(len(below) / kept)
        assert found["mean_negative"][latent] == pytest.approx(below.mean() if len(below) else np.nan, nan_ok=True)
        histogram = features.histogram(latent)
        assert histogram.negative.sum() == len(below)
        assert (histogram.negative <= histogram.counts).all()
        ends = [features.examples(latent, group)["value"].to_pylist() for group in ("top", "bottom")]
        assert all(value > 0 for value in ends[0])
        assert all(value < 0 for value in ends[1])
        if 0 < len(below) < len(values):
            both += 1
            assert ends[0][0] == pytest.approx(values.max(), rel=1e-4)
            assert ends[1][0] == pytest.approx(values.min(), rel=1e-4)
    assert features.run.summary["signed"] == both > 5
    assert f"{both} with both signs" in features._repr_html_()


@pytest.mark.parametrize("rule", ["topk", "threshold"])
def test_codes_of_one_sign_have_one_end_and_no_further_column(rule: str, describe: Any, bench: Any) -> None:
    features = describe(bench.sae(rule), bench.blocks(), SMALL)
    assert not features.signed
    assert not set(tables.SIGNED.names) & set(features.latents.column_names)
    assert features.histogram(1).negative is None
    assert features.run.table(tables.EXAMPLES, filters=[("group", "==", "bottom")]).num_rows == 0
    assert "signs" not in features._repr_html_()


@pytest.mark.parametrize("rule", ["topk", "threshold"])
def test_the_batches_change_nothing(rule: str, describe: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, blocks = bench.sae(rule), bench.blocks()
    usual = describe(sae, blocks, SMALL)
    monkeypatch.setattr(collection, "PIECE_SLOTS", 50)
    monkeypatch.setattr(spool, "CHUNK_SLOTS", 100)
    monkeypatch.setattr(spool, "IN_MEMORY", 1000)
    other = describe(sae, blocks, SMALL, batch_blocks=1)
    chosen = ["latent", "group", "rank", "quantile", "block", "position", "start", "token_ids"]
    usual_examples, other_examples = (f.run.table(tables.EXAMPLES) for f in (usual, other))
    assert usual_examples.select(chosen).equals(other_examples.select(chosen))
    for name, column in columns(usual).items():
        if column.dtype != object:
            np.testing.assert_allclose(columns(other)[name], column, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(
        usual.run.tensors(tables.HISTOGRAMS)["counts"].sum(1), other.run.tensors(tables.HISTOGRAMS)["counts"].sum(1)
    )
    for kind in ("decoder", "encoder", "coactivation"):
        assert usual.neighbours(3, kind).equals(other.neighbours(3, kind))


def test_the_same_request_gives_the_same_files(describe: Any, bench: Any) -> None:
    first, second = (describe(bench.sae(), bench.blocks(), SMALL) for _ in range(2))
    assert first.run.manifest["files"][tables.EXAMPLES] == second.run.manifest["files"][tables.EXAMPLES]
    assert all(table.equals(everything(second)[name]) for name, table in everything(first).items())


def test_tables_have_the_promised_columns_and_order(describe: Any, bench: Any, gpt2: Any) -> None:
    features = describe(bench.sae(), bench.blocks())
    for name, table in everything(features).items():
        assert table.schema.equals(tables.SCHEMAS[name]), name
        keys = table.column(0).to_pylist()
        assert keys == sorted(keys)
    assert features.vocabulary == gpt2.vocabulary()
    histograms = features.run.tensors(tables.HISTOGRAMS)
    counts, edges = histograms["counts"], histograms["edges"]
    assert counts.dtype == np.int64
    assert edges.dtype == np.float32
    assert counts.shape == (24, len(edges) - 1)
    assert counts.sum(1).tolist() == columns(features)["count"].tolist()
    logits = features.logits(4)
    assert logits["side"].to_pylist() == ["+"] * 10 + ["-"] * 10
    assert logits["rank"].to_pylist() == [*range(10), *range(10)]
    nearest = features.neighbours(4, "decoder")
    assert nearest["other"][0].as_py() == features.latents["nearest"][4].as_py()
    assert nearest["value"][0].as_py() == features.latents["nearest_cosine"][4].as_py()


def test_padding_and_bos_are_in_no_statistic(describe: Any, bench: Any) -> None:
    sae, blocks = bench.sae(), bench.blocks(padded=True)
    other = blocks.tokens.clone()
    other[~blocks.keep] = 77  # what stands in the padding must not matter
    one, two = describe(sae, blocks, SMALL), describe(sae, replace(blocks, tokens=other), SMALL)
    assert one.latents.equals(two.latents)
    assert one.run.table(tables.EXAMPLES).equals(two.run.table(tables.EXAMPLES))
    centres = one.run.table(tables.EXAMPLES).to_pylist()
    assert all(blocks.keep[r["block"], r["position"]] and blocks.tokens[r["block"], r["position"]] for r in centres)


def test_nothing_wanted_leaves_the_statistics(describe: Any, bench: Any) -> None:
    nothing = FeaturesConfig(0, 0, 0, 0, 0, 0, 0, 0)
    features = describe(bench.sae(), bench.blocks(), nothing)
    assert features.run.summary["examples"] == 0
    assert features.examples(0).num_rows == features.logits(0).num_rows == features.neighbours(0).num_rows == 0
    assert sum(columns(features)["count"]) > 0
    assert features.latents["nearest"].null_count == 0


def test_a_dictionary_of_one_latent_that_is_dead(describe: Any, bench: Any) -> None:
    sae = bench.sae("threshold", d_sae=1)
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.fill_(-1)
    features = describe(sae, bench.blocks(), SMALL)
    assert features.run.summary["dead"] == 1
    assert features.run.summary["median_density"] == 0
    assert features.examples(0)["group"].to_pylist() == ["near_miss"] * 3
    assert features.latents["nearest"][0].as_py() is None


def test_rows_that_are_not_finite_or_too_long_are_left_out_and_counted(
    describe: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, blocks = bench.sae(), bench.blocks(padded=False)
    true = Placement.activations

    def damaged(place: Placement, tokens: torch.Tensor, sites: tuple[Site, ...]) -> Any:
        found = true(place, tokens, sites)
        x = found[0][sites[0]] = found[0][sites[0]].clone()
        x[tokens == blocks.tokens[3, 5]] = torch.nan
        x[tokens == blocks.tokens[4, 5]] *= 1e4
        return found

    bad, long = (int((blocks.tokens == blocks.tokens[block, 5]).sum()) for block in (3, 4))
    monkeypatch.setattr(Placement, "activations", damaged)
    features = describe(sae, blocks, replace(SMALL, outlier_norm=50.0))
    usable = int((blocks.tokens != 0).sum())
    assert features.run.summary["nonfinite"] == bad > 0
    assert features.run.summary["tokens"] == usable - bad - long
    assert np.isfinite(columns(features)["second_moment"]).all()


def test_text_of_which_nothing_is_kept_is_refused(bench: Any, describe: Any) -> None:
    blocks = bench.blocks(4)
    with pytest.raises(ValueError, match="None of the 61 positions can be described: 0 are NaN or infinite"):
        describe(bench.sae(), replace(blocks, tokens=torch.zeros_like(blocks.tokens)))


def test_a_dictionary_in_training_is_refused(bench: Any, describe: Any) -> None:
    with pytest.raises(ValueError, match=r"evaluation mode, where a token's code is its own; call sae\.eval"):
        describe(bench.sae().train(), bench.blocks())


def test_a_dictionary_of_another_width_is_refused(bench: Any, describe: Any) -> None:
    with pytest.raises(ValueError, match=r"d_in=16 numbers, but resid_post\.1 has 32"):
        describe(bench.sae(d_in=16), bench.blocks())


def test_a_stopped_description_leaves_nothing_behind_but_an_unfinished_run(
    bench: Any, gpt2: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", 10)

    def stop(done: int, total: int, unit: str) -> None:
        if unit == "latents":
            raise KeyboardInterrupt

    run = start_run("features", {}, slug="stopped", root=tmp_path)
    with pytest.raises(KeyboardInterrupt), run:
        describe_features(gpt2, bench.site, bench.sae(), bench.blocks(), run, on_progress=stop)
    assert run.status == "interrupted"
    assert [path.name for path in run.path.iterdir() if "parquet" in path.name] == []


def test_no_matrix_of_tokens_by_latents_is_ever_made(
    describe: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.overrides import TorchFunctionMode

    sae, blocks = bench.sae(d_sae=40), bench.blocks(60)
    batch, largest = 4, [0]

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor) and sae.d_sae in tensor.shape:
                    largest[0] = max(largest[0], tensor.numel())
            return out

    calls: list[int] = []
    monkeypatch.setattr(type(sae), "decode", lambda *_: calls.append(1))
    with Watch():
        describe(sae, blocks, SMALL, batch_blocks=batch)
    assert largest[0] <= max(batch * blocks.context * sae.d_sae, sae.d_sae * 300)
    assert largest[0] < blocks.tokens.numel() * sae.d_sae / 2
    assert not calls
