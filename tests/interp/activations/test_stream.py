from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp.activations import ActivationStore
from interp.data import Blocks, DataSpec, token_blocks
from interp.hooks import capture, patch

if TYPE_CHECKING:
    from interp.models import ModelHandle

SITE = "resid_post.1"


def store_of(model: ModelHandle, blocks: Blocks, sites: Any = SITE, **changes: Any) -> ActivationStore:
    return ActivationStore(model, blocks, sites, **({"batch": 32, "pool_blocks": 8} | changes))


def epoch_of(store: ActivationStore, epoch: int = 0) -> tuple[Tensor, Tensor]:
    """Return (rows, their block and position) of one epoch."""
    steps = range(epoch * store.batches_per_epoch, (epoch + 1) * store.batches_per_epoch)
    rows = torch.cat([store.batch(step) for step in steps])
    origins = [store.origin(step) for step in steps]
    return rows, torch.stack([torch.cat([o[name] for o in origins]) for name in ("block", "position")], 1)


def test_rows_are_those_of_single_blocks_without_hooks(gpt2: ModelHandle, blocks: Blocks, reference: Tensor) -> None:
    store = store_of(gpt2, blocks)
    rows, origin = epoch_of(store)
    torch.testing.assert_close(rows, reference[origin[:, 0], origin[:, 1]], rtol=1e-5, atol=1e-5)
    tokens = torch.cat([store.origin(step)["token"] for step in range(store.batches_per_epoch)])
    assert torch.equal(tokens, blocks.tokens[origin[:, 0], origin[:, 1]])


@pytest.mark.parametrize("across", [True, False])
def test_every_usable_row_comes_once_per_epoch(gpt2: ModelHandle, blocks: Blocks, across: bool, tmp_path: Any) -> None:
    if not across:
        path = tmp_path / "a.jsonl"
        path.write_text("".join(f'{{"text": "{"the cat and " * (1 + i % 5)}"}}\n' for i in range(60)))
        blocks = token_blocks(gpt2, DataSpec(str(path), context=16, across_documents=False))
        assert not blocks.keep.all()
    store = store_of(gpt2, blocks, seed=3)
    usable = blocks.keep & (blocks.tokens != gpt2.bos_id)
    assert store.rows == int(usable.sum())
    for epoch in (0, 1):
        _, origin = epoch_of(store, epoch)
        seen = torch.zeros_like(blocks.tokens)
        seen.index_put_((origin[:, 0], origin[:, 1]), torch.ones((), dtype=seen.dtype), accumulate=True)
        assert seen.max() == 1, "no row twice"
        assert not seen[~usable].any(), "no BOS, no padding"
        assert store.rows - int(seen.sum()) == store.rows % 32, "only the stated remainder is missing"


def test_report_adds_up(gpt2: ModelHandle, blocks: Blocks) -> None:
    store = store_of(gpt2, blocks, batch=1)
    assert set(store.report.values()) == {0}
    epoch_of(store)
    bos = int((blocks.tokens == gpt2.bos_id).sum())
    assert bos > len(blocks), "some documents end inside a block"
    wanted = {"rows": blocks.tokens.numel() - bos, "padding": 0, "bos": bos, "nonfinite": 0, "outliers": 0}
    assert store.report == wanted
    store.batch(0)  # captured again, counted once
    assert store.report == wanted


def test_bos_is_kept_on_request(gpt2: ModelHandle, blocks: Blocks) -> None:
    store = store_of(gpt2, blocks, drop_bos=False)
    _, origin = epoch_of(store)
    assert store.rows == blocks.tokens.numel()
    assert (origin[:, 1] == 0).any()
    assert store.report["bos"] == 0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 60), min_size=1, max_size=6), seed=st.integers(0, 2))
def test_batches_are_a_pure_function_of_seed_and_step(
    gpt2: ModelHandle, blocks: Blocks, order: list[int], seed: int
) -> None:
    one, other = store_of(gpt2, blocks, seed=seed), store_of(gpt2, blocks, seed=seed)
    straight = {step: one.batch(step) for step in sorted(set(order))}
    for step in order:
        assert torch.equal(other.batch(step), straight[step])


def test_seeds_epochs_and_pools_differ(gpt2: ModelHandle, blocks: Blocks) -> None:
    first, second = store_of(gpt2, blocks, seed=0), store_of(gpt2, blocks, seed=1)
    batches = [first.batch(0), second.batch(0), first.batch(first.batches_per_epoch), first.batch(1)]
    assert len({batch.numpy().tobytes() for batch in batches}) == 4
    epochs = [epoch_of(first, epoch)[1] for epoch in (0, 1)]
    pool = first.batches_per_pool * 32
    assert not torch.equal(epochs[0][:pool, 0].unique(), epochs[1][:pool, 0].unique()), "pools are drawn anew"


def test_batches_mix_blocks(gpt2: ModelHandle, blocks: Blocks) -> None:
    store = store_of(gpt2, blocks, pool_blocks=16)
    assert len(store.origin(0)["block"].unique()) > 12


def test_steps_map_to_epoch_pool_and_batch(gpt2: ModelHandle, blocks: Blocks) -> None:
    store = store_of(gpt2, blocks)
    places = [store.locate(step) for step in range(3 * store.batches_per_epoch)]
    assert len(set(places)) == len(places)
    assert places == sorted(places)
    assert max(index for _, _, index in places) == store.batches_per_pool - 1


def test_sites_are_captured_together_and_aligned(gpt2: ModelHandle, blocks: Blocks) -> None:
    sites = ["resid_post.1", "head_out.0", "k.1", "mlp_act.0"]
    store = store_of(gpt2, blocks, sites)
    passes = []
    hook = gpt2.module.transformer.h[0].register_forward_hook(lambda *_: passes.append(1))
    try:
        batches = {site: store.batch(0, site) for site in sites}
    finally:
        hook.remove()
    assert len(passes) == 1, "eight blocks of 16 tokens are one pass, for all sites"
    assert {site: rows.shape[1] for site, rows in batches.items()} == {site: gpt2.width(site) for site in sites}
    with capture(gpt2, sites) as found:
        gpt2.forward(blocks.tokens.long())
    origin = store.origin(0)
    for site, rows in batches.items():
        wanted = found[site].flatten(2)[origin["block"], origin["position"]]
        torch.testing.assert_close(rows, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(store_of(gpt2, blocks, SITE).batch(0), batches[SITE])


def test_the_pass_stops_after_the_deepest_site(gpt2: ModelHandle, blocks: Blocks) -> None:
    late = []
    hook = gpt2.module.transformer.h[2].register_forward_pre_hook(lambda *_: late.append(1))
    try:
        store_of(gpt2, blocks).batch(0)
    finally:
        hook.remove()
    assert late == []


def edited(gpt2: ModelHandle, value: float, positions: slice | int, blocks_share: int = 1) -> Any:
    """Patch layer 0 so that resid_post.1 is far out, NaN or infinite at some positions of the blocks."""

    def edit(x: Tensor) -> Tensor:
        x[::blocks_share, positions] = x[::blocks_share, positions] * value
        return x

    return patch(gpt2, SITE, edit)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_rows_are_counted_and_never_delivered(gpt2: ModelHandle, blocks: Blocks, value: float) -> None:
    store = store_of(gpt2, blocks)
    with edited(gpt2, value, 5):
        rows, origin = epoch_of(store)
    assert torch.isfinite(rows).all()
    assert (origin[:, 1] != 5).all()
    assert len(rows) == store.batches_per_epoch * 32, "others of the pool take their places"
    assert 0 < store.report["nonfinite"] <= len(blocks)
    used = store.report["rows"] + store.report["nonfinite"]
    assert used == store.batches_per_epoch * 32


def test_outliers_are_counted_and_never_delivered(gpt2: ModelHandle, blocks: Blocks) -> None:
    store = store_of(gpt2, blocks, outlier_norm=50.0)
    with edited(gpt2, 1000.0, 3):
        rows, origin = epoch_of(store)
    assert (origin[:, 1] != 3).all()
    assert store.report["outliers"] > 0
    norms = rows.norm(dim=1)
    assert norms.max() < 50 * norms.median()
    kept = store_of(gpt2, blocks)
    with edited(gpt2, 1000.0, 3):
        epoch_of(kept)
    assert kept.report["outliers"] == 0


def test_an_unusable_row_is_left_out_at_every_site(gpt2: ModelHandle, blocks: Blocks) -> None:
    store = store_of(gpt2, blocks, ["resid_post.0", SITE])
    with edited(gpt2, float("nan"), 5):
        store.batch(0, "resid_post.0")
        assert (store.origin(0)["position"] != 5).all()


def test_nothing_usable_is_an_error_with_the_counts(gpt2: ModelHandle, blocks: Blocks) -> None:
    store = store_of(gpt2, blocks)
    with (
        edited(gpt2, float("nan"), slice(None)),
        pytest.raises(ValueError, match=r"None of 96 rows at resid_post\.1 can be used: 96 hold NaN"),
    ):
        store.batch(0)
    assert torch.isfinite(store.batch(0)).all(), "the store works again once the model does"


def test_values_beyond_float16_are_refused_not_made_infinite(gpt2: ModelHandle, blocks: Blocks) -> None:
    store = store_of(gpt2, blocks, dtype=torch.float16)
    assert store.batch(0).dtype == torch.float16
    with (
        edited(gpt2, 1e6, slice(None)),
        pytest.raises(ValueError, match=r"resid_post\.1 reaches .*beyond the largest float16, 6\.55e\+04.*float32"),
    ):
        store_of(gpt2, blocks, dtype=torch.float16).batch(0)


def test_batches_serve_under_autograd_wherever_they_were_made(gpt2: ModelHandle, blocks: Blocks) -> None:
    store = store_of(gpt2, blocks)
    with torch.inference_mode():
        store.batch(0)
    weight = torch.ones(gpt2.d_model, requires_grad=True)
    for step in (1, store.batches_per_pool):  # from the pool made in inference mode, and a new one in its buffers
        (store.batch(step) @ weight).square().sum().backward()
    assert weight.grad is not None
    assert not store.batch(0).requires_grad


def test_sample_is_pure_and_leaves_the_pool_alone(gpt2: ModelHandle, blocks: Blocks, reference: Tensor) -> None:
    store = store_of(gpt2, blocks)
    before = store.batch(0)
    sample = store.sample(50, seed=1)
    assert sample.shape == (50, 32)
    assert torch.equal(store_of(gpt2, blocks).sample(50, seed=1), sample)
    assert not torch.equal(store.sample(50, seed=2), sample)
    exact = "donot_use_mm_for_euclid_dist"
    assert torch.cdist(sample, reference.flatten(0, 1), compute_mode=exact).min(1).values.max() < 1e-4
    assert torch.equal(store.batch(0), before)
    assert len(store.sample(10**6)) == store.rows


def test_two_threads_get_the_batches_of_one(gpt2: ModelHandle, blocks: Blocks) -> None:
    store, alone = store_of(gpt2, blocks), store_of(gpt2, blocks)
    found: dict[int, Tensor] = {}

    def ask(steps: range) -> None:
        for step in steps:
            found[step] = store.batch(step)

    threads = [threading.Thread(target=ask, args=(range(start, 12, 2),)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[step], alone.batch(step)) for step in range(12))


def test_every_family(model: ModelHandle, blocks: Blocks) -> None:
    store = ActivationStore(model, blocks, ["resid_post.0", "mlp_out.1"], batch=64)
    assert store.batch(0, "mlp_out.1").shape == (64, model.d_model)
    assert store.widths[store.sites[0]] == model.width(store.sites[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch must be 1 or more, got 0"),
        ({"pool_blocks": 0}, "pool_blocks must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"outlier_norm": 0.5}, "must be above 1, got 0.5"),
        ({"batch": 10_000}, r"gives \d+ usable rows, fewer than one batch of 10000"),
        ({"sites": "resid_pst.1"}, "did you mean 'resid_post'"),
        ({"sites": "resid_post.7"}, r"layers are 0\.\.2"),
        ({"sites": "pattern.0"}, "one number for each query and key"),
    ],
)
def test_bad_requests(gpt2: ModelHandle, blocks: Blocks, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store_of(gpt2, blocks, **changes)


def test_bad_steps_and_sites(gpt2: ModelHandle, blocks: Blocks) -> None:
    store = store_of(gpt2, blocks, ["resid_post.0", SITE])
    with pytest.raises(ValueError, match="step must be 0 or more, got -1"):
        store.batch(-1, SITE)
    with pytest.raises(ValueError, match=r"several sites; say which: resid_post\.0, resid_post\.1"):
        store.batch(0)
    with pytest.raises(ValueError, match=r"no site resid_post\.2; it captures"):
        store.batch(0, "resid_post.2")
