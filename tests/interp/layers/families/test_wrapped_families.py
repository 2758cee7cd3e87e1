"""Families around measures that stand by themselves: the same numbers, on the three architectures, in any batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from interp.data import Blocks
from interp.hooks import capture
from interp.layers.coding import CodingRates, Sparsity
from interp.layers.families import FAMILIES, OPTIONAL, build_families, default_families, family
from interp.layers.family import Batch, Family
from interp.layers.geometry import Geometry
from interp.layers.profile import profile
from interp.layers.result import COLUMNS, FamilyResult
from interp.layers.similarity import linear_cka
from interp.layers.spectra import Farms, spectra_rows
from interp.layers.stream import Contributions, is_parallel
from interp.layers.weights import block_matrices
from interp.models import ModelHandle
from interp.sites import Site

OWN = ["stream", "geometry", "similarity", "spectra", "coding"]


def text(blocks: int = 5, context: int = 12, seed: int = 0) -> Blocks:
    tokens = torch.randint(1, 300, (blocks, context), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    tokens[:, 0] = 0
    return Blocks(tokens, torch.ones_like(tokens, dtype=torch.bool), 1, True, 0)


def read(handle: ModelHandle, blocks: Blocks, kinds: tuple[str, ...]) -> dict[Site, Tensor]:
    sites = [Site(layer, kind) for layer in range(handle.n_layers) for kind in kinds]
    with capture(handle, sites) as acts:
        handle.forward(blocks.tokens)
    return {site: acts[site].flatten(2).clone() for site in sites}


def value(found: FamilyResult, measure: str, layer: int, part: str = "") -> float:
    rows = [r for r in found.layers.to_pylist() if (r["measure"], r["layer"], r["part"]) == (measure, layer, part)]
    assert len(rows) == 1, (measure, layer, part)
    return rows[0]["value"]


@pytest.mark.parametrize("name", OWN)
def test_every_family_returns_what_it_says(model: ModelHandle, name: str) -> None:
    found = profile(model, [name], blocks=text()).parts[name]
    assert found.result.layers.column_names == list(COLUMNS)
    rows = found.result.layers.to_pylist()
    assert {row["measure"] for row in rows} == {measure.name for measure in found.measures}
    assert {row["layer"] for row in rows} <= set(range(-1, model.n_layers))
    assert all(math.isfinite(row["value"]) for row in rows), [row for row in rows if not math.isfinite(row["value"])]
    assert all(row["low"] is None or row["low"] <= row["value"] <= row["high"] for row in rows)
    assert {(row["layer"], row["measure"]) for row in rows} >= {
        (layer, measure.name) for layer in range(model.n_layers) for measure in found.measures
    }


def test_stream_is_contributions(model: ModelHandle) -> None:
    blocks = text()
    alone = Contributions(model.n_layers, parallel=is_parallel(model))
    acts = read(model, blocks, ("resid_pre", "attn_out", "mlp_out", "resid_post"))
    alone.update(acts)
    found = profile(model, ["stream"], blocks=blocks).results["stream"]
    for row in alone.finish():
        layer = int(row["layer"])
        assert value(found, "share", layer, "mlp") == pytest.approx(row["mlp_share_mean"])
        assert value(found, "cosine", layer, "attn") == pytest.approx(row["attn_cosine_mean"], abs=1e-9)
        assert value(found, "norm", layer, "95%") == pytest.approx(row["norm_p95"])
        assert value(found, "norm_first", layer) == pytest.approx(row["norm_first"])


def test_geometry_coding_and_spectra_are_those_of_each_site_alone(model: ModelHandle) -> None:
    blocks = text()
    acts = read(model, blocks, ("resid_pre", "resid_post", "v", "mlp_act"))
    found = profile(model, ["geometry", "coding", "spectra"], blocks=blocks).results
    places = {-1: Site(0, "resid_pre"), 1: Site(1, "resid_post")}
    for layer, site in places.items():
        alone = Geometry()
        alone.update(acts[site])
        for name, expected in alone.finish().items():
            if name in ("participation_ratio", "anisotropy", "massive_first"):
                assert value(found["geometry"], name, layer) == pytest.approx(expected)
    rates, sparsity = CodingRates(), Sparsity()
    rates.update(acts[Site(2, "v")].unflatten(2, (model.n_kv_heads, -1)))
    sparsity.update(acts[Site(2, "mlp_act")])
    assert value(found["coding"], "head_rate", 2) == pytest.approx(rates.finish()["rate_mean"])
    assert value(found["coding"], "hoyer", 2) == pytest.approx(sparsity.finish()["hoyer_mean"])
    for row in spectra_rows(block_matrices(model), farms=Farms(64, aspect=1)):
        assert value(found["spectra"], "alpha_windows", int(row["layer"]), str(row["name"])) == row["alpha_windows"]


def test_similarity_is_cka_of_the_tokens_and_its_matrix_is_symmetric(model: ModelHandle) -> None:
    blocks = text()
    found = profile(model, ["similarity"], blocks=blocks).results["similarity"]
    acts = read(model, blocks, ("resid_pre", "resid_post"))
    x, y = (acts[site][:, 1:].flatten(0, 1) for site in (Site(0, "resid_pre"), Site(0, "resid_post")))
    assert value(found, "cka", 0) == pytest.approx(linear_cka(x, y), rel=1e-4)
    pairs = {(row["layer_a"], row["layer_b"]): row for row in found.tables["pairs"].to_pylist()}
    assert len(pairs) == (model.n_layers + 1) ** 2
    for (a, b), row in pairs.items():
        assert row["cka"] == pytest.approx(pairs[b, a]["cka"])
        assert 0 <= row["procrustes"] <= 1
        if a == b:
            assert row["cka"] == pytest.approx(1)
            assert row["knn"] == 1
    assert pairs[-1, 0]["cka"] == pytest.approx(linear_cka(x, y), rel=1e-4)  # the sample holds all tokens here


def test_a_sample_of_a_long_text_is_spread_over_it(gpt2: ModelHandle) -> None:
    one = family("similarity", {"tokens": 40, "sample": 20, "k": 3})
    found = profile(gpt2, [one], blocks=text(20)).results["similarity"]
    assert found.summary["rows"] == 3 * 11  # three blocks of twenty, without position 0
    assert found.summary["knn_chance"] == pytest.approx(3 / 19)


def test_an_outlier_at_position_0_changes_nothing_but_what_is_said_of_position_0(gpt2: ModelHandle) -> None:
    blocks = text()

    def results(factor: float) -> dict[str, FamilyResult]:
        families = build_families(["stream", "geometry"])
        for one in families:
            one.begin(gpt2, blocks)
        acts = read(gpt2, blocks, ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        for x in acts.values():
            x[:, 0] *= factor

        real = torch.ones(blocks.tokens.shape, dtype=torch.bool)
        keep = real.clone()
        keep[:, 0] = False
        for one in families:
            one.update(Batch(blocks.tokens.long(), real, keep, torch.zeros(5, 12, 300), acts))
        return {one.name: one.finish() for one in families}

    plain, huge = results(1.0), results(1024.0)
    for name in plain:
        for before, after in zip(plain[name].layers.to_pylist(), huge[name].layers.to_pylist(), strict=True):
            if before["measure"] == "norm_first":
                assert after["value"] == pytest.approx(1024 * before["value"])
            else:
                assert after == before
    assert huge["stream"].summary["first_over_rest"] > 500  # type: ignore[operator]


@pytest.mark.parametrize("name", ["stream", "geometry", "similarity", "coding", "lens", "gradients", "attention"])
@pytest.mark.parametrize("real", [0, 1])
def test_a_text_of_first_tokens_and_padding_is_refused(gpt2: ModelHandle, name: str, real: int) -> None:
    keep = torch.zeros(2, 9, dtype=torch.bool)
    keep[:, :1] = True
    tokens = torch.arange(18, dtype=torch.int32).view(2, 9)
    short = Blocks(tokens, keep, 1, True, 0) if real else Blocks(tokens[:, :1], keep[:, :1], 1, True, 0)
    with pytest.raises(ValueError, match=r"first token and padding|two tokens or more|2 tokens or more"):
        profile(gpt2, [name], blocks=short)


def test_the_table_of_families() -> None:
    assert set(OPTIONAL) <= set(FAMILIES)
    assert default_families() == [name for name in FAMILIES if name not in OPTIONAL]
    for name in FAMILIES:
        one = family(name)
        assert isinstance(one, Family)
        assert one.name == name
        assert len({measure.name for measure in one.measures}) == len(one.measures)
        assert all(measure.label and len(measure.label) <= 46 for measure in one.measures), one.measures
    with pytest.raises(ValueError, match="Unknown family 'streem'; did you mean 'stream'"):
        build_families(["streem"])
    with pytest.raises(ValueError, match="each once, got stream, stream"):
        build_families(["stream", "stream"])
    with pytest.raises(ValueError, match="A family has name"):
        build_families([object()])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="does not take"):
        family("stream", {"rows": 3})
    with pytest.raises(ValueError, match="Unknown rule for the tail"):
        family("spectra", {"rule": "other"})
    with pytest.raises(ValueError, match="k lie in 1..sample-1=9, got 8192 and 10"):
        family("similarity", {"sample": 10})
