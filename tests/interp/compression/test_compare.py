"""Comparing two models as a whole: exactly nothing with itself, other batches, what is refused, and the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.compression.compare import Comparison, build_panels, compare, load_results, open_pair
from interp.compression.panel import Pair, Panel, PanelResult
from interp.compression.panels import ON_REQUEST, PANELS, DictionaryFit, Survival
from interp.compression.panels.survival import SurvivalConfig
from interp.data import Blocks
from interp.models import ModelHandle, ModelSpec, load_model
from interp.runs import start_run
from interp.sites import Site
from sae.config import SaeConfig
from sae.model import Sae
from tests.conftest import build_tokenizer
from tests.interp.compression.pairs import SITE, copy_of, fitted, some_blocks


def everything(model: ModelHandle) -> list[str | Panel]:
    sae = fitted(model)
    given = {"survival": Survival(SITE, sae, SurvivalConfig(least=2)), "dictionary": DictionaryFit(SITE, sae)}
    return [given.get(name, name) for name in PANELS if name not in ON_REQUEST]


def assert_nothing_differs(found: Comparison) -> None:
    results = {name: (result.summary, result.tables) for name, result in found.results.items()}
    summary, tables = results["behaviour"]
    assert summary["loss_a"] == summary["loss_b"]
    zeros = ("loss_delta", "loss_delta_low", "loss_delta_high", "kl_mean", "kl_median", "kl_q99", "kl_max")
    assert [summary[key] for key in zeros] == [0.0] * len(zeros)
    assert summary["top1_agreement"] == 1
    assert set(tables["quantiles"]["kl"].to_pylist()) == set(tables["blocks"]["kl"].to_pylist()) == {0.0}
    layers = results["drift"][1]["layers"]
    for column in ("relative_error", "first_relative_error"):
        assert set(layers[column].to_pylist()) == {0.0}
    for column in ("cosine", "cosine_p5", "norm_ratio", "first_cosine"):
        assert set(layers[column].to_pylist()) == {1.0}
    assert set(layers["sqnr_db"].to_pylist()) == {math.inf}
    assert set(results["cka"][1]["layers"]["cka"].to_pylist()) == {1.0}
    summary, tables = results["survival"]
    assert summary["kept"] == summary["active"] > 0
    assert summary["lost"] == summary["blurred"] == summary["new"] == 0
    assert summary["median_r"] == summary["jaccard"] == 1
    latents = tables["latents"].to_pydict()
    assert {r for r in latents["r"] if r is not None} == {1.0}
    assert all(latents[f"{key}_a"] == latents[f"{key}_b"] for key in ("density", "peak", "mean"))
    assert tables["examples"]["values_a"].to_pylist() == tables["examples"]["values_b"].to_pylist()
    summary, _ = results["dictionary"]
    pairs = [key[:-2] for key in summary if key.endswith("_a")]
    assert len(pairs) == 8
    assert [summary[f"{key}_a"] for key in pairs] == pytest.approx(
        [summary[f"{key}_b"] for key in pairs], rel=0, abs=0, nan_ok=True
    )
    summary, tables = results["heads"]
    heads = tables["heads"].to_pydict()
    assert all(heads[f"{key}_a"] == heads[f"{key}_b"] for key in ("induction", "previous", "duplicate"))
    assert set(heads["pattern_kl"]) == {0.0}
    summary, tables = results["lens"]
    assert summary["depth_delta"] == 0
    assert set(tables["layers"]["kl_ab"].to_pylist()) == {0.0}
    assert set(tables["layers"]["top1_agreement"].to_pylist()) == {1.0}


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_two_loaded_copies_differ_by_exactly_nothing(family: str) -> None:
    a, b = copy_of(family), copy_of(family)
    assert a is not b
    assert_nothing_differs(compare(a, b, everything(a), blocks=some_blocks(20)))


def test_a_model_and_itself_differ_by_exactly_nothing(gpt2: ModelHandle) -> None:
    assert_nothing_differs(compare(gpt2, gpt2, everything(gpt2), blocks=some_blocks(20)))


def test_equal_specifications_are_one_model(model_folder: Path) -> None:
    a, b = open_pair(str(model_folder), ModelSpec(str(model_folder)), device="cpu")
    assert a is b


def test_damage_shows_in_every_panel_and_grows() -> None:
    a, blocks = copy_of(), some_blocks(20)
    small, large = (compare(a, copy_of(noise=noise), everything(a), blocks=blocks).results for noise in (0.02, 0.2))

    def figure(results: dict[str, PanelResult], panel: str, key: str) -> Any:
        return results[panel].summary[key]

    for panel, key in (("behaviour", "kl_mean"), ("drift", "relative_error_last"), ("heads", "pattern_kl_mean")):
        assert 0 < figure(small, panel, key) < figure(large, panel, key)
    for panel, key in (("behaviour", "top1_agreement"), ("cka", "cka_min"), ("survival", "median_r")):
        assert 1 >= figure(small, panel, key) > figure(large, panel, key)
    assert figure(small, "dictionary", "fvu_b") < figure(large, "dictionary", "fvu_b")
    assert figure(small, "dictionary", "fvu_a") == figure(large, "dictionary", "fvu_a")


def test_other_batches_and_panels_by_themselves_give_the_same_numbers() -> None:
    a, b, blocks = copy_of(), copy_of(noise=0.05), some_blocks(9)
    whole = compare(a, b, everything(a), blocks=blocks, batch_blocks=9).results
    parts = compare(a, b, everything(a), blocks=blocks, batch_blocks=2).results
    alone = compare(a, b, ["drift"], blocks=blocks).results
    for panel, result in whole.items():
        numbers = {key: value for key, value in result.summary.items() if not isinstance(value, str)}
        found = {key: parts[panel].summary[key] for key in numbers}
        assert found == pytest.approx(numbers, rel=1e-4, abs=1e-6, nan_ok=True)
    assert alone["drift"].summary == pytest.approx(whole["drift"].summary, rel=1e-6)
    # An interval at 95 % is drawn from the same blocks.
    assert whole["behaviour"].summary["loss_delta_low"] < whole["behaviour"].summary["loss_delta"]


class Norms:
    """A panel of somebody else's."""

    name = "norms"

    def sites(self, a: ModelHandle) -> tuple[Site, ...]:
        return (Site(0, "head_out"),)

    def begin(self, a: ModelHandle, b: ModelHandle, blocks: Blocks) -> None:
        self.rows, self.numbers = 0, []

    def update(self, pair: Pair) -> None:
        x, y = pair.rows(Site(0, "head_out"))
        assert x.shape == y.shape == (int(pair.keep.sum()), 32)
        self.rows += len(x)
        self.numbers += pair.numbers.tolist()

    def finish(self) -> PanelResult:
        return PanelResult({"rows": self.rows}, {})


def test_anything_with_the_methods_is_a_panel(gpt2: ModelHandle) -> None:
    panel, heard = Norms(), []
    found = compare(
        gpt2,
        gpt2,
        ["behaviour", panel],
        blocks=some_blocks(),
        batch_blocks=3,
        on_progress=lambda *told: heard.append(told),
    )
    assert list(found.results) == ["behaviour", "norms"]
    assert found.results["norms"].summary == {"rows": 7 + 6 * 11 - 1}  # neither padding nor BOS, also within a block
    assert panel.numbers == list(range(7))
    assert heard == [(3, 7, "blocks"), (6, 7, "blocks"), (7, 7, "blocks"), (1, 2, "panels"), (2, 2, "panels")]
    assert "norms" in found._repr_html_()


def test_panels_are_checked() -> None:
    assert [panel.name for panel in build_panels()] == ["behaviour", "drift", "cka", "heads", "lens"]
    for panels, message in (
        (["behavior"], "behaviour"),
        (["survival"], r"survival needs a dictionary: pass Survival\(site, dictionary\)"),
        ([], "at least one, each once, got none"),
        (["drift", "drift"], "each once, got drift, drift"),
        ([object()], "A panel has name, sites, begin, update and finish, got object"),
    ):
        with pytest.raises(ValueError, match=message):
            build_panels(panels)


def test_models_that_do_not_fit_are_refused_with_numbers(make_module: Any, gpt2: ModelHandle) -> None:
    blocks = some_blocks()

    def loaded(**changes: Any) -> ModelHandle:
        return load_model(make_module("gpt2", **changes), tokenizer=build_tokenizer())

    with pytest.raises(ValueError, match="has 300 tokens, .* 320"):
        compare(gpt2, loaded(vocab_size=320), blocks=blocks)
    with pytest.raises(ValueError, match="has no tokenizer, so it cannot be told whether its 300 tokens"):
        compare(gpt2, load_model(make_module("gpt2")), blocks=blocks)
    with pytest.raises(ValueError, match=r"The panel drift looks at attn_out.2 .* it has 2 layers, .* 3. Leave"):
        compare(gpt2, loaded(n_layer=2), ["drift"], blocks=blocks)
    with pytest.raises(ValueError, match="attn_out.0 is 32 wide in a and 48 in b"):
        compare(gpt2, loaded(n_embd=48), ["drift"], blocks=blocks)
    with pytest.raises(ValueError, match="a has 3 layers of 4 heads and b 3 of 2"):
        compare(gpt2, loaded(n_head=2), ["heads"], blocks=blocks)
    with pytest.raises(ValueError, match="reads n_ctx=8 tokens at most, got blocks of 12"):
        compare(gpt2, loaded(n_positions=8), ["behaviour"], blocks=blocks)
    # Outputs and geometry can be compared all the same.
    wide = compare(gpt2, loaded(n_embd=48), ["behaviour", "cka"], blocks=blocks).results
    assert wide["cka"].tables["layers"].num_rows == 9


def test_another_vocabulary_of_the_same_size_is_refused(make_module: Any, gpt2: ModelHandle) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    text = build_tokenizer().backend_tokenizer.to_str()
    swapped = text.replace('"a":', '"SWAP":').replace('"b":', '"a":').replace('"SWAP":', '"b":')
    assert swapped != text
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(swapped), bos_token="<|endoftext|>")
    with pytest.raises(ValueError, match=r"2 of 300 tokens differ, the first is \d+: '.' in .*, '.' in"):
        compare(gpt2, load_model(make_module("gpt2"), tokenizer=other), blocks=some_blocks())


def test_a_dictionary_that_does_not_fit_is_refused(gpt2: ModelHandle) -> None:
    wide = Sae(SaeConfig(64, 80, "topk", {"k": 4})).eval()
    for panel in (Survival, DictionaryFit):
        with pytest.raises(ValueError, match=r"d_in=64 numbers, but resid_post.1 of model a .* has 32"):
            compare(gpt2, gpt2, [panel(SITE, wide)], blocks=some_blocks())
        with pytest.raises(ValueError, match="resid_post.7 lies beyond this model"):
            compare(gpt2, gpt2, [panel("resid_post.7", wide)], blocks=some_blocks())
        elsewhere = fitted(gpt2).to("meta")
        with pytest.raises(ValueError, match="The dictionary is on meta and model a .* on cpu; put both on one device"):
            compare(gpt2, gpt2, [panel(SITE, elsewhere)], blocks=some_blocks())


def test_b_goes_to_where_a_is(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.compression import compare as module

    asked: list[Any] = []

    def load(spec: Any, device: Any) -> ModelHandle:
        asked.append(device)
        return load_model(spec, device="cpu")

    monkeypatch.setattr(module, "load_model", load)
    a = load_model(str(model_folder), device="cpu")
    open_pair(a, str(model_folder))
    open_pair(a, str(model_folder), "cpu:0")
    assert asked == [a.device, "cpu:0"]


def test_hooks_and_weights_are_left_as_they_were() -> None:
    a, b, blocks = copy_of(), copy_of(noise=0.05), some_blocks()
    before = [a.logits(blocks.tokens.long()), b.logits(blocks.tokens.long())]
    digests = a.digest(), b.digest()
    compare(a, b, everything(a), blocks=blocks)
    assert torch.equal(a.logits(blocks.tokens.long()), before[0])
    assert torch.equal(b.logits(blocks.tokens.long()), before[1])
    for model, digest in zip((a, b), digests, strict=True):
        model._digest = None
        assert model.digest() == digest


def test_a_saved_comparison_is_read_back(gpt2: ModelHandle, tmp_path: Path) -> None:
    found = compare(gpt2, copy_of(noise=0.05), everything(gpt2), blocks=some_blocks())
    with start_run("compare", {"x": 1}, slug="x", root=tmp_path) as run:
        found.save(run)
        with pytest.raises(ValueError, match="is no finished comparison"):
            load_results(run)
        run.finish({})
    assert {"behaviour.blocks.parquet", "survival.examples.parquet", "vocab.parquet", "summary.json"} <= set(run.files)
    assert run.table("vocab.parquet")["text"].to_pylist() == gpt2.vocabulary()
    back = load_results(run)
    assert list(back) == list(found.results)
    for name, result in found.results.items():
        for key, table in result.tables.items():
            assert back[name].tables[key].equals(table)
        finite = {k: v for k, v in result.summary.items() if not isinstance(v, float) or math.isfinite(v)}
        assert {key: back[name].summary[key] for key in finite} == finite
