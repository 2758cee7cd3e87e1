"""The causal cone against whole forwards, and when it is not trusted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp.attribution import Cell, measure_cells, patch_map
from interp.attribution.patching.cone import Cone
from interp.compression.steps import ActivationNoise, QuantiseActivations, SkipLayers
from interp.hooks import capture, patch
from interp.models import ModelHandle, load_model
from interp.sites import Site
from interp.tasks import Pairs

KINDS = ("resid_pre", "q", "k", "v", "head_out", "attn_out", "resid_mid", "mlp_act", "mlp_out", "resid_post")


def difference(
    model: ModelHandle, pairs: Pairs, parts: tuple[str, ...] = ("pos",), direction: str = "denoising"
) -> float:
    """Return the largest difference between the two ways, which must be two and say something."""
    kinds = [kind for kind in KINDS if model.sites(f"{kind}.*")]
    found = {
        path: patch_map(model, pairs, kinds, parts=parts, direction=direction, exact_path=path, batch=50)
        for path in ("cone", "full")
    }
    assert [one.about["exact_path"] for one in found.values()] == ["cone", "full"]
    each = [np.array(one.nodes["per_prompt"].to_pylist()) for one in found.values()]
    exact = [one.nodes["score"].to_numpy() for one in found.values()]  # per_prompt is kept in single precision
    assert np.abs(each[1]).max() > 0.05
    return float(np.abs(exact[0] - exact[1]).max())


@pytest.mark.parametrize("parts", [("pos", "head"), ("head",), ()])
def test_single_precision_agrees(model: ModelHandle, pairs: Pairs, parts: tuple[str, ...]) -> None:
    assert difference(model, pairs, parts) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_double_precision_agrees(make_module: Callable[..., nn.Module], make_pairs: Callable, family: str) -> None:
    pairs = make_pairs(n_pos=4)
    model = load_model(make_module(family).double())
    assert model.logits(pairs.clean).dtype == torch.float64
    assert difference(model, pairs, ("pos", "head")) < 1e-10
    assert difference(model, pairs, ("pos",), "noising") < 1e-10


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_attention_that_forms_its_pattern_agrees(
    make_model: Callable[..., ModelHandle], pairs: Pairs, family: str
) -> None:
    assert difference(make_model(family, attn_implementation="eager"), pairs) < 1e-5


def test_blocks_one_after_the_other_agree(make_model: Callable[..., ModelHandle], pairs: Pairs) -> None:
    model = make_model("neox", use_parallel_residual=False)
    assert model.sites("resid_mid.*")
    assert difference(model, pairs) < 1e-5


def test_sets_of_cells_agree(model: ModelHandle, pairs: Pairs, by_definition: Callable[..., Tensor]) -> None:
    sets = [
        [Cell("resid_pre", 1, 3), Cell("mlp_out", 0, 4), Cell("head_out", 2, -1, 1)],
        [Cell("resid_post", 0, 2), Cell("resid_pre", 1, 2), Cell("k", 1, 2, 0)],
        [Cell("v", 0, None, 1), Cell("q", 0, 4), Cell("attn_out", 2)],
        [Cell("attn_out", 1, 2), Cell("attn_out", 1, 4)],
        [Cell("q", 1, 2), Cell("mlp_act", 1, 2, None, 7), Cell("resid_post", 2, 3)],
        Cell("mlp_out", 2, 4),
    ]
    cone = measure_cells(model, pairs, sets)
    full = measure_cells(model, pairs, sets, exact_path="full")
    assert (cone.path, full.path, cone.reason) == ("cone", "full", "")
    np.testing.assert_allclose(cone.per_prompt, full.per_prompt, atol=1e-5)

    def put_rows(*places: int) -> Callable[[Tensor, Tensor], None]:
        def put(value: Tensor, source: Tensor) -> None:
            value[:, places] = source[:, places]

        return put

    wanted = by_definition(model, pairs, [("attn_out.1", put_rows(2, 4))])
    np.testing.assert_allclose(cone.per_prompt[3], wanted, atol=1e-5)
    first = sets[0]
    assert isinstance(first, list)

    def put_head(value: Tensor, source: Tensor) -> None:
        value[:, -1, 1] = source[:, -1, 1]

    cells = [("resid_pre.1", put_rows(3)), ("mlp_out.0", put_rows(4)), ("head_out.2", put_head)]
    np.testing.assert_allclose(cone.per_prompt[0], by_definition(model, pairs, cells), atol=1e-5)


def test_a_cell_computed_anew_with_its_own_value_changes_nothing(model: ModelHandle, pairs: Pairs) -> None:
    sites = [site for site in model.sites() if site.kind != "pattern"]
    with capture(model, sites) as acts:
        logits = model.logits(pairs.clean)
    engine, rows = Cone(model, pairs.clean, 2), torch.arange(2)
    for first in (0, 2, 4):
        for site in sites:
            found = engine([(Cell(site.kind, site.layer, first),)] * 2, rows, dict(acts), rows, first)
            torch.testing.assert_close(found, logits[:, -2:], atol=1e-5, rtol=0)


def test_blocks_below_and_positions_before_are_not_run(gpt2: ModelHandle, pairs: Pairs) -> None:
    seen: list[tuple[int, int]] = []
    blocks = list(gpt2.module.transformer.h)
    engine, rows = Cone(gpt2, pairs.corrupt, 1), torch.arange(2)
    with capture(gpt2, "attn_out.1") as acts:
        gpt2.logits(pairs.clean)
    hooks = [
        block.register_forward_pre_hook(lambda _m, args, layer=layer: seen.append((layer, args[0].shape[1])))
        for layer, block in enumerate(blocks)
    ]
    try:
        engine([(Cell("attn_out", 1, 2),)] * 2, rows, {Site(1, "attn_out"): acts["attn_out.1"]}, rows, 2)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == [(1, 1), (2, 2), (2, 1)]  # block 1 at position 2 alone, block 2: keys of 2 and 3, and all of 4


def test_rows_stay_within_the_batch(llama: ModelHandle, pairs: Pairs) -> None:
    sizes: list[int] = []
    hook = llama.module.model.layers[2].mlp.register_forward_hook(lambda _m, args, _o: sizes.append(len(args[0])))
    try:
        patch_map(llama, pairs, "resid_pre", batch=4, exact_path="full")
        assert max(sizes) == 4
    finally:
        hook.remove()
    engine = Cone(llama, pairs.clean, 1)
    assert all(keys.shape == (2, 2, 5, 8) for keys, _ in engine.past)


def test_steps_that_look_at_whole_texts_are_run_whole(make_model: Callable[..., ModelHandle], pairs: Pairs) -> None:
    for step in (ActivationNoise(0.1), QuantiseActivations(8)):
        model = make_model("gpt2")
        step.attach(model)
        found = patch_map(model, pairs, "resid_pre.1")
        assert found.about["exact_path"] == "full"
        assert "may depend on whole sequences" in found.about["why_full"]


def test_skipped_layers_are_skipped_in_the_cone(make_model: Callable[..., ModelHandle], pairs: Pairs) -> None:
    for family in ("gpt2", "llama"):
        model = make_model(family)
        SkipLayers((1,)).attach(model)
        assert difference(model, pairs) < 1e-5
        found = patch_map(model, pairs, ["attn_out", "mlp_out"], parts=())
        assert found.about["exact_path"] == "cone"
        assert found.map("attn_out")[1] == 0  # in either run the skipped layer adds nothing
        assert found.map("attn_out")[2] != 0


def test_an_open_hook_of_the_user_is_kept(gpt2: ModelHandle, pairs: Pairs) -> None:
    with patch(gpt2, "resid_post.0", lambda x: x.flip(1)):
        found = patch_map(gpt2, pairs, "resid_pre.2", parts=())
        assert found.about["exact_path"] == "full"
        clean = gpt2.logits(pairs.clean)[:, -1]
    rows = torch.arange(2)
    wanted = (clean[rows, pairs.correct[:, 0]] - clean[rows, pairs.wrong[:, 0]]).mean()
    assert found.values["clean"] == pytest.approx(float(wanted), abs=1e-5)
    plain = patch_map(gpt2, pairs, "resid_pre.2", parts=())
    assert abs(plain.values["clean"] - found.values["clean"]) > 1e-3


def test_a_model_that_is_more_than_its_blocks_is_run_whole(
    make_model: Callable[..., ModelHandle], pairs: Pairs
) -> None:
    model = make_model("gpt2")
    plain = model.module.forward

    def capped(**given: object) -> object:
        found = plain(**given)
        found.logits = 3 * torch.tanh(found.logits / 3)
        return found

    model.module.forward = capped
    found = patch_map(model, pairs, "resid_pre.1", parts=())
    assert found.about["exact_path"] == "full"
    assert "more than its blocks" in found.about["why_full"]
    assert found.nodes["score"][0].as_py() == pytest.approx(found.effect, abs=1e-5)
