"""Maps against the definition of patching, peers, and models whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.attribution import Attribution, patch_map
from interp.models import ModelHandle, load_model
from interp.tasks import Custom, Pairs, SequenceLogProb

STREAM = ("resid_pre", "attn_out", "resid_mid", "mlp_act", "mlp_out", "resid_post")
HEADS = ("q", "k", "v", "head_out")


def kinds_of(model: ModelHandle, kinds: tuple[str, ...]) -> list[str]:
    return [kind for kind in kinds if model.sites(f"{kind}.*")]


def scores(found: Attribution) -> np.ndarray:
    return found.nodes["score"].to_numpy()


@pytest.mark.parametrize("path", ["cone", "full"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_cells_have_the_effect_of_the_definition(
    model: ModelHandle, pairs: Pairs, by_definition: Callable[..., Tensor], path: str, direction: str
) -> None:
    found = patch_map(
        model, pairs, kinds_of(model, STREAM), direction=direction, positions=[2, -1], exact_path=path, batch=5
    )
    assert found.about["exact_path"] == path
    for row in found.nodes.to_pylist():

        def put(value: Tensor, source: Tensor, pos: int = row["pos"]) -> None:
            value[:, pos] = source[:, pos]

        wanted = by_definition(model, pairs, [(f"{row['kind']}.{row['layer']}", put)], direction)
        np.testing.assert_allclose(row["per_prompt"], wanted, atol=1e-5)
    assert np.abs(scores(found)).max() > 0.01


@pytest.mark.parametrize("path", ["cone", "full"])
def test_heads_have_the_effect_of_the_definition(
    model: ModelHandle, pairs: Pairs, by_definition: Callable[..., Tensor], path: str
) -> None:
    sites = ["q.1", "k.0", "v.2", "head_out.1"]
    found = patch_map(model, pairs, sites, parts=("pos", "head"), positions=[3], exact_path=path)
    whole = patch_map(model, pairs, ["q.2", "k.1", "v.0", "head_out.0"], parts=("head",), exact_path=path)
    assert found.map("k").shape == (1, 4, model.n_kv_heads)
    for row in (*found.nodes.to_pylist(), *whole.nodes.to_pylist()):

        def put(value: Tensor, source: Tensor, pos: int | None = row["pos"], head: int = row["head"]) -> None:
            where = slice(None) if pos is None else pos
            value[:, where, head] = source[:, where, head]

        wanted = by_definition(model, pairs, [(f"{row['kind']}.{row['layer']}", put)])
        np.testing.assert_allclose(row["per_prompt"], wanted, atol=1e-5)


def test_pattern_is_patched_in_the_bridge(
    model: ModelHandle, pairs: Pairs, by_definition: Callable[..., Tensor]
) -> None:
    found = patch_map(model, pairs, ["pattern.1"], parts=("pos", "head"), positions=[4])
    assert found.about["exact_path"] == "full"
    assert "bridge" in found.about["why_full"]
    for row in found.nodes.to_pylist():

        def put(value: Tensor, source: Tensor, head: int = row["head"]) -> None:
            value[:, head, 4] = source[:, head, 4]

        wanted = by_definition(model, pairs, [("pattern.1", put)], view="bridge")
        np.testing.assert_allclose(row["per_prompt"], wanted, atol=1e-5)
    assert np.abs(scores(found)).max() > 1e-4


def test_neurons_and_positions_can_be_chosen(
    gpt2: ModelHandle, pairs: Pairs, by_definition: Callable[..., Tensor]
) -> None:
    found = patch_map(gpt2, pairs, "mlp_act", parts=("neuron",), neurons=[5, 9], positions=[1, 3])
    assert found.nodes["neuron"].to_pylist() == [5, 9] * 3
    assert found.parts("mlp_act") == ("neuron",)

    def put(value: Tensor, source: Tensor) -> None:
        value[:, [1, 3], 9] = source[:, [1, 3], 9]

    np.testing.assert_allclose(
        found.nodes["per_prompt"].to_pylist()[3], by_definition(gpt2, pairs, [("mlp_act.1", put)]), atol=1e-5
    )


def test_the_whole_stream_restores_the_clean_run(model: ModelHandle, pairs: Pairs) -> None:
    found = patch_map(model, pairs, ["resid_pre", "resid_post.2"], parts=())
    np.testing.assert_allclose(scores(found), found.effect, atol=1e-5)
    assert abs(found.effect) > 0.01
    by_position = patch_map(model, pairs, "resid_pre")
    assert by_position.completeness["part"].to_pylist() == ["pos"] * 3
    np.testing.assert_allclose(by_position.completeness["total"], found.effect, atol=1e-5)
    sums = by_position.map("resid_pre").sum(1)
    np.testing.assert_allclose(by_position.completeness["explained"], sums, atol=1e-9)
    np.testing.assert_allclose(by_position.completeness["gap"], found.effect - sums, atol=1e-5)


def test_its_own_value_changes_nothing(model: ModelHandle, pairs: Pairs) -> None:
    same = Pairs("same", pairs.clean, pairs.clean, pairs.correct, pairs.wrong)
    found = patch_map(model, same, [*kinds_of(model, STREAM), *HEADS])
    assert not scores(found).any()
    assert found.values["rows_run"] == 0
    before = patch_map(model, pairs, kinds_of(model, STREAM), positions=[0])  # the pairs differ from position 1 on
    assert not scores(before).any()


def test_exchanging_clean_and_corrupted_turns_the_sign(model: ModelHandle, pairs: Pairs) -> None:
    metric = Custom(lambda logits, rows: logits[:, -1, 7] - logits[:, -1, 8])
    one = patch_map(model, pairs, ["resid_pre", "head_out"], metric=metric, direction="noising")
    other = patch_map(model, pairs.swapped(), ["resid_pre", "head_out"], metric=metric, direction="denoising")
    np.testing.assert_allclose(scores(one), -scores(other), atol=1e-6)
    assert (one.direction, other.direction) == ("noising", "denoising")


def test_transformer_lens_finds_the_same(gpt2: ModelHandle, pairs: Pairs) -> None:
    from transformer_lens import patching

    first = pairs.take([0])
    _, cache = gpt2.bridge.run_with_cache(first.clean)

    def difference(logits: Tensor) -> Tensor:
        return (logits[:, -1, first.correct[0, 0]] - logits[:, -1, first.wrong[0, 0]]).mean()

    by_position = patching.get_act_patch_resid_pre(gpt2.bridge, first.corrupt, cache, difference)
    by_head = patching.get_act_patch_attn_head_out_all_pos(gpt2.bridge, first.corrupt, cache, difference)
    stream = patch_map(gpt2, first, "resid_pre")
    heads = patch_map(gpt2, first, "head_out", parts=("head",))
    corrupt = stream.values["corrupt"]
    np.testing.assert_allclose(stream.map("resid_pre") + corrupt, by_position.numpy(), atol=1e-5)
    np.testing.assert_allclose(heads.map("head_out") + corrupt, by_head.numpy(), atol=1e-5)


def test_the_one_head_that_matters_is_found(make_module: Callable[..., torch.nn.Module], pairs: Pairs) -> None:
    module = make_module("gpt2")
    with torch.no_grad():
        for layer, block in enumerate(module.transformer.h):  # type: ignore[operator]
            block.mlp.c_proj.weight.zero_()
            for head in range(4):
                if (layer, head) != (1, 2):
                    block.attn.c_proj.weight[8 * head : 8 * head + 8] = 0
    found = patch_map(load_model(module), pairs, "head_out", parts=("head",))
    by_head = found.map("head_out")
    assert abs(by_head[1, 2]) > 0.01
    by_head[1, 2] = 0
    np.testing.assert_allclose(by_head, 0, atol=1e-6)


def test_statistics_over_prompts_are_numpys(gpt2: ModelHandle, pairs: Pairs) -> None:
    found = patch_map(gpt2, pairs, "attn_out")
    each = np.array(found.nodes["per_prompt"].to_pylist())
    np.testing.assert_allclose(found.nodes["score"], each.mean(1), atol=1e-6)
    np.testing.assert_allclose(found.nodes["stderr"], each.std(1, ddof=1) / 2**0.5, atol=1e-6)
    alone = patch_map(gpt2, pairs.take([1]), "attn_out")
    assert alone.nodes["stderr"].null_count == len(alone.nodes)
    np.testing.assert_allclose(scores(alone), each[:, 1], atol=1e-5)
    assert found.values["clean"] - found.values["corrupt"] == pytest.approx(found.effect)


@pytest.mark.parametrize("path", ["cone", "full"])
def test_the_batch_decides_nothing(llama: ModelHandle, pairs: Pairs, path: str) -> None:
    wanted = scores(patch_map(llama, pairs, ["resid_pre", "v"], exact_path=path))
    for batch in (1, 3):
        found = scores(patch_map(llama, pairs, ["resid_pre", "v"], exact_path=path, batch=batch))
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_answers_of_several_tokens(model: ModelHandle, pairs: Pairs, logits_by_definition: Callable) -> None:
    metric = SequenceLogProb(torch.randint(300, (2, 3), generator=torch.Generator().manual_seed(5)))
    found = patch_map(model, pairs, "mlp_out.1", metric=metric)
    rows = torch.arange(2)
    for row in found.nodes.to_pylist():

        def put(value: Tensor, source: Tensor, pos: int = row["pos"]) -> None:
            value[:, pos] = source[:, pos]

        patched = logits_by_definition(model, pairs.corrupt, pairs.clean, [("mlp_out.1", put)])
        wanted = metric(patched[:, -3:], rows) - metric(model.logits(pairs.corrupt)[:, -3:], rows)
        np.testing.assert_allclose(row["per_prompt"], wanted, atol=1e-5)


def test_kl_to_the_clean_run_is_zero_when_all_is_restored(gpt2: ModelHandle, pairs: Pairs) -> None:
    found = patch_map(gpt2, pairs, "resid_pre.1", metric="minus_kl", parts=())
    assert found.values["clean"] == pytest.approx(0, abs=1e-6)
    assert found.values["corrupt"] < -0.01
    assert scores(found)[0] == pytest.approx(-found.values["corrupt"], abs=1e-5)


# -- ablations


def test_zero_and_mean_ablation_are_their_definitions(model: ModelHandle, pairs: Pairs) -> None:
    from interp.hooks import capture, patch
    from interp.tasks import LogitDiff

    metric, rows = LogitDiff(pairs.correct, pairs.wrong), torch.arange(2)
    clean = metric(model.logits(pairs.clean), rows)
    with capture(model, "head_out.1") as acts:
        model.logits(pairs.corrupt)
        mean = acts["head_out.1"].mean(0)
    for baseline, new in (("zero", torch.zeros_like(mean)), ("mean", mean)):
        found = patch_map(model, pairs, "head_out.1", baseline=baseline, parts=("pos", "head"), positions=[2])
        assert found.direction == "noising"
        for row in found.nodes.to_pylist():

            def edit(value: Tensor, head: int = row["head"], new: Tensor = new) -> Tensor:
                value[:, 2, head] = new[2, head]
                return value

            with patch(model, "head_out.1", edit):
                wanted = clean - metric(model.logits(pairs.clean), rows)
            np.testing.assert_allclose(row["per_prompt"], wanted, atol=1e-5)
        assert np.abs(scores(found)).max() > 1e-3


def test_resampling_takes_another_prompt(gpt2: ModelHandle, make_pairs: Callable[..., Pairs]) -> None:
    two = make_pairs(prompts=2)
    found = patch_map(gpt2, two, "attn_out", baseline="resample")
    other = Pairs("other", two.clean, two.corrupt.flip(0), two.correct, two.wrong)
    wanted = patch_map(gpt2, other, "attn_out", direction="noising")  # of two prompts, the other is the only one
    np.testing.assert_allclose(scores(found), scores(wanted), atol=1e-6)
    given = patch_map(gpt2, two, "attn_out", baseline="resample", reference=two.corrupt[:1])
    both = Pairs("one", two.clean, two.corrupt[:1].expand(2, -1), two.correct, two.wrong)
    np.testing.assert_allclose(scores(given), scores(patch_map(gpt2, both, "attn_out", direction="noising")), atol=1e-6)
    many = make_pairs(prompts=5)
    drawn = [scores(patch_map(gpt2, many, "attn_out.1", baseline="resample", seed=seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-4


def test_knocking_out_with_the_mean_of_one_prompt_is_patching_with_it(llama: ModelHandle, pairs: Pairs) -> None:
    alone = pairs.take([0])
    mean = patch_map(llama, alone, "mlp_out", baseline="mean")
    np.testing.assert_allclose(scores(mean), scores(patch_map(llama, alone, "mlp_out", direction="noising")), atol=1e-6)


# -- progress, hooks, refusals


def test_progress_counts_every_row(gpt2: ModelHandle, pairs: Pairs) -> None:
    heard: list[tuple[int, int]] = []
    patch_map(gpt2, pairs, "resid_pre", batch=4, on_progress=lambda *done: heard.append(done))
    assert [done for done, _ in heard] == sorted({done for done, _ in heard})
    assert {total for _, total in heard} == {(3 * 5 + 3) * 2}  # cells and, of each site, all of them, on each prompt
    assert heard[-1] == (36, 36)


@pytest.mark.parametrize("path", ["cone", "full"])
def test_hooks_are_gone_after_an_exception(
    model: ModelHandle, pairs: Pairs, count_hooks: Callable[[ModelHandle], int], path: str
) -> None:
    before, calls = count_hooks(model), []

    def fails(logits: Tensor, rows: Tensor) -> Tensor:
        calls.append(rows)
        if len(calls) > 3:
            raise RuntimeError("the metric broke")
        return logits[:, -1, 0]

    def stops(done: int, total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(RuntimeError, match="the metric broke"):
        patch_map(model, pairs, ["resid_pre", "head_out"], metric=fails, exact_path=path, batch=8)
    with pytest.raises(KeyboardInterrupt):
        patch_map(model, pairs, ["resid_pre", "head_out"], on_progress=stops, exact_path=path, batch=8)
    assert count_hooks(model) == before
    assert model.logits(pairs.clean).shape == (2, 5, 300)


@pytest.mark.parametrize("path", ["cone", "full"])
def test_where_nothing_differs_nothing_is_run(gpt2: ModelHandle, pairs: Pairs, path: str) -> None:
    heard: list[tuple[int, int]] = []
    same = replace(pairs, corrupt=pairs.clean)
    found = patch_map(gpt2, same, "mlp_out", exact_path=path, on_progress=lambda *at: heard.append(at))
    assert not found.nodes["score"].to_numpy().any()
    assert found.values["rows_run"] == 0
    assert heard[-1][0] == heard[-1][1]


def test_one_part_can_be_named_as_text(gpt2: ModelHandle, pairs: Pairs) -> None:
    as_text, as_tuple = (patch_map(gpt2, pairs, "head_out.1", parts=parts) for parts in ("head", ("head",)))
    assert as_text.nodes.equals(as_tuple.nodes)


def test_answers_that_cannot_be_read_are_refused(gpt2: ModelHandle, pairs: Pairs) -> None:
    nothing = torch.full((2, 1), -1)
    with pytest.raises(ValueError, match="'logit_diff' reads the wrong answers, and prompt 0 has none"):
        patch_map(gpt2, replace(pairs, wrong=nothing), "mlp_out.0")
    with pytest.raises(ValueError, match="'probability' reads the correct answers, and prompt 0 has none"):
        patch_map(gpt2, replace(pairs, correct=nothing[:, :0]), "mlp_out.0", metric="probability")
    for wild in (-2, 300):
        with pytest.raises(ValueError, match=rf"correct answers must lie in 0\.\.d_vocab-1=299.*got {wild}\."):
            patch_map(gpt2, replace(pairs, correct=nothing * 0 + wild), "mlp_out.0")
    unread = patch_map(gpt2, replace(pairs, wrong=nothing), "mlp_out.0", metric="probability")
    assert np.abs(unread.nodes["score"].to_numpy()).max() > 0


def test_bad_requests_are_refused(gpt2: ModelHandle, neox: ModelHandle, pairs: Pairs) -> None:
    with pytest.raises(ValueError, match="has no resid_mid"):
        patch_map(neox, pairs, "resid_mid")
    with pytest.raises(ValueError, match="Unknown kind of site 'resid_pree'; did you mean 'resid_pre'"):
        patch_map(gpt2, pairs, "resid_pree")
    with pytest.raises(ValueError, match=r"0\.\.2"):
        patch_map(gpt2, pairs, "resid_pre.3")
    with pytest.raises(ValueError, match=r"positions must lie in 0\.\.4.*got 5"):
        patch_map(gpt2, pairs, positions=[5])
    with pytest.raises(ValueError, match="Unknown part 'heads'; did you mean 'head'"):
        patch_map(gpt2, pairs, parts=("heads",))
    with pytest.raises(ValueError, match="None of resid_pre has heads"):
        patch_map(gpt2, pairs, "resid_pre", parts=("head",))
    with pytest.raises(ValueError, match=r"neuron of mlp_act.0 must lie in 0\.\.127, got 128"):
        patch_map(gpt2, pairs, "mlp_act", parts=("neuron",), neurons=[128])
    with pytest.raises(ValueError, match="Unknown baseline"):
        patch_map(gpt2, pairs, baseline="median")
    with pytest.raises(ValueError, match="direction must be 'noising'"):
        patch_map(gpt2, pairs, baseline="zero", direction="denoising")
    with pytest.raises(ValueError, match="prompts of 5 tokens"):
        patch_map(gpt2, pairs, baseline="mean", reference=pairs.clean[:, :4])
    with pytest.raises(ValueError, match="mean and resample only"):
        patch_map(gpt2, pairs, reference=pairs.clean)
    with pytest.raises(ValueError, match="Unknown metric"):
        patch_map(gpt2, pairs, metric="logit_dif")
    with pytest.raises(ValueError, match=r"one number per prompt, \[2\], got \[\]"):
        patch_map(gpt2, pairs, metric=lambda logits, rows: logits.mean())
    with pytest.raises(ValueError, match="not finite at prompt 0"):
        patch_map(gpt2, pairs, metric=lambda logits, rows: logits[:, -1, 0] * torch.nan)
    with pytest.raises(ValueError, match="reads the last 6 positions"):
        patch_map(gpt2, pairs, metric=Custom(lambda logits, rows: logits[:, 0, 0], reads=6))


def test_prompts_longer_than_the_model_reads_are_refused(gpt2: ModelHandle, make_pairs: Callable[..., Pairs]) -> None:
    with pytest.raises(ValueError, match="n_ctx=64"):
        patch_map(gpt2, make_pairs(n_pos=65))
